"""Scores, intervals and tables, against made-up predictions with known scores."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up_workspace import CLASSES, RIGHT, ROWS, made_up_params, made_up_workspace

from mmtlib.config import Objective, Run
from mmtlib.data.corruption import CONDITIONS
from mmtlib.folders import Folders
from study.report import write_report
from study.tables.clips import clips_table, load_study, scores_table
from study.tables.results import ReportError, Result, load_results, model_label, read_features
from study.tables.scores import (
    ablations_table,
    ceilings_table,
    costs_table,
    curves_table,
    headline_table,
    pairs_table,
    per_class_table,
    results_table,
    tsne_points,
)

NO_COSTS = pd.DataFrame(columns=["model", "modality", "params_m", "mmacs"])


@pytest.fixture(scope="module")
def params():
    return made_up_params([0, 1])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, params):
    return made_up_workspace(tmp_path_factory.mktemp("workspace"), params)


@pytest.fixture(scope="module")
def study(workspace, params):
    return load_study(workspace, params)


def by_name(study):
    return {result.name: result for result in study.results}


def test_every_run_seed_split_and_reading_has_its_row(study):
    table = results_table(study)
    assert list(table) == ["dataset", "model", "modality", "objective", "seed", "fold", "split", "n", "top1", "top5"]
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


def test_clip_scores_have_a_column_for_each_seed(study):
    scores = study.rights(by_name(study)["pretrain_mat"])
    assert list(scores) == [0, 1]
    assert scores.loc["test-000"].tolist() == [100, 100]
    assert scores.loc["test-023"].tolist() == [100, 0]  # recognised with the first seed alone
    assert scores.mean().tolist() == pytest.approx([100 * 24 / 40, 100 * 23 / 40])


def test_ablations_are_compared_with_their_default_and_judged_both_ways(study):
    table = ablations_table(study, NO_COSTS).set_index("row")
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


def test_headline_has_ours_and_the_baselines_in_every_reading(study):
    table = headline_table(study, NO_COSTS)
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


def test_per_class_accuracy_is_counted_by_hand(study):
    more = replace(study, features=study.features | {"classes": [*CLASSES, "never"]})
    table = per_class_table(more).set_index("class")
    # clip i has class i % 4; MAT's seeds recognise the first 24 and 23 clips
    assert table.loc["bell", "audio"] == pytest.approx(60)
    assert table.loc["wave", "audio"] == pytest.approx(100 * (6 + 5) / 20)
    assert table.loc["drum", "av"] == pytest.approx(90)
    assert table.loc["dog", "n"] == 10
    assert table.loc["never", "n"] == 0
    assert np.isnan(table.loc["never", "av"])


def test_each_clip_has_its_row_and_is_scored_once(study):
    clips = study.clips
    assert not clips.duplicated(["run", "seed", "split", "condition", "modality", "clip"]).any()
    assert set(clips["split"]) == {"val", "test"}
    assert set(clips["condition"]) == {"", *CONDITIONS}
    test = study.on_test(by_name(study)["pretrain_mvit"])
    assert len(test) == 80
    assert test["right"].sum() == 20 + 19
    assert (test["right"] == (test["label"] == test["guess"])).all()
    wrong = test[~test["right"]]
    assert (wrong["guess"] == (wrong["label"] + 1) % 4).all()  # they are taken for the next class
    assert test["confidence"].between(0.25, 1).all()


def test_with_several_heads_each_is_scored_and_right_means_all():
    logits = np.array([[5.0, 0, 0, 5, 0], [5, 0, 0, 0, 5], [0, 0, 5, 0, 5]])  # heads of 3 and 2 classes
    columns = {
        "clip_id": ["a", "b", "c"],
        "split": "test",
        "fold": None,
        "modality": "av",
        "label_index": [0, 0, 5],
        "embedding": None,
    }
    predictions = pd.DataFrame(columns | {"logits": list(logits), "heads": json.dumps({"verb": 3, "noun": 2})})
    run = Run(model="mmt_t", epochs=1, lr=0.1)
    clips = clips_table([Result("train_mmt", None, "mmt_t", run, {0: predictions}, {})])
    assert clips["verb_top1"].tolist() == [True, True, True]
    assert clips["noun_top1"].tolist() == [True, False, True]
    assert clips["right"].tolist() == [True, False, True]
    assert clips["label"].tolist() == clips["guess"].tolist() == [0, 0, 2]  # of the first head
    table = scores_table(clips)
    assert table.loc[0, ["n", "top1", "verb_top1", "noun_top1"]].tolist() == pytest.approx([3, 200 / 3, 100, 200 / 3])


def test_models_without_a_clip_in_common_are_not_compared(study):
    first = study.rights(by_name(study)["train_mmt"])
    with pytest.raises(ReportError, match="run the training stages again on one data set"):
        study.difference(first, first.rename(index=lambda name: f"other-{name}"))


def test_a_run_without_test_clips_names_its_stage(study):
    result = by_name(study)["mmt_late"]
    only_val = {seed: table[table["split"] == "val"] for seed, table in result.predictions.items()}
    with pytest.raises(ReportError, match="run stage ablations for row mmt_late again"):
        replace(study, results=[replace(result, predictions=only_val)]).rights(replace(result, predictions=only_val))


def test_curves_mark_the_best_epoch_on_validation(study):
    costs = costs_table(study)
    table = curves_table(study, costs)
    assert set(table["run"]) == {"mat_t", "mvitv2_t", "mmt_t", "ast_t", "mbt_t"}  # no row of other groups
    assert table[table["kept"]]["epoch"].tolist() == [3] * 10
    mmacs, epochs = costs.set_index("model")["mmacs"], {name: run.epochs for name, run in study.params.runs.items()}
    spent = {
        row.run: row.gmacs for row in table[table["epoch"] == 1].itertuples()
    }  # after one epoch, three passes each
    for model in ("mat_t", "ast_t", "mbt_t"):
        assert spent[model] == pytest.approx(3 * mmacs[model] / 1000)
    encoders = sum(
        mmacs[model] * epochs[name] for name, model in (("pretrain_mat", "mat_t"), ("pretrain_mvit", "mvitv2_t"))
    )
    assert spent["mmt_t"] == pytest.approx(3 * (mmacs["mmt_t"] + encoders) / 1000)


def test_tsne_repeats_and_copes_with_few_clips(study):
    result = by_name(study)["train_mmt"]
    points = tsne_points(study, result, limit=20)
    assert len(points) == 20
    pd.testing.assert_frame_equal(points, tsne_points(study, result, limit=20))
    assert len(tsne_points(study, result, limit=2)) == 2


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


def test_a_start_from_other_data_is_in_the_label_that_of_an_encoder_too(tmp_path):
    params = made_up_params([0])
    started = params.pretrain_mat.model_copy(update={"init": "weights/mvitv2_tiny.safetensors"})
    params = params.model_copy(update={"pretrain_mat": started})
    folders = made_up_workspace(tmp_path, params)
    labels = {result.name: result.label for result in load_results(folders, params)}
    assert labels == {
        "pretrain_mat": "mat_t+mvitv2_tiny",
        "pretrain_mvit": "mvitv2_t",
        "train_mmt": "mmt_t+mvitv2_tiny",
        "ast_t": "ast_t",
        "mbt_t": "mbt_t",
        "mmt_ce": "mmt_t+mvitv2_tiny",
        "mmt_late": "mmt_t-late+mvitv2_tiny",
    }
    text = write_report(folders, params)["readme"].read_text()
    assert (
        "mmt_t+mvitv2_tiny (audio-visual, 90.0 %) beats the better single modality, mat_t+mvitv2_tiny (audio, 60.0 %)"
        in text
    )
    marked = [line for line in text.splitlines() if "starts from weights that were trained on other data" in line]
    assert [line.split()[1] for line in marked] == ["mat_t+mvitv2_tiny", "mmt_t+mvitv2_tiny", "mmt_t-late+mvitv2_tiny"]


def test_pairs_are_told_by_their_own_two_logits(study):
    assert pairs_table(study).empty
    names, run = study.features["classes"], study.defaults["av"]
    told = replace(study, features=study.features | {"pairs": [names[:2], names[2:4]]})
    table = pairs_table(told)
    assert set(table["row"]) == {result.name for result in study.reported}
    rows = table[table["row"] == run.name].set_index("pair")
    counted = {}
    for first, second in ((0, 1), (2, 3)):
        own = []
        for predictions in run.predictions.values():
            test = predictions[(predictions["split"] == "test") & (predictions["modality"] == "av")]
            for label, logits in zip(test["label"], test["logits"], strict=True):
                if label in (names[first], names[second]):
                    own.append((logits[first] > logits[second]) == (label == names[first]))
        counted[f"{names[first]} / {names[second]}"] = own
    for pair, own in counted.items():
        assert rows.loc[pair, "right"] == pytest.approx(100 * np.mean(own))
        assert rows.loc[pair, "n"] == len(own) / len(run.predictions)
    assert rows.loc["all", "right"] == pytest.approx(100 * np.mean([*itertools.chain(*counted.values())]))
    assert rows.loc["all", "low"] <= rows.loc["all", "right"] <= rows.loc["all", "high"]


def test_labels_without_a_reference():
    run = Run(model="ast_t", epochs=1, lr=0.1, objective=Objective())
    assert model_label("ast_t", run, None) == "ast_t"
    assert model_label("ast_wide", run, None) == "ast_t-wide"


def test_ceilings_are_optional(study):
    assert ceilings_table(replace(study, features={})).empty
    table = ceilings_table(study)
    assert table[table["split"] == "test"][["modality", "ceiling"]].to_numpy().tolist() == [
        ["audio", 80.0],
        ["video", 75.0],
    ]


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("models/{}/train_mmt/train_mmt-seed0.json", "run stage train_mmt"),
        ("predictions/{}/pretrain_mat/pretrain_mat-seed0.parquet", "run stage pretrain_mat"),
        ("models/{}/ablations/ast_t/ast_t-seed0.csv", "run stage ablations for row ast_t"),
    ],
)
def test_a_missing_file_names_its_stage(tmp_path, missing, stage):
    params = made_up_params([0], {"ast_t": ROWS["ast_t"]})
    folders = made_up_workspace(tmp_path, params)
    (tmp_path / missing.format(params.study)).unlink()
    with pytest.raises(ReportError, match=stage) as error:
        load_results(folders, params)
    assert "\n" not in str(error.value)


def test_damaged_inputs_name_their_stage(tmp_path):
    params = made_up_params([0], {"ast_t": ROWS["ast_t"]})
    with pytest.raises(ReportError, match="run stage features"):
        read_features(Folders(tmp_path, params.study))
    folders = made_up_workspace(tmp_path, params)
    (folders.features / "features.json").write_text("{")
    with pytest.raises(ReportError, match="run stage features again"):
        read_features(folders)
    folders.predictions("train_mmt", 0).write_bytes(b"not parquet")
    with pytest.raises(ReportError, match="run stage train_mmt"):
        load_results(folders, params)
