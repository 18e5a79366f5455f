"""All runs of a study side by side, on two workers: the runs that one process trains, whatever happens to a worker."""

import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest
from toy_features import make_params, write_features

from mmtlib.cluster import connect
from mmtlib.config import Params, ParamsError
from mmtlib.folders import Folders
from mmtlib.training import study
from mmtlib.training.stage import train_runs
from mmtlib.training.study import train_all


@pytest.fixture(scope="module")
def params() -> Params:
    """Three stages and a baseline, an epoch each."""
    return make_params()


def leave(params, root) -> dict[str, pd.DataFrame]:
    """What the stages leave; they train nothing that is not finished."""
    folders = Folders(root, params.study)
    return {name: pd.read_parquet(train_runs(name, params, folders)[0].predictions) for name in params.runs}


@pytest.fixture(scope="module")
def alone(params, tmp_path_factory):
    """The predictions of runs that were trained one after the other, in one process."""
    root = tmp_path_factory.mktemp("alone")
    write_features(Folders(root, params.study).features)
    return leave(params, root)


def test_two_workers_train_what_one_process_does_and_one_that_is_killed_loses_no_run(params, alone, tmp_path, capsys):
    folders = Folders(tmp_path, params.study)
    write_features(folders.features)
    with connect(2) as client:
        address = client.scheduler.address

        def kill() -> None:
            while not list(folders.runs.glob("*/last.pt")):  # until a run has begun
                time.sleep(0.05)
            pid = next(iter(client.run(os.getpid).values()))
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        train_all(params, folders, address)
        killer.join()
    assert f"{len(params.runs)}/{len(params.runs)} runs" in capsys.readouterr().out
    assert all(folders.predictions(name, *trial).is_file() for name in params.runs for trial in params.trials(name))
    found = leave(params, tmp_path)  # the stages find them
    assert capsys.readouterr().out.count("was trained already") == len(params.runs)
    assert found.keys() == alone.keys()
    for name, table in alone.items():
        np.testing.assert_array_equal(np.stack(found[name]["logits"]), np.stack(table["logits"]), name)


def test_with_several_processes_for_each_the_runs_are_trained_in_turn(params, tmp_path, monkeypatch):
    folders, trained = Folders(tmp_path, params.study), []
    write_features(folders.features)
    recipe = params.training.model_copy(update={"nproc": 2})
    params = params.model_copy(update={"training": recipe})
    monkeypatch.setattr(study, "_side_by_side", lambda *given: pytest.fail("side by side"))
    monkeypatch.setattr(study, "train_runs", lambda name, *given: trained.append(name))
    train_all(params, folders)
    assert trained == list(params.runs)
    with pytest.raises(ParamsError, match="nproc gives each run processes of this machine, in turn"):
        train_all(params, folders, "tcp://there:8786")


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_that_cannot_be_is_refused_before_anything_is_trained(params, tmp_path, monkeypatch, nproc):
    folders = Folders(tmp_path, params.study)
    write_features(folders.features)
    mmt = params.train_mmt.model_copy(update={"encoders": {"video": "ast_t"}})
    recipe = params.training.model_copy(update={"nproc": nproc})
    for name in ("_side_by_side", "train_runs"):
        monkeypatch.setattr(study, name, lambda *given: pytest.fail("trained"))
    with pytest.raises(ParamsError, match="starts from ast_t, which is no run of video alone"):
        train_all(params.model_copy(update={"train_mmt": mmt, "training": recipe}), folders)
