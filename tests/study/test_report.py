"""The written report: complete, right about which model is better, and the same on every run."""

import hashlib
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_workspace import ROWS, made_up_params, made_up_workspace
from matplotlib.image import imread

from mmtlib.config import Params
from mmtlib.folders import Folders
from mmtlib.models import build_model
from study.report import about_versions, build_report, write_report
from study.tables.results import ReportError
from study.timing import count_macs, count_parameters

TABLES = {"results", "headline", "ablations", "per_class", "coverage", "ceilings", "costs"}
TABLES |= {"calibration", "retrieval", "clustering", "claims", "robustness"}
FIGURES = {"headline", "learning_curves", "confusion", "per_class", "tsne", "ablations", "calibration", "claims"}
FIGURES |= {"robustness"}


@pytest.fixture(scope="module")
def params():
    return made_up_params([0])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, params):
    return made_up_workspace(tmp_path_factory.mktemp("workspace"), params)


@pytest.fixture(scope="module")
def written(workspace, params):
    return write_report(workspace, params)


def test_all_files_are_there_and_the_text_shows_them(written, workspace):
    assert set(written["tables"]) == TABLES
    assert set(written["figures"]) == FIGURES
    text = written["readme"].read_text()
    assert "\n\n- 2 clips of val and test are in train, too\n\n" in text
    for name, path in written["tables"].items():
        assert path == workspace.report / f"tables/{name}.csv"
        assert not pd.read_csv(path).empty
        assert f"(tables/{name}.csv)" in text
    for name, path in written["figures"].items():
        assert path == workspace.report / f"figures/{name}.png"
        assert f"(figures/{name}.png)" in text
    left = {path.name for path in workspace.report.glob("*/*")}
    assert left == {f"{name}.csv" for name in TABLES} | {f"{name}.png" for name in FIGURES}


def test_figures_show_something(written):
    for path in written["figures"].values():
        picture = imread(path)
        assert picture.shape[1] == 1000
        assert picture[..., :3].std() > 0.02, path
        assert b"matplotlib" not in path.read_bytes().lower()[:400]  # no version in the file


def test_costs_are_of_the_models_that_were_trained(written):
    costs = pd.read_csv(written["tables"]["costs"]).set_index("model")
    assert set(costs.index) == {"mat_t", "mvitv2_t", "mmt_t", "ast_t", "mbt_t", "mmt_t-late"}
    mat = build_model("mat_t", 4)
    assert costs.loc["mat_t", "params_m"] == pytest.approx(count_parameters(mat) / 1e6, abs=1e-4)
    assert costs.loc["mat_t", "mmacs"] == pytest.approx(count_macs(mat, torch.zeros(1, 1, 198, 128)) / 1e6)
    assert costs.loc["mmt_t", "mmacs"] > costs.loc["mat_t", "mmacs"] + costs.loc["mvitv2_t", "mmacs"]
    assert costs.loc["mmt_t-late", "params_m"] < costs.loc["mmt_t", "params_m"]


def test_the_answer_follows_from_the_numbers(written):
    text = written["readme"].read_text()
    assert "mmt_t (audio-visual, 90.0 %) beats the better single modality, mat_t (audio, 60.0 %): +30.0" in text
    assert "mat_t (audio, 60.0 %) beats its baseline ast_t (audio, 35.0 %): +25.0 points" in text
    assert (
        "mmt_t (audio-visual, 90.0 %) does not differ measurably from its baseline mbt_t (audio-visual, 87.5 %): +2.5"
        in text
    )
    assert (
        "On 40 of the 40 test clips that made-up lists, in 4 classes, by top-1 (difference with its 95 % interval)"
        in text
    )
    assert "One seed (0)." in text
    assert "highest validation top-1" in text
    assert "a claim that compares them is measured at the rates that the parameters give" in text
    top1 = pd.read_csv(written["tables"]["headline"]).set_index(["model", "modality"])["top1"]
    assert top1["mmt_t", "av"] == 90.0
    assert top1["mmt_t", "video"] == 47.5


def test_the_answer_turns_when_the_numbers_do(tmp_path):
    params = made_up_params([0, 3], {"ast_t": ROWS["ast_t"]})
    right = {
        "pretrain_mat": {"audio": 12},
        "pretrain_mvit": {"video": 39},
        "train_mmt": {"av": 14, "audio": 9, "video": 9},
        "ast_t": {"audio": 34},
    }
    text = build_report(made_up_workspace(tmp_path, params, right), params).text
    assert "does not beat the better single modality, mvitv2_t (video" in text
    assert "does not beat its baseline ast_t" in text
    assert "2 seeds (0, 3); scores are means over those that a row has" in text
    assert "std over seeds" in text
    assert "### Fusion" not in text  # no row of that group


def test_text_has_ceilings_coverage_parameters_and_versions(written, workspace, params):
    text = written["readme"].read_text()
    assert "audio alone is 20.0 points below (60.0 of 80.0)" in text
    assert "| test    | 40       | 40     |" in text
    assert "f" * 64 in text
    for name, value in about_versions().items():
        assert name in text
        assert value in text or name == "commit"
    block = text.split("```yaml\n")[1].split("```")[0]
    assert Params.model_validate(_yaml(block)) == params
    assert "Trained with other values" not in text


def test_runs_of_other_parameters_are_named(workspace, params):
    longer = params.model_copy(update={"train_mmt": params.train_mmt.model_copy(update={"epochs": 7})})
    assert "Trained with other values than these: train_mmt." in build_report(workspace, longer).text


def test_a_second_run_writes_the_same_bytes(written, workspace, params):
    def state():
        files = sorted(path for path in workspace.report.rglob("*") if path.is_file())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    for name in ("tables/pairs.csv", "figures/data_efficiency.png"):
        (workspace.report / name).write_text("of rows that there are no more")
    write_report(workspace, params)
    assert state() == before
    assert len(before) == 1 + len(TABLES) + len(FIGURES)


def test_one_clip_a_class_is_enough(tmp_path):
    params = made_up_params([0], {"mbt_t": ROWS["mbt_t"]})
    right = {
        "pretrain_mat": {"audio": 0},
        "pretrain_mvit": {"video": 1},
        "train_mmt": {"av": 4, "audio": 0, "video": 4},
        "mbt_t": {"av": 0, "audio": 0, "video": 0},
    }
    folders = made_up_workspace(tmp_path, params, right, {"train": 2, "val": 1, "test": 1})
    features = json.loads((folders.features / "features.json").read_text())
    features |= {"ceilings": {}, "pairs": [features["classes"][:2]]}
    (folders.features / "features.json").write_text(json.dumps(features))
    out = write_report(folders, params)
    top1 = pd.read_csv(out["tables"]["headline"]).set_index(["model", "modality"])["top1"]
    assert top1["mmt_t", "av"] == 100
    text = out["readme"].read_text()
    assert "The best top-1 that one modality alone can reach" not in text  # the set states no ceilings
    told = text.split("### Pairs that need both modalities")[1].split("## Claims")[0]
    assert re.search(r"\| train_mmt +\| ce\+avc\+imc +\| 100.0 \[100.0, 100.0\] +\| 100.0", told)
    assert np.isclose(pd.read_csv(out["tables"]["results"])["n"], 4).all()


def test_nothing_is_written_when_a_stage_has_not_run(tmp_path, params):
    folders = Folders(tmp_path, params.study)
    with pytest.raises(ReportError, match="run stage features"):
        write_report(folders, params)
    assert not folders.report.exists()


@pytest.mark.parametrize(("study", "written"), [("freedoom", 1), ("smoke", 0)])
def test_the_claims_over_all_studies_follow_a_committed_one(tmp_path, params, monkeypatch, study, written):
    indexed = []
    monkeypatch.setattr("study.report.ROOT", tmp_path)
    monkeypatch.setattr("study.report.write_index", indexed.append)
    params = params.model_copy(update={"study": study})
    write_report(made_up_workspace(tmp_path, params), params)
    assert indexed == [tmp_path] * written


def _yaml(text: str) -> dict:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(io.StringIO(text))
