"""Where a study's files lie, what a run is known by, and runs that are kept."""

import json
import re
import shutil

import pandas as pd
import pytest
from toy_features import AUDIO, CLASSES, OVERRIDES, SETTINGS, VIDEO, make_params, make_recipe, make_run, write_features

from mmtlib.config import ROOT, Ablation, ParamsError, Run, Trial
from mmtlib.data.corruption import CONDITIONS
from mmtlib.data.dataset import FeatureDataset
from mmtlib.folders import Folders, stage_of
from mmtlib.models import build_model, resolved
from mmtlib.models.hub import save_model
from mmtlib.training import experiment
from mmtlib.training.experiment import (
    NUMERICS,
    Kept,
    differences,
    encoder_runs,
    is_kept,
    keep,
    kept,
    kept_runs,
    key_of,
    made_with,
    parts_for,
    parts_of,
    plain,
    planned,
    run_of,
    why_not,
)
from mmtlib.training.loop import Trainer


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("toy") / "features")


@pytest.fixture(scope="module")
def data(features):
    return FeatureDataset(features, "train").identity


# Folders.


def test_the_folders_of_two_studies_have_nothing_in_common_but_the_runs(tmp_path):
    def paths(study: str) -> set:
        own = Folders(tmp_path, study)
        files = [kind(name, 0) for kind in (own.weights, own.predictions) for name in ("train_mmt", "ast_t")]
        return {own.clips, own.features, own.report, *files}

    one, two = paths("one"), paths("two")
    assert not one & two
    assert not [(a, b) for a in one for b in two if a in b.parents or b in a.parents]
    assert {path.relative_to(tmp_path).parts[1] for path in one} == {"one"}
    assert Folders(tmp_path, "one").runs == Folders(tmp_path, "two").runs == tmp_path / "runs"


def test_a_stage_has_a_folder_and_a_row_one_of_the_stage_ablations():
    assert (stage_of("train_mmt"), stage_of("mbt_t")) == ("train_mmt", "ablations/mbt_t")
    own = Folders(ROOT, "smoke")
    assert own.weights("mbt_t", 3) == ROOT / "models/smoke/ablations/mbt_t/mbt_t-seed3.safetensors"
    assert own.predictions("pretrain_mat", 0) == ROOT / "predictions/smoke/pretrain_mat/pretrain_mat-seed0.parquet"
    assert (own.clips, own.report) == (ROOT / "data/smoke/clips", ROOT / "reports/smoke")


# What a run is known by.


def test_anything_that_changes_the_result_changes_the_key(features, tmp_path, monkeypatch):
    audio, video = (tmp_path / name for name in ("audio.safetensors", "video.safetensors"))

    def save(path, name: str, seed: int = 0) -> None:
        sizes = {"audio_size": list(AUDIO)} if name == "mat_t" else {"video_size": list(VIDEO)}
        settings = sizes | OVERRIDES[name]
        model = build_model(name, len(CLASSES), **settings)
        with_seed = {key: value + seed for key, value in model.state_dict().items()}
        model.load_state_dict(with_seed)
        save_model(path, model, name=name, num_classes=len(CLASSES), overrides=settings)

    save(audio, "mat_t")
    save(video, "mvitv2_t")
    init = {"audio": audio, "video": video}

    def name(run=None, recipe=None, folder=features, seed=0, init=None) -> str:
        given = dict(seed=seed, features=folder, runs=tmp_path, init=init or {}, device="cpu")
        return Trainer(run or make_run(), recipe or make_recipe(), **given).checkpoint.parent.name

    mmt = make_run("mmt_t")
    hashes = [
        name(),
        name(make_run(lr=2e-3)),
        name(make_run(epochs=4)),
        name(make_run(overrides=OVERRIDES["mat_t"] | {"dropout": 0.1})),
        name(make_run("mvitv2_t")),
        name(recipe=make_recipe(weight_decay=0.01)),
        name(recipe=make_recipe(mixup=0.1)),
        name(recipe=make_recipe(precision="auto")),
        name(seed=1),
        name(mmt),
        name(mmt, init=init),
        name(make_run("mmt_t", objective={"avc": 0.1})),
        name(make_run("mmt_t", objective={"avc": 0.1, "temperature": 0.2})),
    ]
    save(audio, "mat_t", seed=9)
    hashes.append(name(mmt, init=init))
    assert len(set(hashes)) == len(hashes)
    assert name() == hashes[0]
    copy = tmp_path / "copy"
    shutil.copytree(features, copy)
    assert name(folder=copy) == hashes[0], "it is the content of the features that counts, not the place"
    monkeypatch.setitem(NUMERICS, "mat", 2)
    assert name() != hashes[0]
    assert name(mmt) == hashes[9], "of another family"


def test_an_identity_is_of_the_clips_and_settings_not_of_the_last_bits(tmp_path):
    folders = [write_features(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    one, two = (FeatureDataset(folder, "train") for folder in folders)
    assert one.fingerprint != two.fingerprint, "decoded on another machine"
    assert one.identity == two.identity == FeatureDataset(folders[0], "val").identity
    index = pd.read_csv(folders[1] / "index.csv")
    index.loc[0, "clip_id"] = "another"
    index.to_csv(folders[1] / "index.csv", index=False)
    assert FeatureDataset(folders[1], "train").identity != one.identity
    for what, value in (("settings", SETTINGS | {"hop_ms": 12.5}), ("source", {"seed": 8}), ("classes", CLASSES[::-1])):
        described = json.loads((folders[0] / "features.json").read_text())
        (folders[0] / "features.json").write_text(json.dumps(described | {what: value}))
        changed = FeatureDataset(folders[0], "train").identity
        assert changed != one.identity
        one = FeatureDataset(folders[0], "train")


def test_a_place_in_the_report_does_not_make_another_run(data):
    run = make_run("mat_t", epochs=1)
    row = Ablation.model_validate(run.model_dump() | {"group": "search", "seeds": [0]})
    parts = [
        parts_of(one, make_recipe(nproc=n, kept=k), Trial(0), data, {})
        for one, n, k in ((run, 1, None), (row, 1, None), (run, 2, "kept"))
    ]
    assert parts[0] == parts[1] == parts[2]
    fewer = parts_of(run.model_copy(update={"train_share": 0.5}), make_recipe(), Trial(0), data, {})
    assert key_of(fewer) != key_of(parts[0])


def test_other_positives_of_several_heads_are_another_run(data):
    heads = data | {"heads": [["verb", ["a", "b"]], ["noun", ["c", "d"]]]}
    for objective, known in (({}, data), ({"imc": 0.1}, data), ({}, heads), ({"imc": 0.1}, heads)):
        parts = parts_of(make_run("mmt_t", objective=objective), make_recipe(), Trial(0), known, {})
        assert parts["numerics"] == experiment.NUMERICS["mmt"] + (known is heads and objective != {})


def test_how_a_model_is_tested_keeps_another_file_but_trains_no_other_weights(data, tmp_path, monkeypatch):
    run = make_run("mmt_t")
    robust, not_so = (
        parts_of(run.model_copy(update={"robustness": flag}), make_recipe(), Trial(0), data, {})
        for flag in (True, False)
    )
    assert key_of(robust) == key_of(not_so)
    assert kept(tmp_path, robust) != kept(tmp_path, not_so)
    assert robust["conditions"]["names"] == list(CONDITIONS)
    monkeypatch.setattr(experiment, "CORRUPTION", experiment.CORRUPTION + 1)
    again = parts_of(run.model_copy(update={"robustness": True}), make_recipe(), Trial(0), data, {})
    assert key_of(again) == key_of(robust)
    assert kept(tmp_path, again) != kept(tmp_path, robust)


def test_the_encoders_that_a_run_starts_from_are_part_of_its_key(data):
    params = make_params()
    mmt = parts_for(params.train_mmt, params, Trial(0), data)
    assert mmt["encoders"] == {
        "audio": key_of(parts_for(params.pretrain_mat, params, Trial(0), data)),
        "video": key_of(parts_for(params.pretrain_mvit, params, Trial(0), data)),
    }
    other = make_params(pretrain_mat=make_run("mat_t", epochs=2))
    assert key_of(parts_for(other.train_mmt, other, Trial(0), data)) != key_of(mmt)
    scratch = params.train_mmt.model_copy(update={"init": "scratch"})
    assert parts_for(scratch, params, Trial(0), data)["encoders"] == {} == encoder_runs(scratch, params)
    fewer = params.train_mmt.model_copy(update={"train_share": 0.25})
    assert {part: run.train_share for part, (_, run) in encoder_runs(fewer, params).items()} == {
        "audio": 0.25,
        "video": 0.25,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrain_mat": make_run(init="pretrained")}, "init pretrained is for models of both .*, not for mat_t"),
        ({"pretrain_mvit": None, "train_mmt": None}, "starts from pretrain_mvit, which is no run of video alone"),
        ({}, "starts from ast_t, which is no run of video alone"),
    ],
)
def test_encoders_that_cannot_be_are_refused(data, changes, words):
    params = make_params()
    mmt = params.train_mmt.model_copy(update={} if changes else {"encoders": {"video": "ast_t"}})
    params = params.model_copy(update=changes)
    with pytest.raises(ParamsError, match=words):
        parts_for(changes.get("pretrain_mat", mmt), params, Trial(0), data)


def test_the_key_that_is_planned_is_the_one_that_is_trained(features, data, tmp_path):
    params = make_params(seeds=(0, 2))
    runs = {(name, trial.seed): parts for name, trial, parts in planned(params, data)}
    assert set(runs) == {(name, seed) for name in params.runs for seed in (0, 2)}
    given = dict(seed=2, features=features, runs=tmp_path, init={}, device="cpu")
    assert Trainer(params.pretrain_mat, params.training, **given).key == key_of(runs["pretrain_mat", 2])


def test_runs_whose_computation_changed_later_have_other_keys(data):
    recipe, heads = make_recipe(), data | {"heads": [["verb", ["a", "b"]], ["noun", ["c", "d"]]]}
    for known, changed in ((data, 0), (heads, 1), (data | {"multilabel": True}, 1)):
        for share in (0.5, 1.0):
            parts = parts_of(make_run("mat_t", train_share=share), recipe, Trial(0), known, {})
            assert parts["numerics"] == experiment.NUMERICS["mat"] + changed * (share < 1)
    robust = make_run("mmt_t", robustness=True)
    versions = [
        parts_of(robust, recipe, Trial(0), data | {"settings": settings}, {})["conditions"]["version"]
        for settings in ({}, {"motion": True})
    ]
    assert versions == [experiment.CORRUPTION, experiment.CORRUPTION + 1]


def test_neither_the_defaults_nor_the_wording_of_a_model_are_part_of_a_key():
    plainly, in_full = make_run("mat_t", overrides={}), make_run("mat_t", overrides=resolved("mat_t", {}))
    assert plain(plainly) == plain(in_full)
    assert plain(plainly) != plain(make_run("mat_t", overrides={"dim": 8}))
    of_both = {"audio": resolved("mat_t", {})}
    assert plain(make_run("mmt_t", overrides={})) == plain(make_run("mmt_t", overrides=of_both))


@pytest.mark.parametrize("recompute", [True, False, "blocks"])
def test_what_is_computed_again_is_no_part_of_a_key(recompute):
    again = {"recompute": recompute}
    for name, overrides in (("mat_s", again), ("mmt_s", {"audio": again, "video": again})):
        assert plain(make_run(name, overrides=overrides)) == plain(make_run(name, overrides={}))


# Runs that are kept.


def put(folder, run: Run, recipe, data, **about) -> Kept:
    parts = parts_of(run, recipe, Trial(0), data, {})
    one = kept(folder, parts)
    keep(one, b"a table", {"parts": parts, "history": "epoch\n1\n"} | made_with() | about)
    return one


def test_a_kept_run_says_what_it_is_and_a_run_that_is_not_kept_what_differs(data, tmp_path, monkeypatch):
    recipe, run = make_recipe(), make_run("mat_t", epochs=1)
    for lr in (1e-3, 2e-3):
        put(tmp_path / "kept", run.model_copy(update={"lr": lr}), recipe, data)
    first = next(one for one in kept_runs(tmp_path / "kept") if one.about["parts"]["run"]["lr"] == 1e-3)
    parts = first.about["parts"]
    assert {"run", "recipe", "seed", "fold", "data", "encoders", "numerics", "conditions"} == parts.keys()
    assert run_of(parts) == Run.model_validate(plain(run) | {"lr": 1e-3})
    assert parts["run"]["overrides"]["dim"] == 8
    assert re.fullmatch(r"[0-9a-f]{40}.*|unknown", first.about["commit"])
    same = parts_of(run.model_copy(update={"lr": 1e-3}), recipe, Trial(0), data, {})
    assert is_kept(kept(tmp_path / "kept", same))
    noisy = parts_of(run.model_copy(update={"lr": 1e-3}), make_recipe(noise=0.1), Trial(0), data, {})
    assert not is_kept(kept(tmp_path / "kept", noisy))
    assert why_not(tmp_path / "kept", noisy) == "recipe.noise: 0.0 is kept, 0.1 is wanted"
    monkeypatch.setitem(NUMERICS, "mat", 2)
    later = parts_of(run.model_copy(update={"lr": 2e-3}), recipe, Trial(0), data, {})
    assert why_not(tmp_path / "kept", later) == "numerics: 1 is kept, 2 is wanted"
    assert why_not(tmp_path / "nowhere", later) == f"no run is kept in {tmp_path / 'nowhere'}"


def test_a_run_half_written_is_not_kept(data, tmp_path):
    one = put(tmp_path, make_run(), make_recipe(), data)
    assert kept_runs(tmp_path) == [one]
    one.predictions.with_suffix(".json").unlink()
    assert (is_kept(one), kept_runs(tmp_path)) == (False, [])


def test_differences_are_told_field_by_field():
    wanted, found = {"a": {"b": 1, "c": [2]}, "d": None}, {"a": {"b": 2, "c": [2]}, "e": 3}
    assert list(differences(wanted, found)) == ["a.b: 2 is kept, 1 is wanted", "e: 3 is kept, null is wanted"]
    assert list(differences(wanted, wanted)) == []
