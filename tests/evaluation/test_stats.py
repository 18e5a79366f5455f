"""Intervals and verdicts, against the normal approximation and loops that resample."""

import numpy as np
import pandas as pd
import pytest

from mmtlib.evaluation.stats import bootstrap, paired_difference, verdict

MANY = (4000, 0.95)


def made_up_scores(clips, seeds, effect=0.0, truth=0.0, number=0):
    """Differences of two runs by clip and seed: what all clips of a seed share has a deviation of `effect`."""
    rng = np.random.default_rng(number)
    of_seed, of_clip = rng.normal(0, effect, seeds), rng.normal(0, 25, (clips, 1))
    return pd.DataFrame(truth + of_seed + of_clip + rng.normal(0, 40, (clips, seeds)))


def test_bootstrap_agrees_with_the_normal_approximation_and_repeats():
    values = pd.DataFrame(np.repeat([0.0, 100.0], [300, 500]))  # one seed: clips alone are drawn
    mean, low, high = bootstrap(values, *MANY)
    half = 1.96 * values[0].std() / np.sqrt(len(values))
    assert mean == 62.5
    assert low == pytest.approx(62.5 - half, abs=0.25)
    assert high == pytest.approx(62.5 + half, abs=0.25)
    assert bootstrap(values, *MANY) == (mean, low, high)
    _, narrow_low, narrow_high = bootstrap(values, 4000, 0.8)
    assert low < narrow_low < narrow_high < high


def test_bootstrap_agrees_with_a_loop_that_draws_clips_and_seeds():
    values = made_up_scores(120, 3, effect=4)
    rng, means = np.random.default_rng(7), []
    for _ in range(4000):
        drawn = values.sample(len(values), replace=True, random_state=rng)
        means.append(np.mean([drawn[seed].mean() for seed in rng.choice(list(values), 3)]))
    assert bootstrap(values, *MANY)[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.6)


def test_clips_of_a_group_are_drawn_together_and_groups_within_their_fold():
    rng, rows = np.random.default_rng(3), []
    for fold in range(3):
        for group in range(12):
            shared = rng.normal(5 * fold, 30)
            rows += [(fold, f"{fold}-{group}", clip, shared + rng.normal(0, 5)) for clip in range(1 + group % 4)]
    values = pd.DataFrame(rows, columns=["fold", "group", "clip", 0]).set_index(["fold", "group", "clip"])
    groups = [[part[0].to_numpy() for _, part in values.loc[fold].groupby(level=0)] for fold in range(3)]
    means = []
    for _ in range(4000):
        picked = []
        for fold in rng.integers(0, 3, 3):
            picked += [groups[fold][number] for number in rng.integers(0, 12, 12)]
        means.append(np.concatenate(picked).mean())
    mean, low, high = bootstrap(values, *MANY)
    assert mean == pytest.approx(values[0].mean())
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1.2)
    ungrouped = bootstrap(values.droplevel("group"), *MANY)
    assert high - low > 1.2 * (ungrouped[2] - ungrouped[1])


def test_groups_of_one_clip_are_clips():
    values = made_up_scores(60, 2)
    values.index = pd.MultiIndex.from_product([[1, 2, 3], range(20)], names=["fold", "clip"])
    grouped = values.set_index(values.index.get_level_values("clip").rename("group"), append=True).swaplevel()
    assert bootstrap(grouped, *MANY) == pytest.approx(bootstrap(values, *MANY))


@pytest.mark.parametrize(("seeds", "effect"), [(1, 0.0), (5, 0.0), (5, 2.0), (3, 2.0)])
def test_intervals_cover_the_truth_as_often_as_they_promise(seeds, effect):
    found = [bootstrap(made_up_scores(300, seeds, effect, 5.0, number), 400, 0.95) for number in range(200)]
    assert np.mean([low <= 5 <= high for _, low, high in found]) >= 0.92


def test_a_seed_effect_widens_the_interval():
    widths = [np.diff(bootstrap(made_up_scores(300, 5, effect), *MANY)[1:])[0] for effect in (0, 20)]
    assert widths[1] > 1.5 * widths[0]


def test_swapping_the_sides_mirrors_the_interval():
    first, second = made_up_scores(200, 3, 2, 5.0, 1), made_up_scores(200, 3, 2, 0.0, 2)
    difference, low, high = paired_difference(first, second, *MANY)
    shuffled = first.sample(frac=1, random_state=3)[[2, 0, 1]]
    assert paired_difference(second, shuffled, *MANY) == pytest.approx((-difference, -high, -low))


def test_a_paired_interval_is_narrower_than_an_unpaired_one_and_joins_by_clip_and_seed():
    ids = [f"c{index}" for index in range(400)]
    first = pd.DataFrame({0: np.where(np.arange(400) % 2, 100.0, 0.0)}, index=ids)
    second = first.copy()
    second.iloc[1:40:2] = 0.0  # 20 clips are lost
    shuffled = second.sample(frac=1, random_state=3)
    shuffled.loc["only-here"] = 100.0
    shuffled[1] = 0.0  # a seed that the first has not
    difference, low, high = paired_difference(first, shuffled, *MANY)
    assert difference == 5.0
    assert 2 < low < 5 < high < 8
    alone = bootstrap(first, *MANY)
    assert alone[2] - alone[1] > high - low
    for other in (first.rename(index=lambda name: f"other-{name}"), first.rename(columns={0: 1})):
        with pytest.raises(ValueError, match="no test clip or no seed in common"):
            paired_difference(first, other, *MANY)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.1, 5.0, "holds"), (-5.0, -0.1, "does not hold"), (-1.0, 1.0, "undecided"), (0.0, 5.0, "undecided")],
)
def test_verdict(low, high, word):
    assert verdict(low, high) == word
