"""The training loop on a toy set: it learns, resumes after a kill with the same result, never sees the test split."""

import contextlib
import itertools
import json
import math
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from toy_features import AUDIO, CLASSES, MVIT, OVERRIDES, VIDEO, make_recipe, make_run, write_features

from mmtlib.config import Objective, ParamsError
from mmtlib.data.dataset import Batch, DatasetError, FeatureDataset, share_of
from mmtlib.evaluation.predictions import usable
from mmtlib.losses import audio_video_contrastive, intra_modal_contrastive
from mmtlib.models import AVOutput, build_model
from mmtlib.models.hub import load_encoder, load_weights
from mmtlib.training import loop as trainer_module
from mmtlib.training import optim
from mmtlib.training.loop import Trainer, input_sizes
from mmtlib.training.optim import choose_precision, one_hot, parameter_groups, training_loss, warmup_cosine

ROUGH = {
    "spec_augment": {"time_masks": 1, "time_width": 8, "freq_masks": 1, "freq_width": 6},
    "crop_scale": 0.6,
    "flip": True,
    "flip_except": ["dog"],
    "mixup": 0.4,
    "gain": 0.3,
    "noise": 0.3,
    "label_smoothing": 0.1,
    "warmup_epochs": 0.5,
}
"""Everything that draws random numbers; the tiny models drop paths too."""

CONTRAST = {"avc": 0.1, "imc": 0.1}


class KilledError(Exception):
    """Stands for a machine that goes away."""


def kill_in(patch, where, number):
    """Let a method of Trainer raise KilledError in its call `number`, counted from 0."""
    original, count = getattr(Trainer, where), itertools.count()

    def killed(self, *given):
        if next(count) == number:
            raise KilledError
        return original(self, *given)

    patch.setattr(Trainer, where, killed)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("toy") / "data/features")


def make_trainer(features, runs, run=None, recipe=None, *, seed=0, init=None) -> Trainer:
    return Trainer(
        run or make_run(),
        recipe or make_recipe(),
        seed=seed,
        features=features,
        runs=runs,
        init=init or {},
        device="cpu",
    )


def fit(trainer: Trainer) -> pd.DataFrame:
    return trainer.fit(log=lambda line: None)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# It learns.


@pytest.mark.parametrize("model", OVERRIDES)
def test_the_loss_falls_and_validation_beats_chance(features, tmp_path, model):
    objective = CONTRAST if model == "mmt_t" else {}
    trainer = make_trainer(features, tmp_path, make_run(model, epochs=8, objective=objective))
    history = fit(trainer)
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]
    assert history["val_top1"].max() >= 75.0  # chance is 25
    assert history["epoch"].tolist() == list(range(1, 9))
    parts = {"epoch", "lr", "loss", "ce", "val_loss", "val_top1", "seconds"}
    assert set(history.columns) == (parts | {"avc", "imc"} if model == "mmt_t" else parts)


def test_shuffled_labels_are_not_learned(tmp_path):
    """Partner of the test above: no way leads from the validation labels into the model."""
    folder = write_features(tmp_path / "features")
    index = pd.read_csv(folder / "index.csv")
    rng = np.random.default_rng(4)
    for _, rows in index.groupby("split").groups.items():
        index.loc[rows, "label"] = rng.permutation(index.loc[rows, "label"])
    index.to_csv(folder / "index.csv", index=False)
    history = fit(make_trainer(folder, tmp_path, make_run(epochs=6)))
    assert history["val_top1"].max() < 60.0


def test_the_reported_validation_figures_are_those_of_the_model_kept(features, tmp_path):
    trainer = make_trainer(features, tmp_path)
    history = fit(trainer)
    best = history.sort_values(["val_top1", "val_loss"], ascending=[False, True]).iloc[0]
    val = FeatureDataset(features, "val")
    batch = val.batch(range(len(val)))
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(batch.audio)
    assert 100 * (logits.argmax(1) == batch.labels).float().mean().item() == pytest.approx(best["val_top1"])
    assert torch.nn.functional.cross_entropy(logits, batch.labels).item() == pytest.approx(best["val_loss"], rel=1e-4)


# It goes on after a kill.


@pytest.fixture(scope="module")
def uninterrupted(features, tmp_path_factory):
    """An audio-video run with everything random switched on, and what it gave."""
    run, recipe = make_run("mmt_t", objective=CONTRAST), make_recipe(**ROUGH)
    trainer = make_trainer(features, tmp_path_factory.mktemp("runs"), run, recipe)
    history = fit(trainer)
    return run, recipe, weights(trainer), history.drop(columns="seconds"), trainer.optimizer.state_dict()


# Four steps an epoch (32 clips by 8). Killed in the first epoch, between two, within one, in the last.
@pytest.mark.parametrize("steps_done", [2, 4, 6, 8, 11])
def test_a_run_killed_while_training_ends_as_if_nothing_had_happened(
    features, tmp_path, uninterrupted, monkeypatch, steps_done
):
    run, recipe, want, want_history, want_optimizer = uninterrupted
    with monkeypatch.context() as patch:
        kill_in(patch, "step", steps_done)
        with pytest.raises(KilledError):
            fit(make_trainer(features, tmp_path, run, recipe))
    torch.rand(13)  # whatever happened in between
    lines = []
    trainer = make_trainer(features, tmp_path, run, recipe)
    history = trainer.fit(log=lines.append)
    assert equal(weights(trainer), want)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), want_history, check_exact=True)
    if steps_done >= 4:
        assert f"after epoch {steps_done // 4} of 3" in lines[0]
        assert len(lines) == 1 + 3 - steps_done // 4
    got = trainer.optimizer.state_dict()["state"]
    for key, state in want_optimizer["state"].items():
        assert all(torch.equal(got[key][name], value) for name, value in state.items())


@pytest.mark.parametrize("where", ["_validate", "_save"])
def test_a_run_killed_after_an_epoch_repeats_that_epoch(features, tmp_path, uninterrupted, monkeypatch, where):
    run, recipe, want, want_history, _ = uninterrupted
    with monkeypatch.context() as patch:
        kill_in(patch, where, 1)
        with pytest.raises(KilledError):
            fit(make_trainer(features, tmp_path, run, recipe))
    trainer = make_trainer(features, tmp_path, run, recipe)
    history = fit(trainer)
    assert equal(weights(trainer), want)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), want_history, check_exact=True)


def test_a_kill_while_the_checkpoint_is_written_leaves_the_old_one(features, tmp_path, uninterrupted, monkeypatch):
    run, recipe, want, _, _ = uninterrupted
    original, count = os.fdopen, itertools.count()

    def write_a_part(handle, mode):
        file = original(handle, mode)
        if next(count) == 1:
            file.write(100 * b"x")
            file.close()
            raise KilledError
        return file

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", write_a_part)
        with pytest.raises(KilledError):
            fit(make_trainer(features, tmp_path, run, recipe))
    trainer = make_trainer(features, tmp_path, run, recipe)
    assert fit(trainer)["epoch"].tolist() == [1, 2, 3]
    assert equal(weights(trainer), want)


def test_another_seed_gives_another_result(features, tmp_path, uninterrupted):
    """Partner: the equalities above are not those of models that never move."""
    run, recipe, want, _, _ = uninterrupted
    trainer = make_trainer(features, tmp_path, run, recipe, seed=1)
    fit(trainer)
    assert not equal(weights(trainer), want)


def test_a_finished_run_is_not_trained_again(features, tmp_path, monkeypatch):
    first = make_trainer(features, tmp_path)
    history = fit(first)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(Trainer, "_validate", lambda *_: pytest.fail("validated again"))
    again, lines = make_trainer(features, tmp_path), []
    pd.testing.assert_frame_equal(again.fit(log=lines.append), history, check_exact=True)
    assert equal(weights(again), weights(first))
    assert "was trained already" in lines[0]
    assert len(lines) == 1


@pytest.fixture
def batches_seen(monkeypatch) -> list[Batch]:
    """The batches of every optimiser step, as they come."""
    seen, original = [], Trainer.step

    def step(self, batch, *rest):
        seen.append(batch)
        return original(self, batch, *rest)

    monkeypatch.setattr(Trainer, "step", step)
    return seen


def test_every_epoch_takes_each_clip_once_in_another_order(features, tmp_path, batches_seen):
    fit(make_trainer(features, tmp_path, make_run(epochs=2)))
    clips = torch.cat([batch.audio.sum((1, 2, 3)) for batch in batches_seen]).view(2, 32)
    assert not torch.equal(clips[0], clips[1])
    torch.testing.assert_close(clips[0].sort().values, clips[1].sort().values)


def test_balanced_batches_show_rare_classes_as_often_as_common_ones(tmp_path, batches_seen):
    folder = write_features(tmp_path / "features")
    index = pd.read_csv(folder / "index.csv")
    train = index["split"] == "train"
    rare = train & (index["label"] == CLASSES[0])
    index.loc[rare & (rare.cumsum() > 2), "label"] = CLASSES[1]
    index.to_csv(folder / "index.csv", index=False)
    recipe = make_recipe(balanced=True)
    assert make_trainer(folder, tmp_path).key != make_trainer(folder, tmp_path, recipe=recipe).key
    fit(make_trainer(folder, tmp_path, make_run(epochs=20), recipe))
    seen = torch.cat([batch.labels for batch in batches_seen]).bincount()
    assert (seen / seen.sum()).tolist() == pytest.approx([1 / len(CLASSES)] * len(CLASSES), abs=0.06)


def test_every_epoch_draws_other_augmentation(features, tmp_path, batches_seen, monkeypatch):
    monkeypatch.setattr(trainer_module, "epoch_batches", lambda n, size, *_: torch.arange(n).split(size))
    fit(make_trainer(features, tmp_path, make_run(epochs=2), make_recipe(noise=0.3)))
    assert torch.equal(batches_seen[0].labels, batches_seen[4].labels)
    assert not torch.equal(batches_seen[0].audio, batches_seen[4].audio)
    batches_seen.clear()
    fit(make_trainer(features, tmp_path, make_run(epochs=2)))
    assert torch.equal(batches_seen[0].audio, batches_seen[4].audio), "partner: without noise they are the same"


def test_the_checkpoint_lies_in_the_folder_of_the_key(features, tmp_path):
    trainer = make_trainer(features, tmp_path / "runs", make_run(epochs=1))
    fit(trainer)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == f"{trainer.key}-{trainer.train.fingerprint[:8]}"
    assert trainer.checkpoint == folder / "last.pt"
    assert trainer.checkpoint.is_file()
    assert not list(trainer.checkpoint.parent.glob("*.tmp"))


def test_a_share_of_the_clips_is_of_each_class_and_within_a_larger_share(features):
    train = FeatureDataset(features, "train")
    everyone = usable(train, "av")
    assert share_of(train, everyone, 1.0) is everyone
    shares = {share: share_of(train, everyone, share) for share in (0.01, 0.25, 0.5)}
    for share, count in ((0.01, 1), (0.25, 2), (0.5, 4)):
        assert train.labels[shares[share]].bincount().tolist() == [count] * 4
    assert set(shares[0.25].tolist()) < set(shares[0.5].tolist())


@pytest.mark.parametrize(
    ("labels", "about"),
    [
        (lambda table: table["label"] + "|" + table["clip_id"], {"multilabel": True}),
        (lambda table: table["label"], {"heads": {"verb": CLASSES, "noun": ["one", "other"]}}),
    ],
)
def test_a_share_of_clips_of_several_labels_or_heads_is_a_share_too(tmp_path, labels, about):
    folder = write_features(tmp_path / "features")
    index, stats = pd.read_csv(folder / "index.csv"), json.loads((folder / "features.json").read_text())
    index = index.assign(verb=index["label"], noun=np.where(np.arange(len(index)) % 2, "one", "other"))
    index["label"] = labels(index)
    index.to_csv(folder / "index.csv", index=False)
    if "multilabel" in about:
        about = about | {"classes": [*CLASSES, *index["clip_id"]]}
    (folder / "features.json").write_text(json.dumps(stats | about))
    train = FeatureDataset(folder, "train")
    assert len(share_of(train, usable(train, "av"), 0.25)) == 2 * 4, "two of eight of each first label"


def test_with_fewer_clips_an_epoch_passes_over_them_more_often(features, tmp_path, batches_seen):
    trainer = make_trainer(features, tmp_path, make_run(epochs=1, train_share=0.25), make_recipe(batch_size=4))
    fit(trainer)
    assert [len(batch.labels) for batch in batches_seen] == [4] * 4, "8 clips, twice"
    assert [batch.labels.bincount(minlength=4).sum().item() for batch in batches_seen] == [4] * 4


def test_modality_dropout_reaches_the_model(features, tmp_path, batches_seen):
    fit(make_trainer(features, tmp_path, make_run("mmt_t", epochs=1, modality_dropout=0.8, objective=CONTRAST)))
    both = torch.cat([batch.has_audio & batch.has_video for batch in batches_seen])
    assert 0 < both.float().mean() < 0.6


# The best epoch.


def test_the_test_split_is_never_touched(features, tmp_path, monkeypatch):
    opened = []

    class Guarded(FeatureDataset):
        def __init__(self, root, split, fold=None):
            opened.append(split)
            assert split != "test", "the test split is for the end"
            super().__init__(root, split, fold)

    monkeypatch.setattr(trainer_module, "FeatureDataset", Guarded)
    fit(make_trainer(features, tmp_path, make_run(epochs=1)))
    assert set(opened) == {"train", "val"}


@pytest.mark.parametrize(
    ("curve", "best"),
    [
        ([(50.0, 1.0), (75.0, 1.2), (60.0, 0.5)], 2),  # top-1 decides
        ([(50.0, 1.0), (50.0, 0.8), (50.0, 0.9)], 2),  # of equals, the loss
        ([(50.0, 1.0), (50.0, 1.0), (50.0, 1.0)], 1),  # of the very same, the first
        ([(10.0, 3.0), (20.0, 2.0), (30.0, 1.0)], 3),
    ],
)
def test_the_weights_of_the_best_epoch_on_validation_are_kept(features, tmp_path, monkeypatch, curve, best):
    seen = []

    def validate(self):
        seen.append(weights(self))
        top1, loss = curve[len(seen) - 1]
        return {"val_top1": top1, "val_loss": loss}

    monkeypatch.setattr(Trainer, "_validate", validate)
    trainer = make_trainer(features, tmp_path)
    fit(trainer)
    assert equal(weights(trainer), seen[best - 1])
    assert not equal(seen[best - 1], seen[best % 3])


def test_the_best_epoch_survives_a_kill(features, tmp_path, monkeypatch):
    """Best is epoch 1; the run dies in epoch 3."""
    tops, seen = iter([90.0, 50.0, 50.0]), []

    def validate(self):
        seen.append(weights(self))
        return {"val_top1": next(tops), "val_loss": 1.0}

    monkeypatch.setattr(Trainer, "_validate", validate)
    kill_in(monkeypatch, "step", 9)
    with pytest.raises(KilledError):
        fit(make_trainer(features, tmp_path))
    trainer = make_trainer(features, tmp_path)
    fit(trainer)
    assert equal(weights(trainer), seen[0])


# Optimiser, schedule, precision.


@pytest.mark.parametrize("name", ["mat_t", "mvitv2_t", "mmt_t", "ast_t", "mbt_t"])
def test_no_weight_decay_on_vectors_tokens_and_position_tables(name):
    model = build_model(name, 3)
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    ids = {id(p) for p in decayed["params"]}, {id(p) for p in plain["params"]}
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {id(p) for p in model.parameters()}
    for parameter_name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and not any(
            word in parameter_name for word in ("token", "position", "rel_pos", "fusion.bottleneck", "fusion.modality")
        )
        assert (id(parameter) in ids[0]) == matrix, parameter_name


def test_concat_fusions_modality_marks_are_not_decayed_but_its_blocks_are():
    model = build_model("mmt_t", 3, fusion="concat")
    decayed, plain = ({id(p) for p in group["params"]} for group in parameter_groups(model, 0.1))
    assert id(model.fusion.modality) in plain
    assert id(model.fusion.blocks[0].linear1.weight) in decayed


def test_warm_up_then_half_a_cosine():
    factor = warmup_cosine(4, 12)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    assert factor(8) == pytest.approx(0.5)
    assert factor(6) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factor(12) == pytest.approx(0.0)
    assert factor(99) == pytest.approx(0.0)
    assert 0 < factor(11) < 0.05, "the last step still moves"
    assert warmup_cosine(0, 10)(0) == 1.0
    values = [factor(step) for step in range(4, 13)]
    assert values == sorted(values, reverse=True)


def test_the_learning_rate_of_each_epoch_is_on_that_curve(features, tmp_path):
    trainer = make_trainer(features, tmp_path, make_run(lr=0.01), make_recipe(warmup_epochs=1.0))
    history = fit(trainer)
    want = [0.01 * warmup_cosine(4, 12)(step) for step in (0, 4, 8)]
    assert history["lr"].tolist() == pytest.approx(want)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize(("clip_norm", "clipped"), [(0.01, True), (0.0, False)])
def test_gradients_are_clipped_by_their_norm(features, tmp_path, clip_norm, clipped):
    trainer = make_trainer(features, tmp_path, recipe=make_recipe(clip_norm=clip_norm))
    batch = trainer.train.batch(range(8), "audio")
    trainer.optimizer.zero_grad = lambda **_: None  # so that they can be looked at
    trainer.step(batch, one_hot(batch.labels, [len(CLASSES)]), False)
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()
    assert (norm <= 0.01 * 1.001) == clipped


@pytest.mark.parametrize(
    ("wanted", "device", "has", "taken"),
    [("auto", "cuda", True, "bf16"), ("auto", "cuda", False, "fp32"), ("auto", "cpu", True, "fp32")]
    + [(wanted, device, True, wanted) for wanted in ("fp32", "bf16") for device in ("cpu", "cuda")],
)
def test_auto_is_bf16_on_a_gpu_that_has_it(monkeypatch, wanted, device, has, taken):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has)
    assert choose_precision(wanted, torch.device(device)) == taken


def test_bf16_learns_too(features, tmp_path):
    lines = []
    history = make_trainer(features, tmp_path, make_run(epochs=6), make_recipe(precision="bf16")).fit(lines.append)
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]
    assert history["val_top1"].max() >= 60.0


@pytest.mark.parametrize("emulated", [True, False])
def test_where_bf16_is_emulated_a_line_says_so_while_there_is_something_to_train(features, tmp_path, emulated):
    def lines_of(precision) -> str:
        lines = []
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KilledError):
            patch.setattr(optim, "emulates_bf16", lambda device: emulated)
            if not (tmp_path / "runs").exists():
                kill_in(patch, "_train_epoch", 1)
            recipe = make_recipe(precision=precision)
            make_trainer(features, tmp_path / "runs", make_run(epochs=2), recipe).fit(lines.append)
        return " ".join(lines)

    said = ["no bf16 of its own" in lines_of("bf16") for _ in range(3)]  # begun, resumed, finished
    assert said == [emulated, emulated, False]
    assert "no bf16 of its own" not in lines_of("fp32")


# What goes wrong is said in a sentence.


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_spoilt(features, tmp_path):
    trainer = make_trainer(features, tmp_path)
    with torch.no_grad():
        trainer.model.head.bias[0] = float("nan")
    before = trainer.model.encoder.norm.weight.clone()
    with pytest.raises(FloatingPointError, match=r"mat_t is nan; lower `lr`.*precision: fp32"):
        fit(trainer)
    assert torch.equal(trainer.model.encoder.norm.weight, before)
    assert not trainer.checkpoint.exists()


def test_missing_features_say_what_to_run(tmp_path):
    with pytest.raises(DatasetError, match=r"is missing.*mmt features --params FILE"):
        make_trainer(tmp_path / "nothing", tmp_path)


def test_an_encoder_of_other_settings_is_refused(features, tmp_path):
    _save_encoder(tmp_path / "video.safetensors", "mvitv2_t", overrides=MVIT | {"dim": 16})
    with pytest.raises(ValueError, match=r"does not fit.*overrides"):
        make_trainer(features, tmp_path, make_run("mmt_t"), init={"video": tmp_path / "video.safetensors"})


@pytest.mark.parametrize("model", ["mat_t", "mvitv2_t"])
def test_a_model_without_encoders_cannot_start_from_pretrained_ones(features, tmp_path, model):
    _save_encoder(tmp_path / "audio.safetensors", "mat_t")
    with pytest.raises(ValueError, match=f"{model}.*scratch"):
        make_trainer(features, tmp_path, make_run(model), init={"audio": tmp_path / "audio.safetensors"})


def test_an_unknown_model_is_refused(features, tmp_path):
    with pytest.raises(ValueError, match="no model is called 'mat_x'"):
        make_trainer(features, tmp_path, make_run("mat_x"))


def test_a_set_without_sound_is_refused_by_a_model_of_sound(tmp_path):
    folder = write_features(tmp_path / "features", silent=tuple(range(32, 44)))
    with pytest.raises(ValueError, match=r"no val clip has what mat_t reads \(audio\)"):
        make_trainer(folder, tmp_path)
    make_trainer(folder, tmp_path, make_run("mvitv2_t"))


# Clips that lack a modality, and the objective.


def test_only_clips_that_a_model_can_read_train_it(tmp_path, batches_seen):
    folder = write_features(tmp_path / "features", silent=tuple(range(0, 32, 2)), blind=(1,))
    trainer = make_trainer(folder, tmp_path, make_run(epochs=1))
    assert trainer.views == [[row] for row in range(1, 32, 2)]
    fit(trainer)
    assert all(batch.has_audio.all() for batch in batches_seen)
    assert sum(len(batch.labels) for batch in batches_seen) == 16
    batches_seen.clear()
    history = fit(make_trainer(folder, tmp_path, make_run("mmt_t", epochs=1, objective=CONTRAST)))
    assert sum(len(batch.labels) for batch in batches_seen) == 32
    assert any(not batch.has_audio.all() for batch in batches_seen)
    assert np.isfinite(history[["loss", "avc", "imc"]].to_numpy()).all()


def made_up_output(n: int = 6) -> tuple[AVOutput, Batch]:
    z = [torch.nn.functional.normalize(torch.randn(n, 4), dim=1) for _ in range(2)]
    output = AVOutput(torch.randn(n, 3), torch.randn(n, 3), torch.randn(n, 3), *z)
    labels = torch.tensor([0, 1, 0, 1, 2, 2])
    has_audio = torch.tensor([True, True, True, True, True, False])
    has_video = torch.tensor([True, True, True, False, True, True])
    return output, Batch(None, None, labels, has_audio, has_video)


def loss_of(output, batch: Batch, objective: Objective, label_smoothing: float = 0.0):
    return training_loss(output, batch, one_hot(batch.labels, [3]), objective, label_smoothing, [3])


def test_the_objective_is_the_weighted_sum_of_its_parts():
    output, batch = made_up_output()
    objective = Objective(avc=0.3, imc=0.7, temperature=0.2)
    loss, parts = loss_of(output, batch, objective, 0.1)
    ce = torch.nn.functional.cross_entropy(output.logits, batch.labels, label_smoothing=0.1)
    both = [0, 1, 2, 4]
    avc = audio_video_contrastive(output.audio_embedding[both], output.video_embedding[both], batch.labels[both], 0.2)
    sound, picture = [0, 1, 2, 3, 4], [0, 1, 2, 4, 5]  # a clip counts where it has the modality
    imc = intra_modal_contrastive(output.audio_embedding[sound], batch.labels[sound], 0.2)
    imc = imc + intra_modal_contrastive(output.video_embedding[picture], batch.labels[picture], 0.2)
    assert parts["ce"] == pytest.approx(ce.item())
    assert parts["avc"] == pytest.approx(avc.item(), rel=1e-5)
    assert parts["imc"] == pytest.approx(imc.item(), rel=1e-5)
    assert loss.item() == pytest.approx((ce + 0.3 * avc + 0.7 * imc).item(), rel=1e-5)
    assert parts["loss"] == pytest.approx(loss.item())


def test_parts_of_no_weight_are_left_out():
    output, batch = made_up_output()
    loss, parts = loss_of(output, batch, Objective(), 0.0)
    assert set(parts) == {"loss", "ce"}
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(output.logits, batch.labels).item())
    assert set(loss_of(output, batch, Objective(avc=1.0), 0.0)[1]) == {"loss", "ce", "avc"}


@pytest.mark.parametrize("setting", [{"objective": {"avc": 0.1}}, {"modality_dropout": 0.1}, {"robustness": True}])
def test_what_needs_both_modalities_is_refused_for_one(features, tmp_path, setting):
    with pytest.raises(ParamsError, match="mat_t reads audio alone: AVC, modality dropout and robustness are not for"):
        make_trainer(features, tmp_path, make_run(model="mat_t", **setting))


def test_one_class_alone_is_refused(features, tmp_path):
    one = shutil.copytree(features, tmp_path / "one")
    index = pd.read_csv(one / "index.csv").assign(label="dog")
    index.to_csv(one / "index.csv", index=False)
    about = json.loads((one / "features.json").read_text())
    (one / "features.json").write_text(json.dumps(about | {"classes": ["dog"]}))
    with pytest.raises(ValueError, match="all clips are of one class"):
        make_trainer(one, tmp_path)


def test_a_model_of_one_modality_has_imc_and_no_avc():
    output, batch = made_up_output()
    alone = output._replace(video_logits=None, video_embedding=None)
    loss, parts = loss_of(alone, batch, Objective(avc=1.0, imc=0.5, temperature=0.2), 0.0)
    sound = [0, 1, 2, 3, 4]
    imc = intra_modal_contrastive(output.audio_embedding[sound], batch.labels[sound], 0.2)
    assert set(parts) == {"loss", "ce", "imc"}
    assert loss.item() == pytest.approx(parts["ce"] + 0.5 * imc.item(), rel=1e-5)


def test_soft_targets_weigh_the_classes():
    output, batch = made_up_output()
    targets = torch.full((6, 3), 1 / 3)
    want = -output.logits.log_softmax(1).mean()
    assert training_loss(output, batch, targets, Objective(), 0.0, [3])[0].item() == pytest.approx(
        want.item(), rel=1e-5
    )


def test_positives_of_the_contrastive_losses_are_those_of_the_mix_not_of_the_clip_that_it_began_with():
    output, batch = made_up_output()
    objective = Objective(avc=1.0, imc=1.0)
    whole = torch.tensor([1, 1, 2, 0, 0, 2])  # a mix that is all of another clip
    _, parts = training_loss(output, batch, one_hot(whole, [3]), objective, 0.0, [3])
    assert parts == pytest.approx(loss_of(output, batch._replace(labels=whole), objective)[1])
    assert parts["avc"] != pytest.approx(loss_of(output, batch, objective)[1]["avc"], rel=1e-2)


def test_a_batch_without_a_clip_of_both_modalities_has_a_finite_loss():
    output, batch = made_up_output()
    output = AVOutput(*(value.requires_grad_() for value in output))
    none = batch._replace(
        has_audio=torch.tensor([True] * 3 + [False] * 3), has_video=torch.tensor([False] * 3 + [True] * 3)
    )
    loss, parts = loss_of(output, none, Objective(avc=1.0, imc=1.0), 0.0)
    loss.backward()
    assert parts["avc"] == 0.0
    assert output.audio_embedding.grad.isfinite().all()


def test_models_are_sized_for_the_features(features):
    train = FeatureDataset(features, "train")
    assert {key: tuple(value) for key, value in input_sizes(train).items()} == {
        "audio_size": AUDIO,
        "video_size": VIDEO,
    }


# Encoders.


def _save_encoder(path, name: str, seed: int = 0, overrides: dict | None = None) -> None:
    overrides = overrides or OVERRIDES[name]
    sizes = {"audio_size": list(AUDIO)} if name == "mat_t" else {"video_size": list(VIDEO)}
    torch.manual_seed(seed)
    model = build_model(name, len(CLASSES), **sizes, **overrides)
    trainer_module.save_model(path, model, name=name, num_classes=len(CLASSES), overrides=sizes | overrides)


def test_load_encoder_takes_the_encoder_and_leaves_the_head(tmp_path):
    _save_encoder(tmp_path / "a.safetensors", "mat_t", seed=3)
    tensors, _ = load_weights(tmp_path / "a.safetensors")
    model = build_model("mmt_t", 4, audio_size=AUDIO, video_size=VIDEO, **OVERRIDES["mmt_t"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_encoder(model.audio_encoder, tensors)
    for name, value in model.state_dict().items():
        if name.startswith("audio_encoder."):
            assert torch.equal(value, tensors["encoder." + name.removeprefix("audio_encoder.")])
        else:
            assert torch.equal(value, before[name])


def test_load_encoder_interpolates_the_positions_of_another_input_size(tmp_path):
    _save_encoder(tmp_path / "a.safetensors", "mat_t", seed=3)
    tensors, _ = load_weights(tmp_path / "a.safetensors")
    longer = (2 * AUDIO[0], AUDIO[1])
    model = build_model("mmt_t", 4, audio_size=longer, video_size=VIDEO, **OVERRIDES["mmt_t"])
    load_encoder(model.audio_encoder, tensors)
    want = build_model("mat_t", 4, audio_size=AUDIO, **OVERRIDES["mat_t"])
    want.load_state_dict(tensors)
    sound = torch.randn(1, 1, *longer)
    with torch.no_grad():  # which interpolates them whenever it is called
        torch.testing.assert_close(model.audio_encoder.eval()(sound)[0], want.encoder.eval()(sound)[0])


@pytest.mark.parametrize(("room", "words"), [(3, "but for 2; set training.accumulate: 8"), (0, "raise training.acc")])
def test_too_little_memory_is_said_with_the_batch_that_fits(features, tmp_path, monkeypatch, room, words):
    trainer = make_trainer(features, tmp_path, recipe=make_recipe(batch_size=16, accumulate=2))
    read = trainer.model.read

    def limited(audio, *rest):
        if len(audio) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return read(audio, *rest)

    monkeypatch.setattr(trainer.model, "read", limited)
    with pytest.raises(ParamsError, match=f"^The GPU has no memory for 8 clips of mat_t(, |; ){words}"):
        trainer.fit(log=lambda line: None)
