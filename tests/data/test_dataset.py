import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from mmtlib.data.dataset import DatasetError, FeatureDataset, epoch_batches, epoch_generator
from mmtlib.data.features import extract_features

LABELS = ["NA", "b", "c"]


@pytest.fixture
def folder(tmp_path):
    """Nine made-up clips, splits mixed up; clip 4 has no sound and clip 5 no picture."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "log_mel.npy", rng.normal(3, 2, (9, 5, 4)).astype(np.float16))
    np.save(tmp_path / "frames.npy", rng.integers(0, 256, (9, 2, 6, 8, 3), dtype=np.uint8))
    index = pd.DataFrame(
        {
            "clip_id": [f"{number:03d}" for number in range(9)],
            "path": "a.mp4",
            "start": "",
            "end": "",
            "label": [LABELS[number % 3] for number in range(9)],
            "split": ["train", "test", "train", "train", "train", "train", "test", "val", "train"],
            "has_audio": [number != 4 for number in range(9)],
            "has_video": [number != 5 for number in range(9)],
        }
    )
    index.to_csv(tmp_path / "index.csv", index=False)
    described = {
        "classes": LABELS,
        "log_mel": {"shape": [9, 5, 4], "mean": 3.0, "std": 2.0},
        "frames": {"shape": [9, 2, 6, 8, 3], "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1]},
        "fingerprint": "f00",
        "settings": dict(sample_rate=16000, mel_bins=8, window_ms=25, hop_ms=10, frames=2, size=16, seconds=1.0),
    }
    (tmp_path / "features.json").write_text(json.dumps(described))
    return tmp_path


def test_a_split_has_its_own_rows(folder):
    train = FeatureDataset(folder, "train")
    assert train.clip_ids == ["000", "002", "003", "004", "005", "008"]
    assert train.labels.tolist() == [0, 2, 0, 1, 2, 2]
    assert train.classes == LABELS
    assert train.has_audio.tolist() == [True, True, True, False, True, True]
    assert train.has_video.tolist() == [True, True, True, True, False, True]
    assert (len(train), train.fingerprint) == (6, "f00")
    assert len(FeatureDataset(folder, "val")) == 1


@pytest.mark.parametrize("indices", [[5, 0, 2], torch.tensor([1, 1]), [0]])
def test_batch_is_the_normalised_rows_in_the_order_asked_for(folder, indices):
    rows = np.array([0, 2, 3, 4, 5, 8])[np.asarray(indices)]
    batch = FeatureDataset(folder, "train").batch(indices)
    log_mel, frames = np.load(folder / "log_mel.npy")[rows], np.load(folder / "frames.npy")[rows]
    audio = (log_mel[:, None].astype(np.float32) - 3.0) / 2.0
    video = (frames.astype(np.float64) / 255 - [0.5, 0.4, 0.3]) / [0.25, 0.2, 0.1]
    np.testing.assert_allclose(batch.audio.numpy(), audio, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.video.numpy(), video.transpose(0, 4, 1, 2, 3), rtol=1e-5, atol=1e-4)
    assert batch.video.is_contiguous()
    assert batch.labels.tolist() == [int(row) % 3 for row in rows]


def test_a_missing_modality_is_zero_and_flagged(folder):
    batch = FeatureDataset(folder, "train").batch([3, 4])
    assert batch.has_audio.tolist() == [False, True]
    assert batch.has_video.tolist() == [True, False]
    assert batch.audio[0].abs().max() == 0
    assert batch.audio[1].abs().max() > 0
    assert batch.video[1].abs().max() == 0
    assert batch.video[0].abs().max() > 0


def test_only_the_modality_asked_for_is_read(folder):
    train = FeatureDataset(folder, "train")
    train._arrays["frames"] = None  # reading it would fail
    batch = train.batch([0, 1], "audio")
    assert batch.video is None
    assert batch.audio.shape == (2, 1, 5, 4)
    with pytest.raises((AttributeError, TypeError)):
        train.batch([0], "av")
    with pytest.raises(DatasetError, match="modality is 'sound'; use one of audio, video, av"):
        train.batch([0], "sound")


def test_video_alone_does_not_read_sound(folder):
    train = FeatureDataset(folder, "train")
    train._arrays["log_mel"] = None
    batch = train.batch([0, 1], "video")
    assert batch.audio is None
    assert batch.video.shape == (2, 3, 2, 6, 8)


def test_several_heads_count_through_all_combinations(folder):
    index = pd.read_csv(folder / "index.csv", keep_default_na=False)
    rows = np.arange(9)
    verbs, nouns = ["put", "NA"], ["tree", "cup", "001"]
    index.assign(verb=np.take(verbs, rows % 2), noun=np.take(nouns, rows % 3)).to_csv(folder / "index.csv", index=False)
    described = json.loads((folder / "features.json").read_text())
    assert FeatureDataset(folder, "train").heads == {"label": LABELS}
    (folder / "features.json").write_text(json.dumps(described | {"heads": {"verb": verbs, "noun": nouns}}))
    train = FeatureDataset(folder, "train")
    rows = torch.tensor([0, 2, 3, 4, 5, 8])
    assert train.heads == {"verb": verbs, "noun": nouns}
    verb, noun = torch.unravel_index(train.labels, (2, 3))
    assert (verb.tolist(), noun.tolist()) == ((rows % 2).tolist(), (rows % 3).tolist())


def equal(ours, theirs) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("modality", ["audio", "video", "av"])
def test_a_stream_is_the_batches_in_their_order(folder, modality):
    train = FeatureDataset(folder, "train")
    orders = [torch.tensor(order) for order in ([5, 0], [1], [2, 3, 4], [0, 0], [4])]
    batches = list(train.stream(iter(orders), modality))
    assert len(batches) == 5
    assert all(equal(ours, train.batch(order, modality)) for ours, order in zip(batches, orders, strict=True))


def test_a_stream_reads_two_batches_ahead_and_may_be_left(folder):
    asked = []
    orders = (asked.append(number) or torch.tensor([number]) for number in range(6))
    stream = FeatureDataset(folder, "train").stream(orders)
    next(stream)
    assert asked == [0, 1, 2]
    stream.close()


@pytest.fixture
def both(make_clip, make_manifest, tmp_path):
    """The same small set, some clips without sound or picture, kept and not kept as arrays."""
    for number in range(5):
        make_clip(f"{number}.mp4", seconds=1.5, hz=300.0 + 100 * number, sound=number != 1, picture=number != 3)
    rows = [(f"{number}.mp4", "x", "test" if number == 4 else "train") for number in range(5)]
    manifest = make_manifest(rows)
    # An odd start, to see that times survive.
    manifest.write_text(manifest.read_text().replace("2.mp4,,", f"2.mp4,{1 / 7!r},"))
    settings = dict(sample_rate=16000, mel_bins=32, window_ms=25, hop_ms=10, frames=4, size=16, seconds=1.0)
    for name, cache in (("kept", True), ("light", False)):
        extract_features(manifest, tmp_path / name, **settings, clips=2, crops=3, cache=cache, workers=1)
    return tmp_path


def test_batches_decoded_on_the_fly_equal_those_of_the_arrays(both):
    for split, orders in (("train", [[3, 0, 1], [2, 2]]), ("test", [[0, 1, 4, 5], [3, 2]])):
        kept, light = FeatureDataset(both / "kept", split), FeatureDataset(both / "light", split)
        assert len(light) == len(kept)
        orders = [torch.tensor(order) for order in orders]
        for modality in ("av", "audio"):
            for ours, theirs in zip(light.stream(orders, modality), kept.stream(orders, modality), strict=True):
                assert equal(ours, theirs)
    (both / "0.mp4").write_bytes((both / "1.mp4").read_bytes())  # has no sound
    train = FeatureDataset(both / "light", "train")
    with pytest.raises(DatasetError, match=r"0.mp4 was fine when .* \(log_mel is gone\); make the features anew"):
        train.batch([2, 0])
    (both / "0.mp4").unlink()
    with pytest.raises(DatasetError, match=r"0.mp4 was fine when .*does not exist.*make the features anew"):
        next(train.stream([torch.tensor([0])]))


def test_missing_or_damaged_features_say_which_stage_to_run(folder):
    with pytest.raises(DatasetError, match=r"is missing; make the features first: mmt features --params FILE, .*\.$"):
        FeatureDataset(folder / "none", "train")
    with pytest.raises(DatasetError, match="no clip of split 'dev'; use one of test, train, val"):
        FeatureDataset(folder, "dev")
    np.save(folder / "log_mel.npy", np.zeros((8, 5, 4), np.float16))
    with pytest.raises(DatasetError, match=r"log_mel.npy has the shape .* mmt features --params FILE"):
        FeatureDataset(folder, "train")
    stats = json.loads((folder / "features.json").read_text())
    stats["settings"]["hop_ms"] = 0
    (folder / "features.json").write_text(json.dumps(stats))
    with pytest.raises(DatasetError, match=r"is damaged \(settings: hop_ms is 0 but .*; change it\); make it anew"):
        FeatureDataset(folder, "train")
    (folder / "features.json").write_text("{")
    with pytest.raises(DatasetError, match=r"is damaged .* mmt features --params FILE"):
        FeatureDataset(folder, "train")


def test_an_epoch_shows_every_clip_once_and_differs_from_the_next():
    epochs = [torch.cat(epoch_batches(10, 5, 0, epoch)).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = torch.cat(epoch_batches(10, 5, 0, 2)).tolist()
    assert again == epochs[2]  # without having drawn epochs 0 and 1: that is what a resumed run does
    assert torch.cat(epoch_batches(10, 5, 1, 2)).tolist() != epochs[2]


@pytest.mark.parametrize("n", [9, 10, 11])
def test_a_batch_that_is_not_full_is_left_out(n):
    assert [len(batch) for batch in epoch_batches(n, 3, 0, 0)] == [3, 3, 3]


def test_order_is_fair():
    first = Counter(int(epoch_batches(4, 1, seed, 0)[0]) for seed in range(400))
    assert min(first.values()) > 60  # 100 expected each; 60 is 4.6 standard deviations away


def test_clips_are_drawn_by_their_weights():
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    drawn = Counter(
        clip for epoch in range(1000) for clip in torch.cat(epoch_batches(4, 2, 0, epoch, weights)).tolist()
    )
    assert drawn[1] == 0
    assert [drawn[clip] / 4000 for clip in (0, 2, 3)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.03)
    again = torch.cat(epoch_batches(4, 2, 0, 7, weights)).tolist()
    assert torch.cat(epoch_batches(4, 2, 0, 7, weights)).tolist() == again


def test_streams_of_one_epoch_are_independent():
    draws = {float(torch.rand((), generator=epoch_generator(0, 1, stream))) for stream in ("order", "augment", "")}
    assert len(draws) == 3
