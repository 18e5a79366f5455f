"""Scores, intervals and tables, against made-up predictions with known scores."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up_workspace import CLASSES, RIGHT, ROWS, made_up_params, made_up_workspace

from mmtlib.params import Objective, Run
from mmtlib.results import (
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
    verdict,
)

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
    assert len(table) == readings * 2 * 2
    assert not table.duplicated(["model", "modality", "objective", "seed", "split"]).any()
    assert set(table["model"]) == {"mat_t", "mvitv2_t", "mmt_t", "ast_t", "mbt_t", "mmt_t-late"}
    assert set(table["objective"]) == {"ce", "ce+avc+imc"}
    test = table[table["split"] == "test"].set_index(["model", "modality", "objective", "seed"])
    for seed in (0, 1):
        got = test.loc[("mmt_t", "av", "ce", seed)]
        assert (got["n"], got["top1"]) == (40, pytest.approx(100 * (34 - seed) / 40))
        assert test.loc[("mmt_t-late", "video", "ce+avc+imc", seed), "top1"] == pytest.approx(100 * (20 - seed) / 40)
    assert (table["top5"] == 100).all()  # there are only four classes


def test_clip_scores_average_the_seeds(results):
    scores = clip_scores(by_name(results)["pretrain_mat"], "audio")
    assert scores["test-000"] == 100  # recognised by both seeds
    assert scores["test-023"] == 50  # by the first alone
    assert scores["test-024"] == 0
    assert scores.mean() == pytest.approx(100 * (24 + 23) / 80)


def test_bootstrap_agrees_with_the_normal_approximation_and_repeats():
    values = np.repeat([0.0, 100.0], [300, 500])
    mean, low, high = bootstrap(values, 4000, 0.95)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert mean == 62.5
    assert low == pytest.approx(62.5 - half, abs=0.25)
    assert high == pytest.approx(62.5 + half, abs=0.25)
    assert bootstrap(values, 4000, 0.95) == (mean, low, high)
    _, narrow_low, narrow_high = bootstrap(values, 4000, 0.8)
    assert low < narrow_low < narrow_high < high


def test_a_paired_interval_is_narrower_than_an_unpaired_one_and_joins_by_clip():
    ids = [f"c{index}" for index in range(400)]
    first = pd.Series(np.where(np.arange(400) % 2, 100.0, 0.0), index=ids)
    second = first.copy()
    second.iloc[1:40:2] = 0.0  # 20 clips are lost
    shuffled = second.sample(frac=1, random_state=3)
    shuffled["only-here"] = 100.0
    difference, low, high = paired_difference(first, shuffled, 1000, 0.95)
    assert difference == 5.0
    assert 2 < low < 5 < high < 8
    alone = bootstrap(first.to_numpy(), 1000, 0.95)
    assert alone[2] - alone[1] > high - low
    with pytest.raises(ReportError, match="no test clip in common"):
        paired_difference(first, pd.Series([1.0], index=["other"]), 100, 0.95)


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
