"""Scores, intervals and tables, against made-up predictions with known scores."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up_workspace import CLASSES, RIGHT, ROWS, made_up_params, made_up_workspace

from mmtlib.config import Objective, Report, Run
from mmtlib.data.corruption import CONDITIONS
from study.tables.ledger import verdict
from study.tables.results import (
    ReportError,
    ablations_table,
    bootstrap,
    ceilings_table,
    clip_scores,
    confusion_matrix,
    curves_table,
    headline_table,
    load_results,
    model_label,
    paired_difference,
    per_class_table,
    read_features,
    results_table,
    tsne_points,
)

MANY = Report(bootstrap=4000, confidence=0.95)
NO_COSTS = pd.DataFrame(columns=["model", "modality", "params_m", "mmacs"])


@pytest.fixture(scope="module")
def params():
    return made_up_params([0, 1])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, params):
    return made_up_workspace(tmp_path_factory.mktemp("workspace"), params)


@pytest.fixture(scope="module")
def results(workspace, params):
    return load_results(workspace, params)


def by_name(results):
    return {result.name: result for result in results}


def test_every_run_seed_split_and_reading_has_its_row(results):
    table = results_table(results, "made-up")
    assert list(table) == ["dataset", "model", "modality", "objective", "seed", "split", "n", "top1", "top5"]
    readings = sum(len(right) for right in RIGHT.values())
    assert len(table) == readings * 2 * 2 + len(CONDITIONS) * 2  # train_mmt reads corrupted clips, too
    assert not table.duplicated(["model", "modality", "objective", "seed", "split"]).any()
    assert set(table["model"]) == {"mat_t", "mvitv2_t", "mmt_t", "ast_t", "mbt_t", "mmt_t-late"}
    assert set(table["objective"]) == {"ce", "ce+avc+imc"}
    test = table[table["split"] == "test"].set_index(["model", "modality", "objective", "seed"])
    for seed in (0, 1):
        got = test.loc[("mmt_t", "av", "ce", seed)]
        assert (got["n"], got["top1"]) == (40, pytest.approx(100 * (34 - seed) / 40))
        assert test.loc[("mmt_t-late", "video", "ce+avc+imc", seed), "top1"] == pytest.approx(100 * (20 - seed) / 40)
    assert (table["top5"] == 100).all()  # there are only four classes


def test_clip_scores_have_a_column_for_each_seed(results):
    scores = clip_scores(by_name(results)["pretrain_mat"], "audio")
    assert list(scores) == [0, 1]
    assert scores.loc["test-000"].tolist() == [100, 100]
    assert scores.loc["test-023"].tolist() == [100, 0]  # recognised with the first seed alone
    assert scores.mean().tolist() == pytest.approx([100 * 24 / 40, 100 * 23 / 40])


def made_up_scores(clips, seeds, effect=0.0, truth=0.0, number=0):
    """Differences of two runs by clip and seed: what all clips of a seed share has a deviation of `effect`."""
    rng = np.random.default_rng(number)
    of_seed, of_clip = rng.normal(0, effect, seeds), rng.normal(0, 25, (clips, 1))
    return pd.DataFrame(truth + of_seed + of_clip + rng.normal(0, 40, (clips, seeds)))


def test_bootstrap_agrees_with_the_normal_approximation_and_repeats():
    values = pd.DataFrame(np.repeat([0.0, 100.0], [300, 500]))  # one seed: clips alone are drawn
    mean, low, high = bootstrap(values, MANY)
    half = 1.96 * values[0].std() / np.sqrt(len(values))
    assert mean == 62.5
    assert low == pytest.approx(62.5 - half, abs=0.25)
    assert high == pytest.approx(62.5 + half, abs=0.25)
    assert bootstrap(values, MANY) == (mean, low, high)
    _, narrow_low, narrow_high = bootstrap(values, Report(bootstrap=4000, confidence=0.8))
    assert low < narrow_low < narrow_high < high


def test_bootstrap_agrees_with_a_loop_that_draws_clips_and_seeds():
    values = made_up_scores(120, 3, effect=4)
    rng, means = np.random.default_rng(7), []
    for _ in range(4000):
        drawn = values.sample(len(values), replace=True, random_state=rng)
        means.append(np.mean([drawn[seed].mean() for seed in rng.choice(list(values), 3)]))
    assert bootstrap(values, MANY)[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.6)


@pytest.mark.parametrize(("seeds", "effect"), [(1, 0.0), (5, 0.0), (5, 2.0), (3, 2.0)])
def test_intervals_cover_the_truth_as_often_as_they_promise(seeds, effect):
    few = Report(bootstrap=400, confidence=0.95)
    found = [bootstrap(made_up_scores(300, seeds, effect, 5.0, number), few) for number in range(200)]
    assert np.mean([low <= 5 <= high for _, low, high in found]) >= 0.92


def test_a_seed_effect_widens_the_interval():
    widths = [np.diff(bootstrap(made_up_scores(300, 5, effect), MANY)[1:])[0] for effect in (0, 20)]
    assert widths[1] > 1.5 * widths[0]


def test_swapping_the_sides_mirrors_the_interval():
    first, second = made_up_scores(200, 3, 2, 5.0, 1), made_up_scores(200, 3, 2, 0.0, 2)
    difference, low, high = paired_difference(first, second, MANY)
    shuffled = first.sample(frac=1, random_state=3)[[2, 0, 1]]
    assert paired_difference(second, shuffled, MANY) == pytest.approx((-difference, -high, -low))


def test_a_paired_interval_is_narrower_than_an_unpaired_one_and_joins_by_clip_and_seed():
    ids = [f"c{index}" for index in range(400)]
    first = pd.DataFrame({0: np.where(np.arange(400) % 2, 100.0, 0.0)}, index=ids)
    second = first.copy()
    second.iloc[1:40:2] = 0.0  # 20 clips are lost
    shuffled = second.sample(frac=1, random_state=3)
    shuffled.loc["only-here"] = 100.0
    shuffled[1] = 0.0  # a seed that the first has not
    difference, low, high = paired_difference(first, shuffled, MANY)
    assert difference == 5.0
    assert 2 < low < 5 < high < 8
    alone = bootstrap(first, MANY)
    assert alone[2] - alone[1] > high - low
    for other in (first.rename(index=lambda name: f"other-{name}"), first.rename(columns={0: 1})):
        with pytest.raises(ReportError, match="no test clip or no seed in common"):
            paired_difference(first, other, MANY)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.1, 5.0, "holds"), (-5.0, -0.1, "does not hold"), (-1.0, 1.0, "undecided"), (0.0, 5.0, "undecided")],
)
def test_verdict(low, high, word):
    assert verdict(low, high) == word


def test_ablations_are_compared_with_their_default_and_judged_both_ways(results, params):
    table = ablations_table(results, NO_COSTS, params).set_index("row")
    assert list(table.index) == ["mat_t", "mvitv2_t", "ast_t", "mbt_t", "mmt_ce", "mmt_late"]
    assert table["default"].to_dict() == {
        "mat_t": "mmt_t",
        "mvitv2_t": "mmt_t",
        "ast_t": "mat_t",
        "mbt_t": "mmt_t",
        "mmt_ce": "mmt_t",
        "mmt_late": "mmt_t",
    }
    # right clips: row and default, mean of seeds 0 and 1, each 1 fewer with seed 1
    assert table["difference"].to_dict() == pytest.approx(
        {"mat_t": -30, "mvitv2_t": -40, "ast_t": -25, "mbt_t": -2.5, "mmt_ce": -5, "mmt_late": 10}
    )
    assert table.loc["ast_t", "verdict"] == "holds"  # the default is better
    assert table.loc["mmt_late", "verdict"] == "does not hold"
    assert table.loc["mbt_t", "verdict"] == "undecided"
    assert table.loc["mmt_ce", "top1"] == pytest.approx(100 * (34 + 33) / 80)
    assert table.loc["mmt_ce", "std"] == pytest.approx(2.5 / np.sqrt(2), rel=1e-4)


def test_headline_has_ours_and_the_baselines_in_every_reading(results, params):
    table = headline_table(results, NO_COSTS, params)
    assert list(zip(table["model"], table["modality"], table["withheld"], strict=True)) == [
        ("mat_t", "audio", False),
        ("ast_t", "audio", False),
        ("mvitv2_t", "video", False),
        ("mmt_t", "av", False),
        ("mbt_t", "av", False),
        ("mmt_t", "audio", True),
        ("mbt_t", "audio", True),
        ("mmt_t", "video", True),
        ("mbt_t", "video", True),
    ]
    assert (table["low"] < table["top1"]).all()
    assert (table["top1"] < table["high"]).all()
    assert table.loc[3, "top1"] == pytest.approx(100 * (36 + 35) / 80)


def test_per_class_accuracy_is_counted_by_hand(results):
    table = per_class_table(results, [*CLASSES, "never"]).set_index("class")
    # clip i has class i % 4; MAT's seeds recognise the first 24 and 23 clips
    assert table.loc["bell", "audio"] == pytest.approx(60)
    assert table.loc["wave", "audio"] == pytest.approx(100 * (6 + 5) / 20)
    assert table.loc["drum", "av"] == pytest.approx(90)
    assert table.loc["dog", "n"] == 10
    assert table.loc["never", "n"] == 0
    assert np.isnan(table.loc["never", "av"])


def test_confusion_counts_each_clip_of_each_seed(results):
    matrix = confusion_matrix(by_name(results)["pretrain_mvit"], "video", CLASSES)
    assert matrix.sum() == 80
    assert np.trace(matrix) == 20 + 19
    assert matrix[3, 0] == matrix[3].sum() - matrix[3, 3] > 0  # the wrong ones are taken for the next class


def test_curves_mark_the_best_epoch_on_validation(results):
    table = curves_table(results)
    assert set(table["run"]) == {"mat_t", "mvitv2_t", "mmt_t", "ast_t", "mbt_t"}  # no row of other groups
    assert table[table["kept"]]["epoch"].tolist() == [3] * 10


def test_tsne_repeats_and_copes_with_few_clips(results):
    result = by_name(results)["train_mmt"]
    points = tsne_points(result, "av", CLASSES, limit=20)
    assert len(points) == 20
    pd.testing.assert_frame_equal(points, tsne_points(result, "av", CLASSES, limit=20))
    assert len(tsne_points(result, "av", CLASSES, limit=2)) == 2


@pytest.mark.parametrize(
    ("row", "settings", "label"),
    [
        ("mmt_ce", {"objective": {}}, "mmt_t"),
        ("mmt_again", {}, "mmt_t-again"),  # equal to the default: told apart by its name
        ("mmt_weak", {"objective": {"avc": 0.01, "imc": 0.1}}, "mmt_t-weak"),
        ("mmt_t_two_layers", {"overrides": {"fusion_layers": 1}}, "mmt_t-two-layers"),
        ("short", {"epochs": 1}, "mmt_t-short"),
    ],
)
def test_labels_tell_variants_apart(row, settings, label):
    reference = {"model": "mmt_t", "epochs": 9, "lr": 0.1, "objective": {"avc": 0.1, "imc": 0.1}}
    assert model_label(row, Run(**reference | settings), Run(**reference)) == label


def test_labels_without_a_reference():
    run = Run(model="ast_t", epochs=1, lr=0.1, objective=Objective())
    assert model_label("ast_t", run, None) == "ast_t"
    assert model_label("ast_wide", run, None) == "ast_t-wide"


def test_ceilings_are_optional(tmp_path, workspace):
    assert ceilings_table(tmp_path).empty
    table = ceilings_table(workspace)
    assert table[table["split"] == "test"][["modality", "ceiling"]].to_numpy().tolist() == [
        ["audio", 80.0],
        ["video", 75.0],
    ]


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("models/train_mmt/train_mmt-seed0.json", "run stage train_mmt"),
        ("predictions/pretrain_mat/pretrain_mat-seed0.parquet", "run stage pretrain_mat"),
        ("models/ablations/ast_t/ast_t-seed0.csv", "run stage ablations for row ast_t"),
    ],
)
def test_a_missing_file_names_its_stage(tmp_path, missing, stage):
    params = made_up_params([0], {"ast_t": ROWS["ast_t"]})
    made_up_workspace(tmp_path, params)
    (tmp_path / missing).unlink()
    with pytest.raises(ReportError, match=stage) as error:
        load_results(tmp_path, params)
    assert "\n" not in str(error.value)


def test_damaged_inputs_name_their_stage(tmp_path):
    with pytest.raises(ReportError, match="run stage features"):
        read_features(tmp_path)
    params = made_up_params([0], {"ast_t": ROWS["ast_t"]})
    made_up_workspace(tmp_path, params)
    (tmp_path / "data/features/features.json").write_text("{")
    with pytest.raises(ReportError, match="run stage features again"):
        read_features(tmp_path)
    (tmp_path / "data/clips/dataset.json").write_text(json.dumps({"ceilings": [1]}))
    with pytest.raises(ReportError, match="run stage download again"):
        ceilings_table(tmp_path)
    (tmp_path / "predictions/train_mmt/train_mmt-seed0.parquet").write_bytes(b"not parquet")
    with pytest.raises(ReportError, match="run stage train_mmt again"):
        load_results(tmp_path, params)
