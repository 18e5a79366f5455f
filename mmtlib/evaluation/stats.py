"""Means with intervals over clips and seeds, paired where two models are compared, and what an interval says."""

import numpy as np
import pandas as pd
from jaxtyping import Float

Interval = tuple[float, float, float]  # a mean and the bounds of its interval


def bootstrap(values: pd.DataFrame, resamples: int, confidence: float) -> Interval:
    """Mean of `values`, a row for each clip and a column for each seed, and its interval, the same on every call.

    A resample draws as many clips and, apart from them, as many seeds, both with replacement; the interval has the
    percentiles of the resamples' means. Where rows are named by fold and clip, it draws as many folds, and of each as
    many clips; by fold, group and clip, as many whole groups, whose clips are of one recording or person and stand or
    fall together. With one seed it says nothing of other seeds. With a few it covers what it promises, or more, as
    long as clips matter more than seeds; three seeds that differ by a standard deviation of 4 points get 88 % for 95 %.
    """
    totals, sizes = values, np.ones(len(values))
    if values.index.nlevels > 2:
        groups = values.groupby(level=[0, 1])
        totals, sizes = groups.sum(), groups.size().to_numpy(np.float64)
    folds = [np.arange(len(totals))]
    if totals.index.nlevels > 1:
        folds = list(totals.groupby(level=0).indices.values())
    matrix, rng, means = totals.to_numpy(np.float64), np.random.default_rng(0), np.empty(resamples)
    for start in range(0, len(means), 256):  # in blocks, to bound the memory
        block = means[start : start + 256]
        sums, count = np.zeros((len(block), matrix.shape[1])), np.zeros((len(block), 1))
        for _ in folds:
            drawn = rng.integers(len(folds), size=len(block)) if len(folds) > 1 else np.zeros(len(block), int)
            for number, rows in enumerate(folds):
                own = drawn == number
                times = _draws(rng, int(own.sum()), len(rows))
                sums[own] += times @ matrix[rows]
                count[own] += times @ sizes[rows, None]
        seeds = _draws(rng, len(block), matrix.shape[1]) / matrix.shape[1]
        block[:] = (sums / count * seeds).sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(values.to_numpy(np.float64).mean()), float(low), float(high)


def _draws(rng: np.random.Generator, resamples: int, size: int) -> Float[np.ndarray, "resamples size"]:
    """How often each of `size` things is drawn in `size` draws with replacement."""
    places = rng.integers(0, size, (resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=places.size).reshape(places.shape).astype(np.float64)


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, resamples: int, confidence: float) -> Interval:
    """Mean of first - second over the clips and seeds that both have, and its interval: see `bootstrap`.

    Raises ValueError where they have no clip or no seed in common.
    """
    clips, seeds = first.index.intersection(second.index).sort_values(), first.columns.intersection(second.columns)
    if clips.empty or seeds.empty:
        raise ValueError("two models have no test clip or no seed in common")
    return bootstrap(first.loc[clips, seeds] - second.loc[clips, seeds], resamples, confidence)


def verdict(low: float, high: float) -> str:
    """What the interval of an advantage says of the claim that there is one: holds, does not hold or undecided."""
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"
