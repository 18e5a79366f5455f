"""Beyond accuracy: is a model sure with reason, does sound find its picture, do the features tell classes apart.

All of it is read off the stored predictions of the test split. With several heads (EPIC-KITCHENS-100), classes are
those of the first: a top probability and a calibration belong to one head.
"""

from collections.abc import Iterable
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from mmtlib.config import Params
from mmtlib.evaluation.predictions import guesses, head_sizes
from study.tables.ledger import verdict
from study.tables.results import Result, _on_test, class_numbers, defaults, headliners, paired_difference

BINS = 15
"""Bins of equal width of the top probability, for the expected calibration error (Guo et al., ICML 2017)."""

NEAREST = (1, 5, 10)
"""Of how many nearest clips one must be right, in retrieval."""

RECALLS, CHANCES = ([f"{name}_{k}" for k in NEAREST] for name in ("recall", "chance"))


def _about(result: Result) -> dict[str, Any]:
    about = {"model": result.label, "modality": result.modality, "objective": result.objective}
    return about | {"ours": result.group is None}


def _over_seeds(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each measure over the seeds, then their standard deviations (empty with one seed)."""
    table = pd.DataFrame(rows)
    return {"n_seeds": len(table), **table.mean(), **table.std().add_suffix("_std")}


def certainties(result: Result) -> pd.DataFrame:
    """How sure a model is of each test clip: seed, confidence (its top probability), right, nll (nats), brier.

    `brier` is the squared distance between the probabilities and the truth, summed over the classes: 0 to 2.
    """
    parts = []
    for seed, table in zip(result.predictions, _on_test(result, result.modality), strict=True):
        labels = class_numbers(table, table["label_index"].to_numpy())
        logits = torch.as_tensor(np.stack(table["logits"].tolist()), dtype=torch.float64)
        logs = logits[:, : next(iter(head_sizes(table).values()))].log_softmax(1).numpy()
        chances, own = np.exp(logs), logs[np.arange(len(logs)), labels]
        measures = {
            "confidence": chances.max(axis=1),
            "right": class_numbers(table, guesses(table)) == labels,
            "nll": -own,
            "brier": (chances**2).sum(axis=1) - 2 * np.exp(own) + 1,
        }
        parts.append(pd.DataFrame({"seed": seed} | measures))
    return pd.concat(parts, ignore_index=True)


def reliability(clips: pd.DataFrame) -> pd.DataFrame:
    """Mean confidence, share of `right` and n of the clips in each of the bins that is not empty."""
    number = np.minimum((clips["confidence"] * BINS).astype(int), BINS - 1)
    bins = clips.groupby(number)
    return bins[["confidence", "right"]].mean().assign(n=bins.size())


def calibration_error(clips: pd.DataFrame) -> float:
    """The expected calibration error, percent: |share right - confidence|, averaged over the clips by their bin."""
    bins = reliability(clips)
    return 100 * float(np.average((bins["right"] - bins["confidence"]).abs(), weights=bins["n"]))


def selective(clips: pd.DataFrame) -> pd.Series:
    """Accuracy over the clips that the model is surest of, by their share, both percent; mean over the seeds."""
    ranked = [part.sort_values("confidence", ascending=False, kind="stable") for _, part in clips.groupby("seed")]
    shares = range(10, 101, 10)
    kept = {share: [part["right"].iloc[: ceil(share * len(part) / 100)].mean() for part in ranked] for share in shares}
    return 100 * pd.DataFrame(kept).mean()


def calibration_table(results: list[Result]) -> pd.DataFrame:
    """Ours and the baselines on what they read: top1, confidence, ece (percent), nll (nats), brier (0 to 2).

    Means over the seeds, with standard deviations in columns like `ece_std`.
    """
    rows = []
    for result in headliners(results):
        seeds = [part for _, part in certainties(result).groupby("seed")]
        measures = [
            {
                "top1": 100 * part["right"].mean(),
                "confidence": 100 * part["confidence"].mean(),
                "ece": calibration_error(part),
                **part[["nll", "brier"]].mean(),
            }
            for part in seeds
        ]
        rows.append(_about(result) | {"n": len(seeds[0])} | _over_seeds(measures))
    return pd.DataFrame(rows)


def recalls(
    queries: Float[np.ndarray, "clips dim"],
    candidates: Float[np.ndarray, "clips dim"],
    names: Int[np.ndarray, " clips"],
) -> list[float]:
    """Percent of queries with a candidate of their name among the 1, 5, 10 nearest by cosine (unit norm in).

    One of another name that is just as near counts as nearer.
    """
    before = []
    for block in np.array_split(np.arange(len(names)), ceil(len(names) / 1000)):  # to bound the memory
        similar, wanted = queries[block] @ candidates.T, names[block, None] == names
        best = np.where(wanted, similar, -np.inf).max(axis=1, keepdims=True)
        before += list((~wanted & (similar >= best)).sum(axis=1))
    return [100 * float((np.array(before) < k).mean()) for k in NEAREST]


def chance(names: Int[np.ndarray, " clips"]) -> list[float]:
    """What `recalls` gives on average for candidates in random order, percent."""
    _, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    others, size = len(names) - counts[place], len(names)
    # that none of k drawn without replacement is wanted: the product, draw by draw, of the share of the others
    missed = np.cumprod([np.clip((others - i) / max(size - i, 1), 0, 1) for i in range(max(NEAREST))], axis=0)
    return [100 * float(1 - missed[k - 1].mean()) for k in NEAREST]


def retrieval_table(results: list[Result]) -> pd.DataFrame:
    """Sound looked up by picture and the other way round, on the test clips that have both, for all models of both.

    `query` is what is given, `wanted` what counts: the own clip, or any of its class (the own one is one). Columns
    recall_1, recall_5, recall_10 (percent, means over the seeds), the same with _std, and chance_1, ... beside them.
    """
    rows = []
    for result in (r for r in results if r.modality == "av"):
        seeds = {}
        for table, heard, seen in zip(*(_on_test(result, name) for name in ("av", "audio", "video")), strict=True):
            table = table[table["clip_id"].isin(heard["clip_id"]) & table["clip_id"].isin(seen["clip_id"])]
            halves = [unit(half) for half in np.split(np.stack(table["embedding"].tolist()), 2, axis=1)]
            labels = class_numbers(table, table["label_index"].to_numpy())
            for query, pair in (("audio", halves), ("video", halves[::-1])):
                for wanted, names in (("own clip", np.arange(len(table))), ("class", labels)):
                    row = {"n": len(table)} | dict(zip(RECALLS, recalls(*pair, names), strict=True))
                    row |= dict(zip(CHANCES, chance(names), strict=True))
                    seeds.setdefault((query, wanted), []).append(row)
        about = {"row": result.name, "model": result.label, "objective": result.objective}
        for (query, wanted), measures in seeds.items():
            rows.append(about | {"query": query, "wanted": wanted} | _over_seeds(measures))
    return pd.DataFrame(rows).drop(columns=["n_std", *(f"{name}_std" for name in CHANCES)]).astype({"n": int})


def unit(vectors: Float[np.ndarray, "clips dim"]) -> Float[np.ndarray, "clips dim"]:
    """Each row at length 1, fp64."""
    from sklearn.preprocessing import normalize

    return normalize(vectors.astype(np.float64))


def separation(table: pd.DataFrame) -> tuple[dict[str, float], pd.Series]:
    """nmi and ari of k-means with as many clusters as classes, silhouette of the classes; then that of each clip.

    Of unit-norm embeddings. The silhouette is by cosine distance, -1 to 1; 0 where no class has two clips.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples

    labels = class_numbers(table, table["label_index"].to_numpy())
    vectors, classes = unit(np.stack(table["embedding"].tolist())), len(np.unique(labels))
    with threadpool_limits(1):  # the order of a parallel sum would show in the clusters
        found = KMeans(classes, n_init=10, random_state=0).fit_predict(vectors)
        defined = 1 < classes < len(labels)
        clips = silhouette_samples(vectors, labels, metric="cosine") if defined else np.zeros(len(labels))
    measures = {"nmi": normalized_mutual_info_score(labels, found), "ari": adjusted_rand_score(labels, found)}
    return measures | {"silhouette": clips.mean()}, pd.Series(clips, index=table["clip_id"].to_numpy())


def clustering_table(results: list[Result], params: Params) -> pd.DataFrame:
    """nmi, ari, silhouette of ours and the baselines (means over the seeds; columns with _std beside them).

    A baseline with the losses of our `default` is compared with it: `difference` of the silhouettes (row - default)
    and its bootstrap interval, `verdict` on the claim that the default separates better. With other
    losses it is not: the embeddings of both come from projection heads, which the contrastive losses alone train.
    """
    rows, silhouettes, main = [], {}, defaults(results)
    for result in headliners(results):
        seeds = [separation(table) for table in _on_test(result, result.modality)]
        clips = pd.concat(dict(zip(result.predictions, (values for _, values in seeds), strict=True)), axis=1)
        row = _about(result) | {"n": len(clips)} | _over_seeds(measures for measures, _ in seeds)
        default = main[result.modality]
        silhouettes[result.name] = clips
        if result is not default and result.objective == default.objective:
            found = paired_difference(clips, silhouettes[default.name], params.report)
            row |= dict(zip(("difference", "low", "high"), found, strict=True))
            row |= {"default": default.label, "verdict": verdict(-found[2], -found[1])}
        rows.append(row)
    columns = ["default", "difference", "low", "high", "verdict"]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*(name for name in table if name not in columns), *columns])
