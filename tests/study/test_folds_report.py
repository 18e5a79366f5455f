"""The report of a set of folds, and of one without video."""

import pandas as pd
import pytest
from made_up_workspace import ROWS, made_up_params, made_up_workspace

from mmtlib.config import Params
from study.report import build_report, report_text
from study.run import compose_study
from study.tables.clips import load_study
from study.tables.scores import curves_table

RIGHT = {"pretrain_mat": {"audio": 30}, "ast_t": {"audio": 20}, "resnet18_audio": {"audio": 34}}
AUDIO = {
    "ast_t": ROWS["ast_t"],
    "resnet18_audio": {"group": "baseline", "model": "resnet18_audio", "epochs": 2, "lr": 1e-3},
    "mat_lr": {"group": "search", "model": "mat_t", "epochs": 2, "lr": 2e-3, "folds": [1]},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    values = made_up_params([0, 1]).model_dump() | {"folds": [1, 2, 5], "pretrain_mvit": None, "train_mmt": None}
    params = Params.model_validate(values | {"ablations": AUDIO})
    root = tmp_path_factory.mktemp("folds")
    folders = made_up_workspace(root, params, RIGHT | {"mat_lr": {"audio": 25}})
    return folders, params, build_report(folders, params)


def test_scores_are_of_the_pooled_test_clips_of_all_folds(study):
    head = study[2].tables["headline"].set_index("model")
    assert list(head.index) == ["mat_t", "ast_t", "resnet18_audio"]
    assert (head["n"] == 3 * 40).all()
    assert head["top1"].tolist() == pytest.approx([100 * (rights - 0.5) / 40 for rights in (30, 20, 34)])
    results = study[2].tables["results"]
    assert set(results["fold"]) == {1, 2, 5}
    assert len(results[(results["model"] == "mat_t") & (results["split"] == "test")]) == 2 * 3 + 0


def test_the_claims_that_audio_can_test_are_tested_and_the_others_are_not_run(study):
    claims = study[2].tables["claims"]
    assert set(claims["study"]) == {"smoke"}
    assert claims.loc["mat_ast_operations", "measured"] == pytest.approx(25.0)
    assert claims.loc["mat_ast_operations", "n_seeds"] == 2
    assert claims.loc["mmt_mbt_operations", "n_seeds"] == 0


def test_the_text_says_the_folds_the_third_peer_and_nothing_of_video(study):
    text = study[2].text
    assert "each tested once in 3 folds" in text
    assert "The third peer is a ResNet-18: on audio 83.8 % (mat_t 73.8 %)." in text
    for word in ("Retrieval across the modalities", "audio-visual fusion", "mmt_t"):
        assert word not in text
    assert "lr 0.002" in text
    again, tables = load_study(*study[:2]), study[2].tables
    assert report_text(again, tables, curves_table(again, tables["costs"])) == text


def test_every_fold_is_its_own_model_where_embeddings_are_compared(study):
    clustering = study[2].tables["clustering"].set_index("model")
    assert clustering.loc["mat_t", "n"] == 3 * 40
    assert clustering.loc["ast_t", "default"] == "mat_t"


def test_the_pipeline_of_a_study_of_audio_has_no_stage_of_video(tmp_path):
    (tmp_path / "params").mkdir()
    from mmtlib.config import ROOT

    for name in ("params.yaml", "params/esc10.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    text = compose_study("esc10", tmp_path).read_text()
    for absent in ("pretrain_mvit:", "train_mmt:", "models/${study}/pretrain_mvit"):
        assert absent not in text.replace("params:", "")
    assert "pretrain_mat:" in text


def test_results_csv_has_a_row_a_fold_and_seed(study):
    table = study[2].tables["results"]
    test = table[(table["split"] == "test") & (table["model"] == "ast_t")]
    assert sorted(zip(test["seed"], test["fold"], strict=True)) == [(s, f) for s in (0, 1) for f in (1, 2, 5)]
    assert isinstance(table, pd.DataFrame)
