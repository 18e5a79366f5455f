"""Two processes train what one trains, and go on where one stopped."""

import copy

import pandas as pd
import pytest
import torch
from toy_features import CLIPS, MMT, make_params, make_recipe, make_run, write_features

from mmtlib.config import ROOT, ParamsError, Trial, load
from mmtlib.data.dataset import FeatureDataset
from mmtlib.distributed import gather, gather_objects, rank, ranks
from mmtlib.evaluation.predictions import outputs, usable
from mmtlib.folders import Folders
from mmtlib.models import resolved
from mmtlib.models.hub import load_model, load_weights
from mmtlib.training import __main__ as command
from mmtlib.training.loop import Trainer
from mmtlib.training.optim import cross_entropy, one_hot
from mmtlib.training.stage import TrainingError, train_runs

# With dropped paths and dropout, which all ranks draw alike; without mixup, whose partners each finds by itself.
RUN = make_run("mmt_t", overrides=MMT | {"dropout": 0.3}, objective={"avc": 0.3, "imc": 0.2})
SURE = copy.deepcopy(MMT)  # nothing is drawn
SURE["audio"]["drop_path"] = SURE["video"]["drop_path"] = 0.0
AUGMENTED = {
    "gain": 0.3,
    "noise": 0.1,
    "crop_scale": 0.6,
    "flip": True,
    "spec_augment": {"time_masks": 1, "time_width": 8, "freq_masks": 1, "freq_width": 6},
}


def test_alone_there_is_one_rank_and_nothing_is_exchanged():
    x = torch.ones(2, 3, requires_grad=True)
    assert (rank(), ranks()) == (0, 1)
    assert gather(x) is x
    assert gather_objects("a") == ["a"]


class KilledError(Exception):
    """Stands for a machine that goes away."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A study with silent and blind clips, so that the ranks' shares of them differ."""
    folders = Folders(tmp_path_factory.mktemp("two"), "toy")
    write_features(folders.features, silent=(0, 3, 9), blind=(1, 12), noise=3.0)
    return folders


def params_of(**changes):
    return make_params(make_recipe(**AUGMENTED | changes), seeds=(0, 1), train_mmt=RUN)


def test_two_processes_have_the_loss_curve_of_one_and_go_on_where_it_stopped(folders, tmp_path, monkeypatch, capsys):
    alone = {one.trial.seed: one for one in train_runs("train_mmt", params_of(), folders)}
    weights = {seed: load_weights(one.weights)[0] for seed, one in alone.items()}
    for folder in ("runs", "models", "predictions"):
        (folders.root / folder).rename(tmp_path / folder)

    # Of seed 1 one process does the first of the three epochs.
    original = Trainer._save

    def save_and_die(self, state):
        original(self, state)
        raise KilledError

    monkeypatch.setattr(Trainer, "_save", save_and_die)
    with pytest.raises(KilledError):
        train_runs("train_mmt", params_of(), folders, [Trial(1)])
    monkeypatch.undo()
    capsys.readouterr()
    pair = train_runs("train_mmt", params_of(nproc=2), folders)
    told = capsys.readouterr().out
    assert told.count("epoch ") == 3 + 1 + 2  # one line an epoch, and one that says where it goes on
    assert "resumes after epoch 1 of 3" in told
    assert not list(folders.runs.glob("*.json")), "what the processes were told is taken away"
    for one in pair:
        want = alone[one.trial.seed]
        pd.testing.assert_frame_equal(one.history, want.history, rtol=1e-4, atol=1e-4)
        pd.testing.assert_frame_equal(one.scores, want.scores)
        found = load_weights(one.weights)[0]
        for name, value in weights[one.trial.seed].items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)


def test_the_shipped_mmt_drops_the_same_paths_in_any_number_of_processes(folders, tmp_path):
    settings = resolved("mmt_t", {})
    assert min(settings[part]["drop_path"] for part in ("audio", "video")) > 0
    curves = []
    for nproc in (1, 2):
        params = make_params(make_recipe(nproc=nproc), train_mmt=make_run("mmt_t", overrides={}, epochs=2))
        (trained,) = train_runs("train_mmt", params, folders, [Trial(0)])
        curves.append(trained.history)
        for folder in ("runs", "models", "predictions"):
            (folders.root / folder).rename(tmp_path / f"{folder}-{nproc}")
    pd.testing.assert_frame_equal(*curves, rtol=1e-3, atol=1e-4)


def test_the_weights_kept_are_those_that_were_validated(tmp_path, monkeypatch):
    # Each process has its own running statistics of batch normalisation, and validates a batch of 64 clips or fewer.
    monkeypatch.setitem(CLIPS, "val", 20)
    folders = Folders(tmp_path, "toy")
    write_features(folders.features)
    params = params_of(nproc=2).model_copy(update={"pretrain_mat": make_run("resnet18_audio", epochs=2)})
    one = train_runs("pretrain_mat", params, folders, [Trial(0)])[0]
    model, val = load_model(one.weights)[0], FeatureDataset(folders.features, "val")
    logits, _ = outputs(model, val, usable(val, "audio"), "audio")
    loss = cross_entropy(logits, one_hot(val.labels[usable(val, "audio")], val.sizes), val.sizes).item()
    best = one.history.sort_values(["val_top1", "val_loss"], ascending=[False, True]).iloc[0]
    assert loss == pytest.approx(best["val_loss"], rel=1e-4)
    assert model.about["precision"] == "fp32"


def test_a_failure_in_a_process_is_told_in_its_own_words(tmp_path):
    with pytest.raises(TrainingError, match=r"2 processes of pretrain_mat: .*features.json is missing; make the feat"):
        train_runs("pretrain_mat", params_of(nproc=2), Folders(tmp_path, "toy"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 9, "accumulate": 2}, r"training.batch_size 9 is no multiple of 2 \(training.accumulate\) x 1"),
        ({"batch_size": 40, "accumulate": 40}, "29 train clips are too few for 40 parts of a batch; use fewer"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(folders, tmp_path, changes, words):
    with pytest.raises(ParamsError, match=words):
        Trainer(make_run(), make_recipe(**changes), seed=0, features=folders.features, runs=tmp_path, init={})


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(folders, tmp_path):
    run = make_run("mmt_t", overrides=SURE)
    curves = []
    for accumulate in (1, 4):
        recipe = make_recipe(accumulate=accumulate)
        trainer = Trainer(run, recipe, seed=0, features=folders.features, runs=tmp_path, init={}, device="cpu")
        curves.append(trainer.fit(log=lambda line: None).drop(columns="seconds"))
    pd.testing.assert_frame_equal(*curves, rtol=1e-4, atol=1e-4)


def test_the_command_line_takes_a_run_of_a_parameter_file(monkeypatch, capsys):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(command, "train_runs", lambda *given: seen.append(given))
        assert command.main(["mbt_t"]) == 0
        assert command.main(["train_mmt", "--params", "params/smoke.yaml"]) == 0
    assert seen == [
        ("mbt_t", load(), Folders(ROOT, "quick"), None),
        ("train_mmt", load("params/smoke.yaml"), Folders(ROOT, "smoke"), None),
    ]
    assert command.main(["mbt"]) == 1
    assert command.main(["mbt_t", "--params", "params/none.yaml"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("training failed: there is no run mbt; use one of pretrain_mat")
    assert second.startswith("training failed: params/none.yaml: no such file")
