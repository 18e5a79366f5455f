import errno
import json
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch

from mmtlib.data.features import FeatureError, LogMel, extract_features
from mmtlib.data.manifest import ManifestError
from mmtlib.data.media import read_clip

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


def plain_log_mel(waveform: np.ndarray, rate: int, mel_bins: int, window: int, hop: int, n_fft: int) -> np.ndarray:
    """The definition, in loops: HTK triangles on the power spectrum of Hann-windowed slices."""
    to_mel, to_hz = (lambda f: 2595 * np.log10(1 + f / 700)), (lambda m: 700 * (10 ** (m / 2595) - 1))
    edges = to_hz(np.linspace(to_mel(20.0), to_mel(rate / 2), mel_bins + 2))
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    rows = []
    for first in range(0, len(waveform) - window + 1, hop):
        power = np.abs(np.fft.rfft(waveform[first : first + window] * hann, n_fft)) ** 2
        row = []
        for low, top, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
            weight = np.clip(np.minimum((bins - low) / (top - low), (high - bins) / (high - top)), 0, None)
            row.append(np.log(weight @ power + 1e-6))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("mel_bins", "n_fft"), [(32, 512), (128, 1024)])
def test_log_mel_equals_its_definition(mel_bins, n_fft):
    waveform = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 0.1
    ours = LogMel(mel_bins=mel_bins)(waveform)
    theirs = plain_log_mel(waveform.double().numpy(), 16000, mel_bins, 400, 160, n_fft)
    assert ours.shape == theirs.shape == (1 + (4000 - 400) // 160, mel_bins)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-3)


def test_log_mel_of_silence_is_the_floor_and_no_band_is_dead():
    log_mel = LogMel(16000, 128, 25, 10)
    assert log_mel(torch.zeros(32000)).unique().tolist() == pytest.approx([FLOOR])
    noise = log_mel(torch.randn(32000, generator=torch.Generator().manual_seed(0)))
    assert noise.shape == (198, 128)
    assert log_mel.num_frames(32000) == 198
    assert noise.std(dim=0).min() > 0.1


def test_log_mel_follows_pitch_and_batches():
    time = torch.arange(16000) / 16000
    waveforms = torch.stack([torch.sin(2 * math.pi * hz * time) for hz in (300.0, 1000.0, 4000.0)])
    peaks = LogMel(mel_bins=64)(waveforms).mean(dim=1).argmax(dim=1)
    assert peaks.tolist() == sorted(set(peaks.tolist()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hop_ms": 0.01}, "hop_ms"),
        ({"mel_bins": 4000}, "features.mel_bins"),
        ({"seconds": 0.01}, "features.seconds"),
        ({"frames": 0}, "features.frames is 0"),
        ({"workers": -1}, "features.workers is -1"),
    ],
)
def test_settings_out_of_range_are_named(make_clip, make_manifest, tmp_path, change, words):
    make_clip("a.mp4")
    manifest = make_manifest([("a.mp4", "x", "train")])
    with pytest.raises(FeatureError, match=words):
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
    assert index.path.tolist() == [
        "good.mp4",
        "silent.mp4",
        "blind.mp4",
        "short.mp4",
        "good2.mp4",
        "silent.mp4",
    ]
    assert index.has_audio.tolist() == [True, False, True, True, True, False]
    assert index.has_video.tolist() == [True, True, False, True, True, True]
    assert index.scene.tolist() == ["s0", "s1", "s4", "s5", "s7", "s9"]
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv")
    assert skipped.path.tolist() == ["gone.mp4", "cut.mp4", "empty.mp4", "text.mp4"]
    assert skipped.status.tolist() == ["missing", "broken", "broken", "broken"]
    assert skipped.reason[2].endswith("is empty (0 bytes); fetch it again or drop its row.")


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
        frames[2].astype(float) / 255,
        np.broadcast_to(described["frames"]["mean"], (4, 16, 16, 3)),
        atol=1 / 255,
    )


def test_statistics_come_from_the_train_clips_that_have_the_modality(mixed, tmp_path):
    extract_features(mixed, tmp_path / "out", **SETTINGS)
    described = json.loads((tmp_path / "out" / "features.json").read_text())
    sound = np.load(tmp_path / "out" / "log_mel.npy")[[0, 2, 3]].astype(np.float64)
    picture = np.load(tmp_path / "out" / "frames.npy")[[0, 1, 3]].astype(np.float64) / 255
    assert described["log_mel"]["mean"] == pytest.approx(sound.mean(), rel=1e-9)
    assert described["log_mel"]["std"] == pytest.approx(sound.std(), rel=1e-9)
    np.testing.assert_allclose(described["frames"]["mean"], picture.mean(axis=(0, 1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(described["frames"]["std"], picture.std(axis=(0, 1, 2, 3)), rtol=1e-9)


def test_result_depends_on_content_and_settings_but_not_on_workers(mixed, tmp_path, make_clip):
    def run(out: str, **change) -> dict:
        extract_features(mixed, tmp_path / out, **{**SETTINGS, **change})
        return json.loads((tmp_path / out / "features.json").read_text())

    one, two = run("one"), run("two", workers=2)
    assert one == two
    for name in ("log_mel.npy", "frames.npy", "index.csv", "skipped.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert run("three", hop_ms=11)["fingerprint"] != one["fingerprint"]
    make_clip("good2.mp4", hz=901.0)
    assert run("four")["fingerprint"] != one["fingerprint"]


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
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(FeatureError, match=r"No room for log_mel.npy of .* GiB .No space left on device.; free some"):
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
    for broken in ('{"name": "toy"}', "{", "[]"):
        described.write_text(broken)
        with pytest.raises(FeatureError, match="run the download stage again"):
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
