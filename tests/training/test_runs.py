"""`mmt runs`: which runs of a parameter file are kept, and what sets the others apart."""

import shutil

import pytest
from toy_features import make_params, make_recipe, make_run, write_features

from mmtlib.config import ParamsError
from mmtlib.data.dataset import DatasetError, FeatureDataset
from mmtlib.folders import Folders
from mmtlib.training.experiment import keep, kept, made_with, planned
from mmtlib.training.study import list_runs

KEPT = make_recipe(kept="kept")


@pytest.fixture
def folders(tmp_path):
    """A study of which every run but one, the second seed of train_mmt, is kept."""
    folders, params = Folders(tmp_path, "toy"), make_params(KEPT, seeds=(0, 1))
    write_features(folders.features)
    for name, (seed, _), parts in planned(params, FeatureDataset(folders.features, "train").identity):
        if (name, seed) != ("train_mmt", 1):
            keep(kept(tmp_path / "kept", parts), b"a table", {"parts": parts, "history": "epoch\n"} | made_with())
    return folders


def test_a_line_for_each_run_says_where_it_is_kept_or_what_is_kept_instead(folders, capsys):
    assert list_runs(make_params(KEPT, seeds=(0, 1)), folders) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    told = dict(line.split(" | ") for line in lines)
    assert len(told) == 8
    missing = told.pop("train_mmt seed 1")
    assert missing.startswith("not kept: ")
    assert "seed: 0 is kept, 1 is wanted" in missing
    assert {(folders.root / "kept" / name).is_file() for name in told.values()} == {True}
    assert last == "7 of 8 runs are kept; 0 files are of other runs."
    assert list_runs(make_params(KEPT), folders) == 0
    assert capsys.readouterr().out.endswith("4 of 4 runs are kept; 3 files are of other runs.\n")


def test_a_run_with_another_setting_is_told_apart_by_it(folders, capsys):
    assert list_runs(make_params(KEPT, pretrain_mat=make_run("mat_t", epochs=1, lr=0.5)), folders) == 1
    told = dict(line.split(" | ") for line in capsys.readouterr().out.splitlines()[:-1])
    assert told["pretrain_mat seed 0"] == "not kept: run.lr: 0.003 is kept, 0.5 is wanted"
    assert told["train_mmt seed 0"].startswith("not kept: encoders.audio: ")
    assert told["pretrain_mvit seed 0"].endswith(".parquet")


def test_without_features_the_kept_runs_say_what_the_data_is(folders, capsys):
    shutil.rmtree(folders.features)
    assert list_runs(make_params(KEPT), folders) == 0
    shutil.rmtree(folders.root / "kept")
    with pytest.raises(DatasetError, match="make the features first"):
        list_runs(make_params(KEPT), folders)


def test_a_study_that_keeps_no_runs_is_told_so(folders):
    with pytest.raises(ParamsError, match=r"^training\.kept is null, .* name a folder"):
        list_runs(make_params(), folders)
