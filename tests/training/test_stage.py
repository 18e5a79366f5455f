"""The training stages on a toy set: what they leave, where encoders come from, runs that are finished or kept."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from toy_features import CLASSES, make_params, make_recipe, make_run, write_features

from mmtlib.config import STAGES, ParamsError, Trial
from mmtlib.data.corruption import CONDITIONS
from mmtlib.data.dataset import DatasetError, FeatureDataset
from mmtlib.evaluation.scores import scores
from mmtlib.folders import Folders
from mmtlib.models.hub import load_model, load_weights
from mmtlib.training import stage as training
from mmtlib.training.loop import Trainer
from mmtlib.training.stage import Trained, train_runs

TRIALS = [Trial(0), Trial(1)]
ROUGH = {
    "spec_augment": {"time_masks": 1, "time_width": 8, "freq_masks": 1, "freq_width": 6},
    "crop_scale": 0.6,
    "mixup": 0.4,
    "noise": 0.3,
}
"""Something that draws random numbers; the tiny models drop paths too."""


class KilledError(Exception):
    """Stands for a machine that goes away."""


def at(root, study: str = "toy", **options) -> Folders:
    """The folders of a study below `root`, its features made."""
    folders = Folders(root, study)
    write_features(folders.features, **options)
    return folders


def bytes_of(run: Trained) -> tuple[bytes, ...]:
    """Of all that a stage leaves but the card."""
    files = (run.weights, run.weights.with_suffix(".csv"), run.weights.with_suffix(".json"), run.predictions)
    return tuple(file.read_bytes() for file in files)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The three training stages on the toy set, one epoch each, with the live log as it is."""
    folders = at(tmp_path_factory.mktemp("root"), silent=(33,))
    params = make_params(make_recipe(**ROUGH), seeds=(0, 1))
    trained = {
        name: train_runs(name, params, folders, TRIALS if name != "train_mmt" else TRIALS[:1]) for name in STAGES
    }
    return folders, params, trained


def test_a_stage_leaves_weights_curve_and_predictions_of_each_seed(study):
    folders, params, trained = study
    for stage, runs in trained.items():
        for run in runs:
            assert run.weights == folders.root / f"models/toy/{stage}/{stage}-seed{run.trial.seed}.safetensors"
            assert run.predictions == folders.root / f"predictions/toy/{stage}/{stage}-seed{run.trial.seed}.parquet"
            curve = pd.read_csv(run.weights.with_suffix(".csv"))
            assert "seconds" not in curve, "a time would differ from run to run, and DVC compares bytes"
            pd.testing.assert_frame_equal(curve, run.history)
            model, header = load_model(run.weights)
            assert header["heads"] == {"label": CLASSES}
            assert header["seed"] == run.trial.seed
            assert header["run"]["model"] == params.runs[stage].model
            assert header["stats"]["log_mel"]["mean"] == -7.0
            assert json.loads(run.weights.with_suffix(".json").read_text())["key"] == header["key"]
            table = pd.read_parquet(run.predictions)
            assert set(table["split"]) == {"val", "test"}
            assert len(model.state_dict()) > 0
            pd.testing.assert_frame_equal(run.scores, scores(table))
    counts = trained["train_mmt"][0].scores.set_index(["split", "modality"])["n"].to_dict()
    assert counts == {
        ("val", "av"): 12,
        ("val", "audio"): 11,
        ("val", "video"): 12,
        ("test", "av"): 8,
        ("test", "audio"): 8,
        ("test", "video"): 8,
    }


def test_weights_have_a_card_whose_figures_are_those_of_the_run(study):
    folders, params, trained = study
    for stage, runs in trained.items():
        for run in runs:
            card = run.weights.with_suffix(".md").read_text()
            model, about = load_model(run.weights)
            count = sum(part.numel() for part in model.parameters())
            assert f"- model: {params.runs[stage].model}, {count:,} parameters" in card
            assert f"- run: {about['key']}, seed {run.trial.seed}" in card
            assert f"- trained on: toy, fingerprint {about['stats']['fingerprint'][:16]}; 32 clips" in card
            assert f"- lr: {params.runs[stage].lr}\n" in card
            rows = [line.strip("|").split("|") for line in card.splitlines() if line.startswith("| ")][1:]
            wanted = run.scores.round(1).astype(str).values.tolist()
            assert [[cell.strip() for cell in row] for row in rows] == wanted
    card = trained["train_mmt"][0].weights.with_suffix(".md").read_text()
    hashes = [load_model(trained[stage][0].weights)[1]["key"] for stage in ("pretrain_mat", "pretrain_mvit")]
    assert f"starts from: audio: mat_t, run {hashes[0]}, trained on the same data; video: mvitv2_t" in card
    assert hashes[1] in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1] + "print(model.about['key'], model.about['seed'])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=folders.root, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [about["key"], "0"]


def test_the_predictions_are_those_of_the_saved_weights(study):
    folders, _, trained = study
    run = trained["train_mmt"][0]
    model, header = load_model(run.weights)
    test = FeatureDataset(folders.features, "test")
    batch = test.batch(range(len(test)))
    with torch.no_grad():
        want = model(batch.audio, batch.video).logits
    table = pd.read_parquet(run.predictions).query("split == 'test' and modality == 'av'")
    assert table["clip_id"].tolist() == test.clip_ids
    torch.testing.assert_close(torch.tensor(np.stack(table["logits"].tolist())), want, rtol=1e-4, atol=1e-5)
    assert header["name"] == "mmt_t"


def test_mmt_starts_from_the_encoders_of_its_own_seed(study, monkeypatch):
    folders, params, trained = study
    started = []

    def fit_nothing(self, log):
        started.append({name: value.clone() for name, value in self.model.state_dict().items()})
        raise KilledError

    monkeypatch.setattr(Trainer, "fit", fit_nothing)
    with pytest.raises(KilledError):
        train_runs("train_mmt", params, folders, TRIALS[1:])
    for part, stage in (("audio", "pretrain_mat"), ("video", "pretrain_mvit")):
        want, _ = load_weights(trained[stage][1].weights)
        other, _ = load_weights(trained[stage][0].weights)
        own = {name: value for name, value in started[0].items() if name.startswith(f"{part}_encoder.")}
        pairs = [(value, "encoder." + name.removeprefix(f"{part}_encoder.")) for name, value in own.items()]
        assert all(torch.equal(value, want[name]) for value, name in pairs)
        assert not all(torch.equal(value, other[name]) for value, name in pairs)


def test_a_stage_run_again_takes_the_finished_run_and_gives_the_same_bytes(study, monkeypatch, capsys):
    folders, params, trained = study
    before = bytes_of(trained["train_mmt"][0])
    for path in folders.weights("train_mmt", 0).parent.iterdir():
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
        patch.setattr(training, "predict", lambda *_, **__: pytest.fail("predicted again"))
        (again,) = train_runs("train_mmt", params, folders, TRIALS[:1])
    assert bytes_of(again) == before
    assert "train_mmt seed 0 | was trained already, run " in capsys.readouterr().out
    assert again.weights.with_suffix(".md").is_file()


def test_a_run_trained_anew_gives_the_same_bytes_and_a_new_seed_others(study, tmp_path):
    """Also in one process: a finished run predicts first, then the next seed trains on the same grids."""
    folders, params, trained = study
    before = bytes_of(trained["train_mmt"][0])
    folders.runs.rename(tmp_path / "runs")
    again = train_runs("train_mmt", params, folders)
    assert [one.trial.seed for one in again] == [0, 1]
    assert bytes_of(again[0]) == before
    assert again[1].weights.read_bytes() != before[0]


def test_a_run_killed_while_it_predicts_is_not_trained_again(tmp_path, monkeypatch):
    folders, params = at(tmp_path), make_params()

    def killed(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(training, "predict", killed)
        with pytest.raises(KilledError):
            train_runs("pretrain_mat", params, folders)
    assert not folders.weights("pretrain_mat", 0).exists()
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
    (run,) = train_runs("pretrain_mat", params, folders)
    assert set(run.scores["split"]) == {"val", "test"}


def test_a_name_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(ParamsError, match=r"^there is no run mbt; use one of pretrain_mat, .*, ast_t\.$"):
        train_runs("mbt", make_params(), Folders(tmp_path, "toy"))


def test_without_features_it_is_said_what_to_run(tmp_path):
    with pytest.raises(DatasetError, match=r"features.json is missing; .*mmt features --params FILE"):
        train_runs("pretrain_mat", make_params(), Folders(tmp_path, "toy"))
    assert not list(tmp_path.iterdir())


def test_a_row_of_the_table_has_folders_and_seeds_of_its_own(tmp_path):
    folders = at(tmp_path)
    params = make_params(seeds=(0,))
    rows = {"ast_t": params.ablations["ast_t"].model_copy(update={"seeds": [5]})}
    (run,) = train_runs("ast_t", params.model_copy(update={"ablations": rows}), folders)
    assert run.trial.seed == 5
    assert run.weights == tmp_path / "models/toy/ablations/ast_t/ast_t-seed5.safetensors"
    assert run.predictions == tmp_path / "predictions/toy/ablations/ast_t/ast_t-seed5.parquet"


def test_two_studies_do_not_touch_each_other_but_share_finished_runs(tmp_path, capsys):
    """The same run on the same features is one run; another setting, in the other study, overwrites nothing."""
    one, two = at(tmp_path, "one"), at(tmp_path, "two")
    (first,) = train_runs("pretrain_mat", make_params(study="one"), one)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file() and "one" in path.parts}
    (same,) = train_runs("pretrain_mat", make_params(study="two"), two)
    assert "was trained already" in capsys.readouterr().out.splitlines()[-1]
    assert bytes_of(same) == bytes_of(first)
    changed = make_params(study="two", pretrain_mat=make_run("mat_t", epochs=1, lr=1e-3))
    assert bytes_of(train_runs("pretrain_mat", changed, two)[0]) != bytes_of(first)
    assert {path: path.read_bytes() for path in before} == before
    files = {path.relative_to(tmp_path).parts for path in tmp_path.rglob("*") if path.is_file()}
    assert {parts[:2] for parts in files if parts[0] != "runs"} == {
        (kind, study) for kind in ("data", "models", "predictions") for study in ("one", "two")
    }


# Encoders that no stage has left, and predictions that are kept.


def params_with(recipe=None, **changes):
    """`make_params` whose train_mmt is tested on corrupted clips, too, with changes of that run."""
    mmt = make_params().train_mmt.model_copy(update={"robustness": True} | changes)
    return make_params(recipe, train_mmt=mmt)


def train(name, params, folders) -> Trained:
    return train_runs(name, params, folders)[0]


def told(capsys) -> str:
    return capsys.readouterr().out


def test_encoders_that_no_stage_has_left_are_trained_first_with_the_same_result(tmp_path, capsys):
    found = []
    for way in ("stages", "alone"):
        folders = at(tmp_path / way)
        if way == "stages":
            for stage in ("pretrain_mat", "pretrain_mvit"):
                train(stage, params_with(), folders)
            told(capsys)
        run = train("train_mmt", params_with(), folders)
        out = told(capsys)
        assert ("pretrain_mat seed 0 | " in out) == ("pretrain_mvit seed 0 | " in out) == (way == "alone")
        assert not (way == "alone" and folders.weights("pretrain_mat", 0).exists()), "that is for the stage to leave"
        found.append(bytes_of(run))
    assert found[0] == found[1]
    train("train_mmt", params_with(modality_dropout=0.5), folders)
    assert "pretrain_mat seed 0 | epoch" not in told(capsys), "those trained before are found again"


def test_encoders_are_those_of_the_parameter_file_not_whatever_the_stage_has_left(tmp_path, capsys):
    """Its weights are of other settings: the encoder is trained, in runs/, and the stage's files stay as they are."""
    folders = at(tmp_path)
    left = train("pretrain_mat", make_params(pretrain_mat=make_run("mat_t", epochs=2)), folders)
    before = bytes_of(left)
    told(capsys)
    run = train("train_mmt", params_with(), folders)
    assert "pretrain_mat seed 0 | epoch   1/1" in told(capsys)
    assert bytes_of(left) == before
    wanted = train("pretrain_mat", params_with(), folders)
    assert load_weights(run.weights)[1]["encoders"]["audio"]["key"] == load_weights(wanted.weights)[1]["key"]


def test_a_run_with_fewer_clips_starts_from_encoders_with_fewer_clips(tmp_path, capsys):
    folders = at(tmp_path)
    train("pretrain_mat", params_with(), folders)
    told(capsys)
    train("train_mmt", params_with(train_share=0.5), folders)
    lines = told(capsys).splitlines()
    begun = [line.split(" | ")[1].split(", ")[:2] for line in lines if " clips, fp32, run " in line]
    assert begun == [["mat_t", "16 clips"], ["mvitv2_t", "16 clips"], ["mmt_t", "16 clips"]]


def test_kept_predictions_stand_in_for_training(tmp_path, capsys):
    params, folders = params_with(make_recipe(kept="kept")), at(tmp_path)
    for stage in STAGES:
        train(stage, params, folders)
    assert len(list((tmp_path / "kept").glob("*.parquet"))) == 3
    before = {path: path.read_bytes() for path in tmp_path.rglob("predictions/**/*.parquet")}
    before |= {path: path.read_bytes() for path in tmp_path.rglob("models/**/*.[cj]s*")}
    assert len(before) == 9
    told(capsys)
    # A new machine: the same clips, decoded with other last bits, and nothing but what Git holds.
    for folder in ("models", "predictions", "runs", "data"):
        (tmp_path / folder).rename(tmp_path / f"old-{folder}")
    at(tmp_path, seed=1)
    for stage in STAGES:
        run = train(stage, params, folders)
        assert not run.weights.is_file()
        assert not run.weights.with_suffix(".md").exists()
        assert "takes the kept predictions" in told(capsys)
        assert run.scores["n"].min() > 0
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "runs").exists()
    # A run that is not kept trains, and so do its encoders, of which only predictions were.
    run = train("train_mmt", params_with(make_recipe(kept="kept"), lr=2e-3), folders)
    out = told(capsys)
    assert "pretrain_mat seed 0 | epoch" in out
    assert run.weights.is_file()
    # Without the folder, all is trained.
    assert train("pretrain_mat", params_with(), folders).weights.is_file()


def test_weights_of_another_run_do_not_stay_beside_kept_predictions(tmp_path):
    folders = at(tmp_path)
    params = make_params(make_recipe(kept="kept"))
    changed = make_params(make_recipe(kept="kept"), pretrain_mat=make_run("mat_t", epochs=1, lr=2e-3))
    first = train("pretrain_mat", params, folders)
    assert train("pretrain_mat", params, folders).weights.is_file(), "they are its own"
    train("pretrain_mat", changed, folders)
    assert first.weights.with_suffix(".md").is_file()
    assert not train("pretrain_mat", params, folders).weights.is_file()
    assert not first.weights.with_suffix(".md").exists(), "it was of those weights"
    about = json.loads(first.weights.with_suffix(".json").read_text())
    assert about["parts"]["run"]["lr"] == params.pretrain_mat.lr


def test_corrupted_test_clips_are_read_only_where_it_is_asked_for(tmp_path, capsys):
    folders = at(tmp_path)
    robust = train("train_mmt", params_with(), folders)
    table, weights = pd.read_parquet(robust.predictions), robust.weights.read_bytes()
    assert set(table["split"]) == {"val", "test"} | {f"test: {condition}" for condition in CONDITIONS}
    told(capsys)
    plain = train("train_mmt", params_with(robustness=False), folders)
    assert "train_mmt seed 0 | was trained already" in told(capsys), "how it is tested trains no other weights"
    assert plain.weights.read_bytes() == weights
    few = pd.read_parquet(plain.predictions)
    assert set(few["split"]) == {"val", "test"}
    assert [len(z) for z in few["embedding"].dropna()] == [16] * 8, "of the test clips with both"
    shared = table[table["split"].isin(["val", "test"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(shared, few)
