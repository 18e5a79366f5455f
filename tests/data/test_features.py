import json
import math
import os
import shutil
import signal
import threading

import numpy as np
import pandas as pd
import pytest
import torch

from mmtlib.cluster import connect
from mmtlib.config import ParamsError
from mmtlib.data.dataset import FeatureDataset
from mmtlib.data.features import extract_features
from mmtlib.data.manifest import ManifestError
from mmtlib.data.media import read_clip
from mmtlib.data.spectrogram import FeatureError, LogMel

SETTINGS = {
    "sample_rate": 16000,
    "mel_bins": 32,
    "window_ms": 25,
    "hop_ms": 10,
    "frames": 4,
    "size": 16,
    "seconds": 2.0,
    "workers": 1,
}
FLOOR = math.log(1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hop_ms": 0.01}, "hop_ms"),
        ({"mel_bins": 500, "window_ms": 1, "hop_ms": 1}, "features: mel_bins 500 are too many for 1.0 ms; use fewer.$"),
        ({"seconds": 0.01}, "features: seconds 0.01 is shorter than window_ms"),
        ({"frames": 0}, "features: frames is 0 but must be greater than"),
        ({"crops": 2}, "features: crops is 2 but must be 1 or 3"),
    ],
)
def test_settings_out_of_range_are_named(make_clip, make_manifest, tmp_path, change, words):
    make_clip("a.mp4")
    manifest = make_manifest([("a.mp4", "x", "train")])
    with pytest.raises(ParamsError, match=words):
        extract_features(manifest, tmp_path / "out", **{**SETTINGS, **change})
    assert not (tmp_path / "out").exists()


@pytest.fixture
def mixed(make_clip, make_manifest, tmp_path):
    """A manifest with one clip of every kind."""
    make_clip("good.mp4", hz=500.0)
    make_clip("good2.mp4", hz=900.0)
    make_clip("silent.mp4", sound=False)
    make_clip("blind.mp4", picture=False)
    make_clip("short.mp4", seconds=1.0)
    whole = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not found")
    return make_manifest(
        [
            ("good.mp4", "b", "train"),
            ("silent.mp4", "a", "train"),
            ("gone.mp4", "a", "train"),
            ("cut.mp4", "b", "train"),
            ("blind.mp4", "a", "train"),
            ("short.mp4", "c", "train"),
            ("empty.mp4", "b", "val"),
            ("good2.mp4", "b", "val"),
            ("text.mp4", "c", "test"),
            ("silent.mp4", "c", "test"),
        ],
        scene=[f"s{number}" for number in range(10)],
    )


def test_every_kind_of_clip_is_counted_exactly(mixed, tmp_path):
    coverage = extract_features(mixed, tmp_path / "out", **SETTINGS)
    names = ("listed", "used", "missing", "broken", "silent", "blind", "too_short")
    assert {split: tuple(counts[name] for name in names) for split, counts in coverage.items()} == {
        "train": (6, 4, 1, 1, 1, 1, 1),
        "val": (2, 1, 0, 1, 0, 0, 0),
        "test": (2, 1, 0, 1, 1, 0, 0),
    }
    described = json.loads((tmp_path / "out" / "features.json").read_text())
    assert described["coverage"] == coverage
    index = pd.read_csv(tmp_path / "out" / "index.csv")
    assert index.path.tolist() == ["good.mp4", "silent.mp4", "blind.mp4", "short.mp4", "good2.mp4", "silent.mp4"]
    assert index.has_audio.tolist() == [True, False, True, True, True, False]
    assert index.has_video.tolist() == [True, True, False, True, True, True]
    assert index.scene.tolist() == ["s0", "s1", "s4", "s5", "s7", "s9"]
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv")
    assert skipped.path.tolist() == ["gone.mp4", "cut.mp4", "empty.mp4", "text.mp4"]
    assert skipped.status.tolist() == ["missing", "broken", "broken", "broken"]
    assert skipped.reason[2].endswith("is empty (0 bytes); fetch it again or drop its row.")


def test_a_clip_that_lacks_a_little_is_padded_and_not_called_too_short(make_clip, make_manifest, tmp_path):
    make_clip("whole.mp4")
    make_clip("nearly.mp4", seconds=1.75)
    manifest = make_manifest([("whole.mp4", "a", "train"), ("nearly.mp4", "b", "train")])
    coverage = extract_features(manifest, tmp_path / "out", **SETTINGS)
    assert coverage["train"]["too_short"] == 0
    whole, nearly = pd.read_csv(tmp_path / "out" / "index.csv").audio_frames
    assert whole == 198
    assert nearly == pytest.approx(198 - 25, abs=3)


def test_arrays_hold_what_the_clips_hold(mixed, tmp_path, frame_numbers):
    extract_features(mixed, tmp_path / "out", **SETTINGS)
    described = json.loads((tmp_path / "out" / "features.json").read_text())
    log_mel, frames = np.load(tmp_path / "out" / "log_mel.npy"), np.load(tmp_path / "out" / "frames.npy")
    assert log_mel.dtype == np.float16
    assert frames.dtype == np.uint8
    assert list(log_mel.shape) == described["log_mel"]["shape"] == [6, 198, 32]
    assert list(frames.shape) == described["frames"]["shape"] == [6, 4, 16, 16, 3]
    settings = {"num_frames": 4, "size": 16, "sample_rate": 16000, "seconds": 2.0}
    sound = read_clip(tmp_path / "good.mp4", **settings).waveform
    np.testing.assert_allclose(log_mel[0], LogMel(mel_bins=32)(torch.from_numpy(sound)).numpy(), atol=5e-3)
    assert frame_numbers(frames[0]) == [4, 12, 20, 28]
    # The short clip: sound, then the floor of digital silence; the clips without a modality: the train mean.
    assert log_mel[3, :90].max() > 0
    assert np.unique(log_mel[3, 101:]).tolist() == pytest.approx([FLOOR], abs=5e-3)
    np.testing.assert_allclose(log_mel[1], described["log_mel"]["mean"], rtol=1e-3)
    np.testing.assert_allclose(
        frames[2].astype(float) / 255, np.broadcast_to(described["frames"]["mean"], (4, 16, 16, 3)), atol=1 / 255
    )


def test_statistics_come_from_the_train_clips_that_have_the_modality(mixed, tmp_path):
    extract_features(mixed, tmp_path / "out", **SETTINGS)
    described = json.loads((tmp_path / "out" / "features.json").read_text())
    log_mel, ends = np.load(tmp_path / "out" / "log_mel.npy"), pd.read_csv(tmp_path / "out" / "index.csv").audio_frames
    sound = np.concatenate([log_mel[row, : ends[row]] for row in (0, 2, 3)]).astype(np.float64)  # without padding
    picture = np.load(tmp_path / "out" / "frames.npy")[[0, 1, 3]].astype(np.float64) / 255
    assert described["log_mel"]["mean"] == pytest.approx(sound.mean(), rel=1e-9)
    assert described["log_mel"]["std"] == pytest.approx(sound.std(), rel=1e-9)
    np.testing.assert_allclose(described["frames"]["mean"], picture.mean(axis=(0, 1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(described["frames"]["std"], picture.std(axis=(0, 1, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("cache", [True, False])
def test_of_the_motion_a_clip_has_what_differs_from_its_mean_frame(mixed, tmp_path, cache):
    out = tmp_path / "data/out"
    extract_features(mixed, out, **SETTINGS | {"motion": True, "cache": cache})
    extract_features(mixed, tmp_path / "whole", **SETTINGS)
    frames = np.load(tmp_path / "whole/frames.npy")[[0, 1, 3]].astype(np.float64)
    moves = frames - frames.mean(axis=1, keepdims=True)
    about = json.loads((out / "features.json").read_text())["frames"]
    np.testing.assert_allclose(about["mean"], 0, atol=1e-9)
    np.testing.assert_allclose(255 * np.array(about["std"]), moves.std(axis=(0, 1, 2, 3)), rtol=1e-6)
    train = FeatureDataset(out, "train")
    video = train.batch(torch.tensor(range(len(train)))).video.movedim(1, -1).numpy()
    np.testing.assert_allclose(video[train.has_video], moves / (255 * np.array(about["std"])), atol=1e-3)
    assert not video[~train.has_video.numpy()].any()


def test_result_depends_on_content_and_settings(mixed, tmp_path, make_clip):
    def fingerprint(**change) -> str:
        extract_features(mixed, tmp_path / "out", **{**SETTINGS, **change})
        return json.loads((tmp_path / "out" / "features.json").read_text())["fingerprint"]

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(hop_ms=11) != first
    make_clip("good2.mp4", hz=901.0)
    assert fingerprint() != first


@pytest.fixture
def many(make_clip, make_manifest):
    """A manifest of 60 rows of six clips, one of them missing."""
    names = [make_clip(f"{number}.mp4", seconds=1.0, hz=300.0 + 100 * number).name for number in range(5)]
    splits = ("train", "train", "val", "test")
    return make_manifest([([*names, "gone.mp4"][row % 6], "x", splits[row % 4]) for row in range(60)])


def test_the_bytes_do_not_depend_on_the_workers_and_the_loss_of_one_loses_nothing(many, tmp_path):
    def written(out: str, workers: int | str) -> dict[str, bytes]:
        extract_features(many, tmp_path / out, **SETTINGS | {"workers": workers, "clips": 2})
        return {file.name: file.read_bytes() for file in (tmp_path / out).iterdir()}

    alone = written("alone", 1)
    with connect(2) as client:  # stands for a cluster that others started
        assert written("there", client.scheduler.address) == alone
        one, killed = min(client.run(os.getpid).values()), []
        timer = threading.Timer(0.1, lambda: killed.append(os.kill(one, signal.SIGKILL)))
        timer.start()
        assert written("again", client.scheduler.address) == alone
        assert killed, "it was over before the worker was killed"


def test_an_older_folder_is_replaced_whole_and_a_foreign_one_is_left(mixed, tmp_path):
    extract_features(mixed, tmp_path / "out", **SETTINGS)
    (tmp_path / "out" / "stale").touch()
    extract_features(mixed, tmp_path / "out", **{**SETTINGS, "frames": 2})
    assert np.load(tmp_path / "out" / "frames.npy").shape[1] == 2
    assert not (tmp_path / "out" / "stale").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FeatureError, match="holds other files"):
        extract_features(mixed, tmp_path / "mine", **SETTINGS)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_met_before_any_work_and_leaves_no_folder(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**10))
    with pytest.raises(FeatureError, match=r"The arrays need .* GiB, 0.0 are free; free some disk"):
        extract_features(mixed, tmp_path / "features", **SETTINGS)
    assert not (tmp_path / "features").exists()


def test_classes_come_in_the_order_of_dataset_json(mixed, tmp_path):
    def classes() -> list[str]:
        extract_features(mixed, tmp_path / "out", **SETTINGS)
        return json.loads((tmp_path / "out" / "features.json").read_text())["classes"]

    assert classes() == ["a", "b", "c"]
    described = tmp_path / "dataset.json"
    described.write_text('{"name": "toy", "classes": ["c", "d", "b", "a"]}')
    assert classes() == ["c", "d", "b", "a"]
    described.write_text('{"name": "toy", "classes": ["c", "b"]}')
    with pytest.raises(FeatureError, match="no class 'a' that the manifest uses"):
        classes()
    for broken in ('{"name": "toy"}', "{", "[]", '{"name": "toy", "heads": ["a"]}'):
        described.write_text(broken)
        with pytest.raises((FeatureError, ManifestError), match="run the download stage again"):
            classes()


def test_a_set_without_a_usable_train_clip_is_refused(make_clip, make_manifest, tmp_path):
    make_clip("a.mp4")
    with pytest.raises(FeatureError, match=r"No usable train clip .*gone.mp4 does not exist"):
        extract_features(
            make_manifest([("gone.mp4", "x", "train"), ("a.mp4", "x", "test")]), tmp_path / "out", **SETTINGS
        )
    with pytest.raises(FeatureError, match="manifest has no row of it"):
        extract_features(make_manifest([("a.mp4", "x", "test")]), tmp_path / "out", **SETTINGS)
    with pytest.raises(ManifestError, match="does not exist"):
        extract_features(tmp_path / "none.csv", tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_constant_channels_do_not_divide_by_zero(make_clip, make_manifest, tmp_path):
    make_clip("a.mp4", seconds=1 / 16, sound=False)  # one grey frame
    extract_features(make_manifest([("a.mp4", "x", "train")]), tmp_path / "out", **SETTINGS)
    described = json.loads((tmp_path / "out" / "features.json").read_text())
    assert described["frames"]["std"] == pytest.approx([1 / 255] * 3)
    assert (described["log_mel"]["mean"], described["log_mel"]["std"]) == (0.0, 1.0)


def test_heads_are_kept_with_their_columns(make_clip, make_manifest, tmp_path):
    make_clip("a.mp4")
    manifest = make_manifest([("a.mp4", "cut tree", "train")], verb=["cut"], noun=["tree"])
    described = {"name": "toy", "heads": {"verb": ["put", "cut"], "noun": ["tree", "NA"]}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    extract_features(manifest, tmp_path / "out", **SETTINGS)
    made = json.loads((tmp_path / "out" / "features.json").read_text())
    assert (made["heads"], made["classes"]) == (described["heads"], ["cut tree"])
    assert pd.read_csv(tmp_path / "out" / "index.csv").noun.tolist() == ["tree"]
    described["heads"]["noun"] = ["leaf"]
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(FeatureError, match="no class 'tree' that the manifest uses"):
        extract_features(manifest, tmp_path / "out", **SETTINGS)
    described["heads"] = {"tool": ["axe"]}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(FeatureError, match="head 'tool', which is no column"):
        extract_features(manifest, tmp_path / "out", **SETTINGS)


def test_a_test_clip_has_a_row_for_each_view(make_clip, make_manifest, tmp_path, frame_numbers):
    for name in ("a.mp4", "b.mp4", "blind.mp4"):
        make_clip(name, picture=name != "blind.mp4")
    manifest = make_manifest([("a.mp4", "x", "train"), ("b.mp4", "x", "test"), ("blind.mp4", "x", "test")])
    coverage = extract_features(manifest, tmp_path / "out", **SETTINGS | {"seconds": 0.5, "clips": 2, "crops": 3})
    assert coverage["test"] | {"blind": 1, "used": 2} == coverage["test"]
    index = pd.read_csv(tmp_path / "out" / "index.csv")
    assert index.clip_id.tolist() == ["c0"] + ["c1"] * 6 + ["c2"] * 6
    assert index["view"].tolist() == [0, *range(6), *range(6)]
    frames = np.load(tmp_path / "out" / "frames.npy")
    assert [frame_numbers(clip) for clip in frames[[0, 1, 3, 4]]] == [
        [13, 15, 17, 19],  # the centre, as without views
        [1, 3, 5, 7],
        [1, 3, 5, 7],
        [25, 27, 29, 31],
    ]
    sound = np.load(tmp_path / "out" / "log_mel.npy")
    assert (sound[1] == sound[3]).all()
    assert (sound[1] != sound[4]).any()


def test_without_a_cache_the_fingerprint_still_follows_the_content(mixed, tmp_path, make_clip):
    def run(out: str, **change) -> dict:
        coverage = extract_features(mixed, tmp_path / out, **{**SETTINGS, **change})
        made = json.loads((tmp_path / out / "features.json").read_text())
        assert made["coverage"] == coverage
        return made

    kept, light = run("kept"), run("light", cache=False)
    assert sorted(file.name for file in (tmp_path / "light").iterdir()) == ["features.json", "index.csv", "skipped.csv"]
    assert {name: light[name] for name in ("log_mel", "frames", "coverage")} == {
        name: kept[name] for name in ("log_mel", "frames", "coverage")
    }
    assert light["fingerprint"] == run("again", cache=False)["fingerprint"]
    make_clip("good2.mp4", hz=901.0)
    assert run("changed", cache=False)["fingerprint"] != light["fingerprint"]


def test_what_download_notes_goes_to_the_report_but_changes_no_fingerprint(make_clip, make_manifest, tmp_path):
    make_clip("a.mp4")
    described = []
    for notes in ({}, {"notes": ["1 clips of val and test are in train, too"]}):
        (tmp_path / "dataset.json").write_text(json.dumps({"name": "x", "classes": ["dog"]} | notes))
        extract_features(make_manifest([("a.mp4", "dog", "train")]), tmp_path / "out", **SETTINGS)
        described.append(json.loads((tmp_path / "out/features.json").read_text()))
    assert described[1].pop("notes") == notes["notes"]
    assert described[0] == described[1]
