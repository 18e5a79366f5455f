import errno
import json
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch

from mmtlib.data.decode import FeatureError, LogMel
from mmtlib.data.features import extract_features, merge_features
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hop_ms": 0.01}, "hop_ms"),
        ({"mel_bins": 4000}, "features.mel_bins"),
        ({"seconds": 0.01}, "features.seconds"),
        ({"frames": 0}, "features.frames is 0"),
        ({"workers": -1}, "features.workers is -1"),
        ({"crops": 2}, "features.crops is 2"),
        ({"shard": (2, 2)}, "no part 2 of 2 of 1 clips"),
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


@pytest.mark.parametrize("cache", [True, False])
def test_parts_join_to_the_bytes_of_a_whole_run(mixed, tmp_path, cache):
    settings = SETTINGS | {"clips": 2, "seconds": 0.7, "cache": cache}
    whole = extract_features(mixed, tmp_path / "whole", **settings)
    counts = [extract_features(mixed, tmp_path / "joined", **settings, shard=(part, 3)) for part in range(3)]
    assert sum(count["train"]["listed"] for count in counts) == whole["train"]["listed"]
    parts = sorted(tmp_path.glob("joined.part-*"))
    with pytest.raises(FeatureError, match=r"parts of the features are \[\[0, 3\], \[2, 3\]\]"):
        merge_features([parts[2], parts[0]], tmp_path / "joined")
    assert merge_features(parts[::-1], tmp_path / "joined") == whole
    names = {file.name for file in (tmp_path / "whole").iterdir()}
    assert names == {file.name for file in (tmp_path / "joined").iterdir()}
    assert ("log_mel.npy" in names) == cache
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "joined" / name).read_bytes()


def test_parts_that_do_not_belong_together_are_refused(mixed, tmp_path):
    extract_features(mixed, tmp_path / "out", **SETTINGS, shard=(0, 2))
    extract_features(mixed, tmp_path / "out", **SETTINGS | {"frames": 2}, shard=(1, 2))
    parts = sorted(tmp_path.glob("out.part-*"))
    with pytest.raises(FeatureError, match=r"part-1-of-2 was made with another manifest or other settings"):
        merge_features(parts, tmp_path / "out")
    (parts[0] / "part.json").unlink()
    with pytest.raises(FeatureError, match=r"part-0-of-2 is no whole part"):
        merge_features(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_may_hold_no_usable_clip(make_clip, make_manifest, tmp_path):
    make_clip("a.mp4")
    manifest = make_manifest([("gone.mp4", "x", "train"), ("a.mp4", "x", "train")])
    for part in range(2):
        extract_features(manifest, tmp_path / "out", **SETTINGS, shard=(part, 2))
    coverage = merge_features(sorted(tmp_path.glob("out.part-*")), tmp_path / "out")
    assert coverage["train"] | {"missing": 1, "used": 1} == coverage["train"]


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
