"""The training stages on a toy set: what they leave, where encoders come from, predictions that are kept."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toy_features import CLASSES, make_recipe, make_run, write_features

from mmtlib.config import Ablation, Run
from mmtlib.data.corruption import CONDITIONS
from mmtlib.data.dataset import FeatureDataset
from mmtlib.models.hub import WeightsError, load_model, load_weights
from mmtlib.training.experiment import NUMERICS, is_kept, kept, kept_runs, key_of, parts_of, plain, run_of, why_not
from mmtlib.training.loop import Trainer
from mmtlib.training import stage as training
from mmtlib.training.stage import train_runs

ROUGH = {
    "spec_augment": {"time_masks": 1, "time_width": 8, "freq_masks": 1, "freq_width": 6},
    "crop_scale": 0.6,
    "mixup": 0.4,
    "noise": 0.3,
}
"""Something that draws random numbers; the tiny models drop paths too."""

CONTRAST = {"avc": 0.1, "imc": 0.1}


class KilledError(Exception):
    """Stands for a machine that goes away."""


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("toy") / "data/features")


def test_missing_pretrained_weights_say_what_to_run(features):
    workspace = features.parents[1]
    with pytest.raises(WeightsError, match=r"pretrain_mat-seed0.safetensors does not exist.*dvc repro"):
        train_runs(
            "train_mmt",
            make_run("mmt_t", init="pretrained"),
            make_recipe(),
            stage="train_mmt",
            seeds=[0],
            workspace=workspace,
        )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The three training stages on the toy set, one epoch each, with the live log as it is."""
    root = tmp_path_factory.mktemp("workspace")
    write_features(root / "data/features", silent=(33,))
    recipe = make_recipe(**ROUGH | {"warmup_epochs": 0})
    stages = {
        "pretrain_mat": make_run("mat_t", epochs=1),
        "pretrain_mvit": make_run("mvitv2_t", epochs=1),
        "train_mmt": make_run("mmt_t", epochs=1, init="pretrained", objective=CONTRAST),
    }
    trained = {
        name: train_runs(name, run, recipe, stage=name, seeds=[0, 1] if "mmt" not in name else [0], workspace=root)
        for name, run in stages.items()
    }
    return root, stages, recipe, trained


def test_a_stage_leaves_weights_curve_and_predictions_of_each_seed(workspace):
    root, stages, _, trained = workspace
    for stage, runs in trained.items():
        for run in runs:
            assert run.weights == root / f"models/{stage}/{stage}-seed{run.seed}.safetensors"
            curve = pd.read_csv(run.weights.with_suffix(".csv"))
            assert "seconds" not in curve, "a time would differ from run to run, and DVC compares bytes"
            pd.testing.assert_frame_equal(curve, run.history.drop(columns="seconds"))
            model, header = load_model(run.weights)
            assert header["heads"] == {"label": CLASSES}
            assert header["seed"] == run.seed
            assert header["run"]["model"] == stages[stage].model
            assert header["stats"]["log_mel"]["mean"] == -7.0
            table = pd.read_parquet(run.predictions)
            assert set(table["split"]) == {"val", "test"}
            assert len(model.state_dict()) > 0
            pd.testing.assert_frame_equal(run.scores, training.scores(table))
    counts = trained["train_mmt"][0].scores.set_index(["split", "modality"])["n"].to_dict()
    assert counts == {
        ("val", "av"): 12,
        ("val", "audio"): 11,
        ("val", "video"): 12,
        ("test", "av"): 8,
        ("test", "audio"): 8,
        ("test", "video"): 8,
    }


def test_weights_have_a_card_whose_figures_are_those_of_the_run(workspace):
    root, stages, _, trained = workspace
    for stage, runs in trained.items():
        for run in runs:
            card = run.weights.with_suffix(".md").read_text()
            model, about = load_model(run.weights)
            count = sum(part.numel() for part in model.parameters())
            assert f"- model: {stages[stage].model}, {count:,} parameters" in card
            assert f"- run: {about['key']}, seed {run.seed}" in card
            assert f"- trained on: toy, fingerprint {about['stats']['fingerprint'][:16]}; 32 clips" in card
            assert f"- lr: {stages[stage].lr}\n" in card
            rows = [line.strip("|").split("|") for line in card.splitlines() if line.startswith("| ")][1:]
            wanted = run.scores.round(1).astype(str).values.tolist()
            assert [[cell.strip() for cell in row] for row in rows] == wanted
    card = trained["train_mmt"][0].weights.with_suffix(".md").read_text()
    hashes = [load_model(trained[stage][0].weights)[1]["key"] for stage in ("pretrain_mat", "pretrain_mvit")]
    assert f"starts from: audio: mat_t, run {hashes[0]}, trained on the same data; video: mvitv2_t" in card
    assert hashes[1] in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1] + "print(about['key'], about['seed'])"
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.split() == [about["key"], "0"]


def test_the_predictions_are_those_of_the_saved_weights(workspace):
    root, _, _, trained = workspace
    run = trained["train_mmt"][0]
    model, header = load_model(run.weights)
    test = FeatureDataset(root / "data/features", "test")
    batch = test.batch(range(len(test)))
    with torch.no_grad():
        want = model(batch.audio, batch.video).logits
    table = pd.read_parquet(run.predictions).query("split == 'test' and modality == 'av'")
    assert table["clip_id"].tolist() == test.clip_ids
    torch.testing.assert_close(torch.tensor(np.stack(table["logits"].tolist())), want, rtol=1e-4, atol=1e-5)
    assert header["name"] == "mmt_t"


def test_mmt_starts_from_the_encoders_of_its_own_seed(workspace, monkeypatch):
    root, stages, recipe, trained = workspace
    started = []

    def fit_nothing(self, log):
        started.append({name: value.clone() for name, value in self.model.state_dict().items()})
        raise KilledError

    monkeypatch.setattr(Trainer, "fit", fit_nothing)
    with pytest.raises(KilledError):
        train_runs("train_mmt", stages["train_mmt"], recipe, stage="train_mmt", seeds=[1], workspace=root)
    for part, stage in (("audio", "pretrain_mat"), ("video", "pretrain_mvit")):
        want, _ = load_weights(trained[stage][1].weights)
        other, _ = load_weights(trained[stage][0].weights)
        own = {name: value for name, value in started[0].items() if name.startswith(f"{part}_encoder.")}
        pairs = [(value, "encoder." + name.removeprefix(f"{part}_encoder.")) for name, value in own.items()]
        assert all(torch.equal(value, want[name]) for value, name in pairs)
        assert not all(torch.equal(value, other[name]) for value, name in pairs)


def test_a_stage_run_again_gives_the_same_bytes_and_a_new_seed_trains(workspace):
    """Also in one process: a finished run predicts first, then the next seed trains on the same grids."""
    root, stages, recipe, trained = workspace
    run = trained["train_mmt"][0]
    before = (
        run.weights.read_bytes(),
        run.predictions.read_bytes(),
        run.weights.with_suffix(".csv").read_bytes(),
    )
    again = train_runs("train_mmt", stages["train_mmt"], recipe, stage="train_mmt", seeds=[0, 1], workspace=root)
    assert [one.seed for one in again] == [0, 1]
    assert before == (
        run.weights.read_bytes(),
        run.predictions.read_bytes(),
        run.weights.with_suffix(".csv").read_bytes(),
    )
    assert again[1].weights.read_bytes() != before[0]


# Encoders that no stage has left, and predictions that are kept.


@pytest.fixture
def stages():
    return {
        "pretrain_mat": make_run("mat_t", epochs=1),
        "pretrain_mvit": make_run("mvitv2_t", epochs=1),
        "train_mmt": make_run("mmt_t", epochs=1, init="pretrained", objective=CONTRAST, robustness=True),
    }


def train(stage, stages, recipe, workspace, **changes):
    run = stages[stage].model_copy(update=changes)
    return train_runs(stage, run, recipe, stage=stage, seeds=[0], workspace=workspace, encoders=stages)[0]


def told(capsys) -> str:
    return capsys.readouterr().out


def test_encoders_that_no_stage_has_left_are_trained_first_with_the_same_result(stages, tmp_path, capsys):
    recipe, bytes_of = make_recipe(), []
    for way in ("stages", "alone"):
        root = tmp_path / way
        write_features(root / "data/features")
        if way == "stages":
            for stage in ("pretrain_mat", "pretrain_mvit"):
                train(stage, stages, recipe, root)
            told(capsys)
        run = train("train_mmt", stages, recipe, root)
        out = told(capsys)
        assert ("pretrain_mat seed 0 | " in out) == ("pretrain_mvit seed 0 | " in out) == (way == "alone")
        bytes_of.append((run.weights.read_bytes(), run.predictions.read_bytes()))
    assert bytes_of[0] == bytes_of[1]
    train("train_mmt", stages, recipe, root, modality_dropout=0.5)
    assert "pretrain_mat seed 0 | " not in told(capsys), "those trained before are found again"


def test_a_run_with_fewer_clips_starts_from_encoders_with_fewer_clips(stages, tmp_path, capsys):
    write_features(tmp_path / "data/features")
    train("pretrain_mat", stages, make_recipe(), tmp_path)
    told(capsys)
    train("train_mmt", stages, make_recipe(), tmp_path, train_share=0.5)
    lines = told(capsys).splitlines()
    begun = [line.split(" | ")[1].split(", ")[:2] for line in lines if " clips, fp32, run " in line]
    assert begun == [["mat_t", "16 clips"], ["mvitv2_t", "16 clips"], ["mmt_t", "16 clips"]]


def test_kept_predictions_stand_in_for_training(stages, tmp_path, capsys):
    recipe = make_recipe(kept="kept")
    write_features(tmp_path / "data/features")
    for stage in stages:
        train(stage, stages, recipe, tmp_path)
    assert len(list((tmp_path / "kept").glob("*.parquet"))) == 3
    before = {path: path.read_bytes() for path in tmp_path.rglob("predictions/**/*.parquet")}
    before |= {path: path.read_bytes() for path in tmp_path.rglob("models/**/*.[cj]s*")}
    told(capsys)
    # A new machine: the same clips, decoded with other last bits, and nothing but what Git holds.
    for folder in ("models", "predictions", "runs", "data"):
        (tmp_path / folder).rename(tmp_path / f"old-{folder}")
    write_features(tmp_path / "data/features", seed=1)
    for stage in stages:
        run = train(stage, stages, recipe, tmp_path)
        assert not run.weights.is_file()
        assert not run.weights.with_suffix(".md").exists()
        assert "takes the kept predictions" in told(capsys)
        assert run.scores["n"].min() > 0
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "runs").exists()
    # A run that is not kept trains, and so do its encoders, of which only predictions were.
    run = train("train_mmt", stages, recipe, tmp_path, lr=2e-3)
    out = told(capsys)
    assert "pretrain_mat seed 0 | epoch" in out
    assert run.weights.is_file()
    # Without the folder, all is trained.
    assert train("pretrain_mat", stages, make_recipe(), tmp_path).weights.is_file()


def test_weights_of_another_run_do_not_stay_beside_kept_predictions(stages, tmp_path):
    recipe = make_recipe(kept="kept")
    write_features(tmp_path / "data/features")
    first = train("pretrain_mat", stages, recipe, tmp_path)
    assert train("pretrain_mat", stages, recipe, tmp_path).weights.is_file(), "they are its own"
    train("pretrain_mat", stages, recipe, tmp_path, lr=2e-3)
    assert first.weights.with_suffix(".md").is_file()
    assert not train("pretrain_mat", stages, recipe, tmp_path).weights.is_file()
    assert not first.weights.with_suffix(".md").exists(), "it was of those weights"
    about = json.loads(first.weights.with_suffix(".json").read_text())
    assert about["parts"]["run"]["lr"] == stages["pretrain_mat"].lr


def test_corrupted_test_clips_are_read_only_where_it_is_asked_for(stages, tmp_path):
    write_features(tmp_path / "data/features")
    for stage in ("pretrain_mat", "pretrain_mvit"):
        train(stage, stages, make_recipe(), tmp_path)
    robust = train("train_mmt", stages, make_recipe(), tmp_path)
    table = pd.read_parquet(robust.predictions)
    assert set(table["split"]) == {"val", "test"} | {f"test: {condition}" for condition in CONDITIONS}
    plain = train("train_mmt", stages, make_recipe(), tmp_path, robustness=False)
    assert robust.weights == plain.weights
    table = pd.read_parquet(plain.predictions)
    assert set(table["split"]) == {"val", "test"}
    assert [len(z) for z in table["embedding"].dropna()] == [16] * 8, "of the test clips with both"


def test_a_place_in_the_report_does_not_make_another_run(stages, tmp_path, features):
    run = stages["pretrain_mat"]
    row = Ablation.model_validate(run.model_dump() | {"group": "search", "seeds": [0]})
    data = FeatureDataset(features, "train").identity
    parts = [
        parts_of(one, make_recipe(nproc=n, kept=k), 0, data, {})
        for one, n, k in ((run, 1, None), (row, 1, None), (run, 2, "kept"))
    ]
    assert parts[0] == parts[1] == parts[2]
    fewer = parts_of(run.model_copy(update={"train_share": 0.5}), make_recipe(), 0, data, {})
    assert key_of(fewer) != key_of(parts[0])


def test_how_a_model_is_tested_keeps_another_file_but_trains_no_other_weights(stages, features):
    data = FeatureDataset(features, "train").identity
    run = stages["train_mmt"]
    robust, not_so = (
        parts_of(run.model_copy(update={"robustness": flag}), make_recipe(), 0, data, {}) for flag in (True, False)
    )
    assert key_of(robust) == key_of(not_so)
    assert kept(Path("kept"), robust) != kept(Path("kept"), not_so)


def test_a_kept_run_says_what_it_is_and_a_run_that_is_not_kept_what_differs(stages, tmp_path, monkeypatch):
    recipe = make_recipe(kept="kept")
    write_features(tmp_path / "data/features")
    run = stages["pretrain_mat"]
    for lr in (1e-3, 2e-3):
        train("pretrain_mat", stages, recipe, tmp_path, lr=lr)
    first = next(one for one in kept_runs(tmp_path / "kept") if one.about["parts"]["run"]["lr"] == 1e-3)
    parts = first.about["parts"]
    assert {"run", "model", "recipe", "seed", "fold", "data", "encoders", "numerics", "conditions"} == parts.keys()
    assert run_of(parts) == Run.model_validate(plain(run) | {"lr": 1e-3})
    assert parts["model"]["dim"] == 8
    assert re.fullmatch(r"[0-9a-f]{40}.*|unknown", first.about["commit"])
    data = FeatureDataset(tmp_path / "data/features", "train").identity
    same = parts_of(run.model_copy(update={"lr": 1e-3}), recipe, 0, data, {})
    assert is_kept(kept(tmp_path / "kept", same))
    noisy = parts_of(run.model_copy(update={"lr": 1e-3}), make_recipe(noise=0.1), 0, data, {})
    assert why_not(tmp_path / "kept", noisy) == "recipe.noise: 0.0 is kept, 0.1 is wanted"
    monkeypatch.setitem(NUMERICS, "mat", 2)
    later = parts_of(run.model_copy(update={"lr": 2e-3}), recipe, 0, data, {})
    assert why_not(tmp_path / "kept", later) == "numerics: 1 is kept, 2 is wanted"
    assert why_not(tmp_path / "nowhere", later) == f"no run is kept in {tmp_path / 'nowhere'}"
