"""Clips with several labels, from a CSV to the report; single labels are the measure where both must agree."""

import json
import math
import runpy
import wave
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_sets import clip
from real_sets import csv_text, put
from sklearn.metrics import f1_score
from toy_features import CLASSES, make_params, make_recipe, make_run, write_features

from mmtlib.config import ROOT
from mmtlib.data import ManifestError
from mmtlib.data.augment import Draws, random_flip
from mmtlib.data.dataset import FeatureDataset, epoch_generator
from mmtlib.data.features import FeatureError, extract_features
from mmtlib.data.sources.survey import survey
from mmtlib.evaluation.occlusion import occlusion
from mmtlib.evaluation.predictions import predict, read_predictions
from mmtlib.evaluation.scores import label_scores, probabilities, scores, thresholds
from mmtlib.evaluation.stats import bootstrap
from mmtlib.folders import Folders
from mmtlib.losses import audio_video_contrastive, intra_modal_contrastive, shared
from mmtlib.models import build_model
from mmtlib.models.hub import load_model
from mmtlib.predict import as_json, as_text, predict_file
from mmtlib.training.loop import Trainer
from mmtlib.training.optim import cross_entropy, one_hot
from mmtlib.training.stage import train_runs
from study.report import write_report
from study.tables.clips import map_parts

build = partial(survey, "folder", workers=1)


def targets(clips: int, classes: int, seed: int = 0) -> np.ndarray:
    """Some of the labels; every class has a clip and lacks one."""
    found = (np.random.default_rng(seed).random((clips, classes)) < 0.4).astype(np.uint8)
    found[0], found[1] = 1, 0
    return found


def logits_of(wanted: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(100 + seed)
    return (wanted + rng.normal(0, noise, wanted.shape)).astype(np.float32)


def write_wave(path, sound, rate):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.rint(16000 * sound).astype("<i2").tobytes())


# Losses.


def test_the_jaccard_index_by_hand():
    labels = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]])
    want = [[1, 1 / 3, 0, 1], [1 / 3, 1, 0, 1 / 3], [0, 0, 0, 0], [1, 1 / 3, 0, 1]]
    torch.testing.assert_close(shared(labels), torch.tensor(want))


def test_clips_that_are_mixed_share_what_both_have_of_a_class():
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.3, 0.7, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    want = [[1, 0.6 / 1.4, 0, 0.7 / 1.3], [0.6 / 1.4, 1, 0, 0.3 / 1.7], [0, 0, 1, 0], [0.7 / 1.3, 0.3 / 1.7, 0, 1]]
    torch.testing.assert_close(shared(shares), torch.tensor(want))


def test_clips_of_one_label_each_give_what_single_labels_give():
    single, audio, video = torch.tensor([0, 2, 0, 1, 2]), torch.randn(5, 6), torch.randn(5, 6)
    several = torch.nn.functional.one_hot(single, 3)
    for loss, z in ((audio_video_contrastive, (audio, video)), (intra_modal_contrastive, (audio,))):
        torch.testing.assert_close(loss(*z, several), loss(*z, single))


def test_positives_that_share_less_weigh_less():
    z = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1)
    labels = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 0]])
    similar = z @ z.T / 0.5
    total = 0.0
    for anchor, weights in enumerate([{1: 1.0, 2: 0.5}, {0: 1.0, 2: 0.5}, {0: 0.5, 1: 0.5}]):
        others = [similar[anchor, other] for other in range(3) if other != anchor]
        losses = {other: torch.logsumexp(torch.stack(others), 0) - similar[anchor, other] for other in weights}
        total += sum(weights[other] * losses[other] for other in weights) / sum(weights.values())
    torch.testing.assert_close(intra_modal_contrastive(z, labels, 0.5), total / 3)


def test_the_loss_is_the_binary_cross_entropy():
    logits, labels = torch.randn(4, 3), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.int8)
    chance = logits.sigmoid()
    for smoothing in (0.0, 0.2):
        wanted = labels * (1 - smoothing) + smoothing / 2
        want = -(wanted * chance.log() + (1 - wanted) * (1 - chance).log()).mean()
        found = cross_entropy(logits, one_hot(labels, [1, 1, 1]), [1, 1, 1], smoothing)
        torch.testing.assert_close(found, want)
    torch.testing.assert_close(probabilities(logits, [1, 1, 1]), chance)


def test_a_clip_is_mirrored_only_if_all_of_its_labels_may_be():
    labels = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.int8).repeat(10, 1)
    video = torch.arange(4.0).expand(40, 1, 1, 1, 4)
    flipped = random_flip(video, labels, Draws(epoch_generator(0, 0)), torch.tensor([True, False, True]))
    changed = (flipped != video).flatten(1).any(1).view(10, 4).any(0)
    assert changed.tolist() == [True, False, True, True]


# Scores.


def slow_precision(logits: np.ndarray, wanted: np.ndarray) -> float:
    """Average precision from its definition: at each wanted clip the share of wanted ones down to it."""
    order = np.argsort(-logits)
    return float(np.mean([wanted[order[: place + 1]].mean() for place in range(len(order)) if wanted[order[place]]]))


def slow_area(logits: np.ndarray, wanted: np.ndarray) -> float:
    """The share of pairs, one wanted and one not, in which the wanted one has the higher logit."""
    return float(np.mean(logits[wanted == 1][:, None] > logits[wanted == 0][None, :]))


def test_map_auc_and_dprime_follow_from_their_definitions():
    wanted = targets(60, 5)
    logits = logits_of(wanted, 1.0)
    found = label_scores(torch.from_numpy(logits), torch.from_numpy(wanted))
    pairs = list(zip(logits.T, wanted.T, strict=True))
    area = np.mean([slow_area(*pair) for pair in pairs])
    assert found["map"] == pytest.approx(100 * np.mean([slow_precision(*pair) for pair in pairs]), abs=1e-6)
    assert found["auc"] == pytest.approx(100 * area, abs=1e-6)
    # d' = sqrt(2) z(area): a standard normal lies below d' / sqrt(2) with that probability
    assert 0.5 * (1 + math.erf(found["dprime"] / 2)) == pytest.approx(area, abs=1e-6)


def test_a_class_that_no_clip_has_or_all_have_does_not_count():
    wanted = targets(40, 4)
    logits = logits_of(wanted, 0.8)
    more = np.concatenate([wanted, np.zeros((40, 1), np.uint8), np.ones((40, 1), np.uint8)], axis=1)
    assert label_scores(np.concatenate([logits, logits[:, :2]], axis=1), more) == label_scores(logits, wanted)


def test_clips_that_cannot_be_scored_are_an_error():
    with pytest.raises(ValueError, match="no class is in some of 3 clips but not in all, so mAP is undefined"):
        label_scores(np.zeros((3, 2), np.float32), np.array([[1, 0]] * 3))


def test_the_parts_of_clips_are_those_of_the_jackknife():
    wanted = targets(30, 3)
    wanted[:, 2] = 0
    wanted[4, 2] = 1  # a class of one clip: without it there is none
    logits = logits_of(wanted, 0.7)
    parts = map_parts(logits, wanted)
    assert parts.mean() == pytest.approx(label_scores(logits, wanted)["map"])
    moved = np.zeros(30)
    for clip_number in range(30):
        rest = np.arange(30) != clip_number
        for kind in range(3):
            if wanted[rest, kind].any():
                whole = slow_precision(logits[:, kind], wanted[:, kind])
                moved[clip_number] += 100 * 29 * (whole - slow_precision(logits[rest, kind], wanted[rest, kind])) / 3
    assert parts - parts.mean() == pytest.approx(moved - moved.mean(), abs=1e-6)


def test_their_bootstrap_is_near_that_of_map_itself():
    wanted = targets(300, 4)
    logits = logits_of(wanted, 1.0)
    _, lower, upper = bootstrap(pd.DataFrame({0: map_parts(logits, wanted)}), 1000, 0.95)
    rng, direct = np.random.default_rng(0), []
    for _ in range(300):
        drawn = rng.integers(0, 300, 300)
        direct.append(label_scores(logits[drawn], wanted[drawn])["map"])
    low, high = np.quantile(direct, [0.025, 0.975])
    assert upper - lower == pytest.approx(high - low, rel=0.2)


def test_a_threshold_is_that_of_the_best_f1():
    wanted = targets(40, 4)
    wanted[:, 3] = 0  # a class that no clip has
    logits = logits_of(wanted, 1.5)
    labels = [row.nonzero()[0] for row in wanted]
    table = pd.DataFrame({"modality": "audio", "label_index": labels, "logits": list(logits)})
    found = thresholds(table)
    assert list(found) == ["audio"]
    assert found["audio"][3] == 1
    for cut, scores_of, right in zip(found["audio"][:3], 1 / (1 + np.exp(-logits.T)), wanted.T, strict=False):
        f1 = {value: f1_score(right, scores_of >= value) for value in scores_of}
        assert f1_score(right, scores_of >= cut) == max(f1.values())
        assert 0 < cut < 1


def test_equal_probabilities_are_on_one_side_of_a_threshold():
    # The best F1 would be that of two of the three equal ones, which no threshold gives.
    labels = [np.array(found, int) for found in ([0], [0], [], [])]
    table = pd.DataFrame(
        {"modality": "audio", "label_index": labels, "logits": list(np.array([[2.0], [2], [2], [-1]]))}
    )
    (cut,) = thresholds(table)["audio"]
    assert cut == pytest.approx((1 / (1 + np.exp(-2)) + 1 / (1 + np.exp(1))) / 2)


# From a CSV to batches.

ROWS = [("a.mp4", "dog|rain", "train"), ("b.mp4", "rain", "train"), ("c.mp4", "wind|dog", "train")]
ROWS += [("d.mp4", "dog", "val"), ("e.mp4", "rain|wind", "test")]


def listed(tmp_path, rows, columns=("path", "labels", "split"), **options):
    csv = tmp_path / "own.csv"
    csv.write_text(csv_text([columns, *rows]))
    for row in rows:
        put(tmp_path / "m" / row[0], b"")
    return build(csv, tmp_path / "m", **options)


def test_a_csv_of_labels(tmp_path, capsys):
    found = listed(tmp_path, ROWS)
    assert found.manifest.label.tolist() == [labels for _, labels, _ in ROWS]
    assert (found.dataset["classes"], found.dataset["multilabel"]) == (["dog", "rain", "wind"], True)
    notes = capsys.readouterr().out
    assert "note: 2 classes have no clip in val, 'rain' is the first" in notes
    assert "have no clip in train" not in notes


def test_without_splits_each_first_label_is_in_each(tmp_path):
    rows = [(f"{number}.wav", ("a|b", "b|a", "c")[number % 3]) for number in range(18)]
    manifest = listed(tmp_path, rows, ("path", "labels"), val_share=0.1).manifest
    assert manifest.groupby(["split", "label"]).ngroups == 9


def test_a_bar_is_part_of_the_name_where_clips_have_one_label(tmp_path):
    found = listed(tmp_path, [("a.wav", "rock|pop", "train")], ("path", "label", "split"))
    assert found.dataset["classes"] == ["rock|pop"]
    assert "multilabel" not in found.dataset


def test_labels_count_where_the_csv_has_a_label_too(tmp_path):
    rows = [("a.wav", "a sound", "dog|rain", "train"), ("b.wav", "a sound", "wind", "test")]
    found = listed(tmp_path, rows, ("path", "label", "labels", "split"))
    assert found.manifest.label.tolist() == ["dog|rain", "wind"]
    assert found.dataset["classes"] == ["dog", "rain", "wind"]


@pytest.mark.parametrize("labels", ["dog|", "dog||rain", "dog|dog"])
def test_labels_that_are_empty_or_twice_there_are_refused(tmp_path, labels):
    with pytest.raises(ManifestError, match=r"own\.csv, line 2: label is '.*'; join names by \|, each once"):
        listed(tmp_path, [("a.wav", labels, "train")])
    with pytest.raises(ManifestError, match="no column label; the header must name path,label"):
        listed(tmp_path, [("a.wav", "dog")], ("path", "Labels"))


SETTINGS = dict(sample_rate=16000, mel_bins=32, window_ms=25, hop_ms=10, frames=4, size=16, seconds=1.0, workers=1)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Features of real files whose labels ROWS gives."""
    root = tmp_path_factory.mktemp("several")
    (root / "own.csv").write_text(csv_text([("path", "labels", "split"), *ROWS]))
    for number, (name, *_) in enumerate(ROWS):
        put(root / "m" / name, clip(root, number, 1.2))
    found = build(root / "own.csv", root / "m")
    (root / "manifest.csv").write_text(found.manifest.to_csv(index=False))
    (root / "dataset.json").write_text(json.dumps(found.dataset))
    extract_features(root / "manifest.csv", root / "features", **SETTINGS)
    return root


def test_features_know_the_labels_of_each_clip(real):
    train = FeatureDataset(real / "features", "train")
    assert train.multilabel
    assert train.labels.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert train.batch([2, 0]).labels.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert (train.sizes, train.num_logits, train.classes) == ([1, 1, 1], 3, ["dog", "rain", "wind"])
    assert train.identity["multilabel"]


def test_a_label_that_the_data_set_does_not_have_is_named(real, tmp_path):
    for name in ("manifest.csv", "dataset.json"):
        (tmp_path / name).write_text((real / name).read_text().replace("|wind", "|storm" if "csv" in name else "|wind"))
    with pytest.raises(FeatureError, match="has no class 'storm' that the manifest uses"):
        extract_features(tmp_path / "manifest.csv", tmp_path / "features", **SETTINGS)


def test_any_file_gets_a_probability_for_each_class(real):
    sizes = {"audio_size": (98, 32), "video_size": (4, 16, 16)}
    model = build_model("mmt_t", 3, **sizes).eval()
    stats = json.loads((real / "features/features.json").read_text())
    model.about |= {"stats": stats}
    found = predict_file(model, real / "m/a.mp4").verdict
    both = found[found["modality"] == "av"].set_index("label")["probability"]
    batch = FeatureDataset(real / "features", "train").batch([0])
    want = model(batch.audio, batch.video).logits.sigmoid()[0]
    assert both[["dog", "rain", "wind"]].tolist() == pytest.approx(want.tolist(), abs=1e-4)
    assert "present" not in found
    model.about["thresholds"] = {"av": [1.0, 0.0, both["wind"]], "audio": [0.0] * 3, "video": [1.0] * 3}
    cut = predict_file(model, real / "m/a.mp4")
    by_modality = cut.verdict.set_index(["modality", "label"])["present"]
    assert by_modality["av"][["dog", "rain", "wind"]].tolist() == [False, True, True]
    assert by_modality["audio"].all()
    assert not by_modality["video"].any()
    assert as_text(cut).count("% *") == 5
    assert "* is named" in as_text(cut)
    told = json.loads(as_json(cut))["verdict"]
    assert [row["present"] for row in told] == cut.verdict["present"].tolist()
    del model.about["thresholds"]["audio"]  # no clip of validation had any
    silent = predict_file(model, real / "m/a.mp4").verdict
    assert not silent["present"][silent["modality"] == "audio"].any()
    weighed = occlusion(model, "av", batch.audio, batch.video, 1, blocks=(2, 2), fields=(1, 1), heads=[1, 1, 1])
    assert weighed.log_probability == pytest.approx(want[1].log().item(), abs=1e-4)


# Training and the report.


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Bands of sound and colours tell the labels: each clip has the one of its sound and that of the next clip."""
    folders = Folders(tmp_path_factory.mktemp("toy"), "several")
    folder = write_features(folders.features)
    index = pd.read_csv(folder / "index.csv")
    arrays = np.load(folder / "log_mel.npy")
    second = np.roll(index["label"].to_numpy(), 2)
    for row, label in enumerate(second):
        arrays[row, :, 8 * CLASSES.index(label) :][:, :8] += 4.0
    np.save(folder / "log_mel.npy", arrays)
    index["label"] = [f"{one}|{other}" for one, other in zip(index["label"], second, strict=True)]
    index.to_csv(folder / "index.csv", index=False)
    stats = json.loads((folder / "features.json").read_text())
    counts = {"listed": 8, "used": 8, "missing": 0, "broken": 0, "silent": 0, "blind": 0, "too_short": 0}
    stats |= {"multilabel": True, "coverage": dict.fromkeys(("train", "val", "test"), counts)}
    (folder / "features.json").write_text(json.dumps(stats))
    return folders


def test_training_learns_them(toy, tmp_path):
    run = make_run("mmt_t", epochs=6, objective={"avc": 0.1, "imc": 0.1})
    recipe = make_recipe(mixup=0.3, label_smoothing=0.05, flip=True, flip_except=["dog"])
    trainer = Trainer(run, recipe, seed=0, features=toy.features, runs=tmp_path, init={}, device="cpu")
    lines = []
    history = trainer.fit(log=lines.append)
    assert {"avc", "imc", "val_map"} <= set(history)
    assert "val_top1" not in history
    assert history["val_map"].max() > 75  # by chance 50: half of the labels are there
    assert history["ce"].iloc[-1] < history["ce"].iloc[0]
    assert "val mAP" in lines[-1]
    again = trainer._validate()["val_map"]
    assert again == history["val_map"].max()  # the best epoch's weights are kept
    resumed = Trainer(run, recipe, seed=0, features=toy.features, runs=tmp_path, init={}, device="cpu")
    assert resumed.fit(log=lines.append).equals(history)  # from the checkpoint
    trainer.save(tmp_path / "weights.safetensors")
    kept = load_model(tmp_path / "weights.safetensors")[0]
    assert kept.about["thresholds"] == thresholds(predict(kept, trainer.val))
    assert list(kept.about["thresholds"]) == ["av", "audio", "video"]


@pytest.fixture(scope="module")
def written(toy):
    params = make_params(study="several", pretrain_mat=make_run("mat_t", epochs=4))
    trained = {name: train_runs(name, params, toy)[0] for name in params.runs}
    return trained, write_report(toy, params)


def test_predictions_hold_the_labels_and_give_the_scores(written, toy):
    run = written[0]["train_mmt"]
    table = read_predictions(run.predictions)
    test = FeatureDataset(toy.features, "test")
    part = table[(table["split"] == "test") & (table["modality"] == "av")]
    assert [sorted(CLASSES[number] for number in numbers) for numbers in part["label_index"]] == [
        sorted(labels.split("|")) for labels in test.index["label"]
    ]
    row = scores(table).set_index(["split", "modality"]).loc["test", "av"]
    want = label_scores(np.stack(part["logits"].tolist()), test.labels)
    assert (row["n"], row["map"], row["auc"]) == (8, want["map"], want["auc"])
    assert "mAP" not in run.history
    card = run.weights.with_suffix(".md").read_text()
    assert "| auc" in card.replace("  ", " ")


def test_the_report_is_by_map(written, toy):
    trained, report = written
    text = report["readme"].read_text()
    assert "top-1" not in text
    assert "by mAP" in text
    assert {"confusion", "tsne", "calibration", "retrieval", "clustering"}.isdisjoint(
        report["tables"].keys() | report["figures"].keys()
    )
    for name in [*report["tables"], *report["figures"]]:
        assert f"/{name}." in text or name in ("robustness", "data_efficiency"), name
    head = pd.read_csv(report["tables"]["headline"]).set_index(["model", "modality"])
    found = scores(read_predictions(trained["ast_t"].predictions)).set_index("split").loc["test", "map"]
    assert head.loc[("ast_t", "audio"), "map"] == pytest.approx(found, abs=1e-3)
    claims = pd.read_csv(report["tables"]["claims"])
    assert claims["unit"][0] == "points of test mAP"
    assert not claims["measured"].dropna().empty
    classes = pd.read_csv(report["tables"]["per_class"])
    assert classes["n"].tolist() == [4, 4, 4, 4]
    assert head.loc[("mat_t", "audio"), "map"] == pytest.approx(classes["audio"].mean(), abs=1e-3)


# What docs/ shows.


def test_scenes_hold_two_clips_of_one_split(tmp_path, capsys):
    code = runpy.run_path(str(ROOT / "docs/mix_scenes.py"))
    source, target, rate = tmp_path / "fold", tmp_path / "scenes", code["HZ"]
    held = [number for number in range(8, 60) if code["split_of"]("fold1", str(number)) == "val"][:3]
    names = [("fold1", number, number % 10) for number in [*range(8), *held]] + [
        ("fold10", 90 + n, n) for n in range(4)
    ]
    for place, (fold, recording, kind) in enumerate(names):
        time = np.arange(rate) / rate
        write_wave(source / fold / f"{recording}-{kind}-0-0.wav", np.sin(2 * np.pi * 100 * (place + 1) * time), rate)
    put(source / "fold1/3-3-0-9.wav", b"")
    code["main"](source, target)
    table = pd.read_csv(target / "scenes.csv")
    assert "test: 4 scenes of 4 clips" in (said := capsys.readouterr().out)
    assert "left out" in said
    with pytest.raises(SystemExit, match="has no clip for train, val, test; give the folder that holds fold1"):
        code["main"](tmp_path / "nowhere", target)
    by_split = table.groupby("split").size()
    assert by_split["test"] == 4
    assert by_split.sum() == len(names)  # without the empty file
    assert table["labels"].str.count(r"\|").max() == 1
    made = target / table.query("split == 'test'")["path"].iloc[0]
    with wave.open(str(made)) as file:
        scene = np.frombuffer(file.readframes(rate), "<i2") / 32767
    power = np.abs(np.fft.rfft(scene)) ** 2
    tones = np.argsort(power)[-2:]
    assert all(tone % 100 == 0 for tone in tones)
    assert abs(10 * np.log10(power[tones[1]] / power[tones[0]])) <= 5.1
