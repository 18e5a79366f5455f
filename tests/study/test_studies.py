"""Corrupted clips, fewer training clips and learning rates: tables against other code, and what the report says."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up_workspace import RIGHT, ROWS, made_up_params, made_up_workspace

from mmtlib.config import Objective
from mmtlib.data.corruption import CONDITIONS
from study.figures.analysis import data_efficiency
from study.report import build_report
from study.tables import scores
from study.tables import studies as study_tables
from study.tables.clips import load_study
from study.tables.results import ReportError
from study.tables.studies import data_table, robustness_table, search_table

MBT = ROWS["mbt_t"] | {"robustness": True}
ALL = ROWS | {
    "mbt_t": MBT,
    "mmt_half": {"group": "data", "model": "mmt_t", "epochs": 1, "lr": 5e-4, "train_share": 0.5, "seeds": [0]},
    "mbt_half": MBT | {"group": "data", "train_share": 0.5, "seeds": [0], "robustness": False},
    "ast_lr_a": ROWS["ast_t"] | {"group": "search", "lr": 1e-4, "seeds": [0]},
    "ast_lr_b": ROWS["ast_t"] | {"group": "search", "lr": 1e-2, "seeds": [0]},
}
ALL_RIGHT = RIGHT | {
    "mmt_half": {"av": 30, "audio": 6, "video": 5},
    "mbt_half": {"av": 20, "audio": 6, "video": 5},
    "ast_lr_a": {"audio": 14},
    "ast_lr_b": {"audio": 14},
}


@pytest.fixture(scope="module")
def params():
    return made_up_params([0, 1], ALL)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, params):
    return made_up_workspace(tmp_path_factory.mktemp("workspace"), params, ALL_RIGHT)


@pytest.fixture(scope="module")
def study(workspace, params):
    return load_study(workspace, params)


def share_right(workspace, run, split, modality, seeds):
    """Percent of right guesses, a number a seed, straight from the files."""
    found = []
    for seed in seeds:
        table = pd.read_parquet(workspace.predictions(run, seed))
        table = table[table["split"].eq(split) & table["modality"].eq(modality)]
        found.append(100 * np.mean(np.stack(table["logits"]).argmax(axis=1) == table["label_index"]))
    return np.array(found)


def test_each_corruption_is_scored_for_each_model_that_met_it(study, workspace):
    table = robustness_table(study)
    assert set(table["row"]) == {"train_mmt", "mbt_t"}
    assert len(table) == 2 * (len(CONDITIONS) + 3)  # clean, and each sense withheld
    for row in ("train_mmt", "mbt_t"):
        found = table[table["row"] == row].set_index(["corruption", "level"])["top1"]
        for level in (20, 10, 0, -10):
            wanted = share_right(workspace, row, f"test: picture noise {level} dB", "av", [0, 1])
            assert found["video noise", level] == pytest.approx(wanted.mean())
        late = share_right(workspace, row, "test: sound late 0.25 s", "av", [0, 1])
        line = table[(table["row"] == row) & (table["level"] == 0.25)].squeeze()
        assert (line["corruption"], line["unit"], line["n_seeds"]) == ("audio late", "s", 2)
        assert [line["top1"], line["std"]] == pytest.approx([late.mean(), late.std(ddof=1)])
        whole = table[(table["row"] == row) & table["level"].isna()].set_index("corruption")
        wanted = share_right(workspace, row, "test", "audio", [0, 1]).mean()
        assert whole.loc["no video", "top1"] == pytest.approx(wanted)
        clean = share_right(workspace, row, "test", "av", [0, 1]).mean()
        assert whole.loc["no video", "loss"] == pytest.approx(clean - wanted)
        assert whole.loc["none", "loss"] == 0
        assert "frozen" in " ".join(whole.index)


def test_fewer_clips_are_compared_on_the_seeds_that_both_have(study, workspace):
    table = data_table(study).set_index(["model", "share"])
    assert list(table.index) == [("mbt_t", 0.5), ("mbt_t", 1.0), ("mmt_t", 0.5), ("mmt_t", 1.0)]
    assert set(table["n_seeds"]) == {1}
    whole = share_right(workspace, "train_mmt", "test", "av", [0])[0]
    assert table.loc[("mmt_t", 1.0), "top1"] == pytest.approx(whole)
    assert table.loc[("mmt_t", 0.5), "top1"] == pytest.approx(75.0)
    assert list(table["ours"]) == [False, False, True, True]


def changed(study, name, **fields):
    """The study with a run's result changed."""
    return replace(study, results=[replace(r, **fields) if r.name == name else r for r in study.results])


def test_fewer_clips_are_compared_on_the_clips_that_both_have(study):
    half, whole = (next(r for r in study.results if r.name == name) for name in ("mmt_half", "train_mmt"))
    ids = sorted(set(study.on_test(whole)["clip"]))[:10]
    predictions = {seed: table[table["clip_id"].isin(ids)] for seed, table in half.predictions.items()}
    found = data_table(changed(study, "mmt_half", predictions=predictions)).set_index(["model", "share"])["top1"]
    for name, share in (("mmt_half", 0.5), ("train_mmt", 1.0)):
        clips = study.on_test(next(r for r in study.results if r.name == name)).query("seed == 0 and clip in @ids")
        assert found["mmt_t", share] == pytest.approx(100 * clips["right"].mean())


def test_tries_that_differ_in_more_than_the_rate_are_told_apart(study):
    run = next(r.trained for r in study.results if r.name == "ast_lr_a")
    other = run.model_copy(
        update={"lr": 1e-3, "objective": Objective(imc=0.1), "overrides": run.overrides | {"dim": 32}}
    )
    table = search_table(changed(study, "ast_lr_a", trained=other))
    assert set(table["setting"]) == {"lr 0.001", "lr 0.01", "lr 0.001, objective.imc 0.1, dim 32"}


def test_the_search_says_which_rate_was_best_and_which_was_taken(study):
    table = search_table(study)
    assert table["lr"].tolist() == [1e-4, 1e-3, 1e-2]
    assert table["taken"].tolist() == [False, True, False]
    assert table["best"].tolist() == [False, False, True]  # made-up curves rise with the place of the row
    assert set(table["n_seeds"]) == {1}


def test_the_report_says_where_models_had_unequal_tries(workspace, params, monkeypatch):
    def one_more(study):
        found = search_table(study)
        return pd.concat([found, found.iloc[:1].assign(model="mat_t")])

    monkeypatch.setattr(study_tables, "search_table", one_more)
    text = build_report(workspace, params).text
    assert "Not every model had as many tries in this table: ast_t 3, mat_t 1. The test split played no part;" in text


def test_a_row_whose_model_no_other_run_has_any_more_is_said_in_a_sentence(study):
    run = next(r.trained for r in study.results if r.name == "ast_lr_a").model_copy(update={"model": "vit_audio_t"})
    with pytest.raises(ReportError, match=r"^rows of search are of vit_audio_t, the runs beside them of another "):
        search_table(changed(study, "ast_lr_a", trained=run))


def test_runs_that_were_best_at_their_last_epoch_are_counted(workspace, params, monkeypatch):
    table = scores.curves_table

    def late(study, costs):
        curves = table(study, costs)
        last = curves["epoch"] == curves["epoch"].max()
        return curves.assign(kept=np.where(curves["run"].eq("mat_t") & curves["seed"].eq(1), last, curves["kept"]))

    monkeypatch.setattr(scores, "curves_table", late)
    assert "still improving at the last epoch: mat_t in 1 of 2 runs." in build_report(workspace, params).text


def test_the_report_tells_them(workspace, params):
    text = build_report(workspace, params).text
    assert (
        "Tried once with a higher score than what was taken: ast_t. The best try has the lowest or highest rate that "
        "was tried, so that another rate may be better still: ast_t" in text
    )
    assert "Every model had the same number of tries in this table. The test split played no part;" in text
    assert "| model   | lr 0.0001" in text
    assert "(taken)" in text
    limits = text.split("## Limits")[1].split("## Tables")[0]
    assert "still improving at the last epoch: none." in limits  # made-up curves are best in the third of four epochs
    rows = "pretrain_mat, pretrain_mvit, train_mmt, ast_t, mbt_t, mmt_ce, mmt_late"
    assert f"Rows with fewer than three seeds: {rows}." in limits
    few = text.split("so that another may say otherwise: ")[1].split("\n")[0]
    assert few.startswith("MAT beats AST at equal operations, MMT beats MBT at equal operations, ")  # of two seeds
    assert "## Robustness" in text
    assert "## Fewer training clips" in text
    assert text.index("## Method") < text.index("## Results") < text.index("## Claims") < text.index("## Robustness")
    assert "No search of this study chose the learning rates of mat_t, ast_t, mvitv2_t, mmt_t, mbt_t: a claim" in text


def test_nothing_is_claimed_of_what_was_not_run(tmp_path):
    params = made_up_params([0])
    quiet = params.train_mmt.model_copy(update={"robustness": False})
    params = params.model_copy(update={"train_mmt": quiet})
    workspace = made_up_workspace(tmp_path, params)
    report = build_report(workspace, params)
    for name in ("robustness", "data_efficiency", "search"):
        assert report.tables[name].empty
    for heading in ("## Robustness", "## Fewer training clips", "### How the learning rates"):
        assert heading not in report.text
    assert "No search of this study chose the learning rates of mat_t, " in report.text
    assert not {"robustness", "data_efficiency"} & report.figures.keys()


def test_each_share_has_a_tick_whichever_model_has_it():
    shares = {"mat_t": (0.1, 1.0), "ast_t": (0.25, 1.0)}
    rows = [(name, "audio", name == "mat_t", share, 1, 50.0, None) for name, own in shares.items() for share in own]
    table = pd.DataFrame(rows, columns=["model", "modality", "ours", "share", "n_seeds", "top1", "std"])
    (axes,) = data_efficiency(table).axes
    assert {label.get_text() for label in axes.get_xticklabels()} == {"10 %", "25 %", "100 %"}
