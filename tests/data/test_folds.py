"""Sets of folds: who is in which split, the statistics of each fold, views and the ends of short clips."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtlib.data.dataset import (
    VAL_SHARE,
    DatasetError,
    FeatureDataset,
    epoch_generator,
    fold_splits,
    one_view,
    views_of,
)
from mmtlib.data.features import extract_features

SETTINGS = dict(sample_rate=16000, mel_bins=32, window_ms=25, hop_ms=10, frames=4, size=16, seconds=1.0, workers=1)


def made_up_index(sizes):
    """A set of two classes whose groups have these numbers of clips; folds 1 to 3, every seventh group in none."""
    rows = []
    for number, size in enumerate(sizes):
        fold = np.nan if number % 7 == 6 else number % 3 + 1
        rows += [{"label": "ab"[number % 2], "group": f"g{number}", "fold": fold}] * size
    return pd.DataFrame(rows)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=12, max_size=60), st.integers(1, 3))
def test_groups_stay_whole_and_the_fold_is_the_test(sizes, fold):
    index = made_up_index(sizes)
    splits = fold_splits(index, fold, "label")
    assert set(splits) == {"train", "val", "test"}
    assert ((splits == "test") == (index.fold == fold)).all()
    assert (pd.Series(splits).groupby(index.group).nunique() == 1).all()
    rest = index[splits != "test"]
    held = (splits[splits != "test"] == "val").astype(float)
    by_class = pd.Series(held, rest.index).groupby(rest.label).mean()
    largest = rest.groupby(["label", "group"]).size().groupby("label").max() / rest.groupby("label").size()
    assert (by_class >= VAL_SHARE).all()
    assert (by_class < VAL_SHARE + largest).all()
    assert (fold_splits(index, fold, "label") == splits).all()


def test_a_class_keeps_a_group_for_training():
    rows = [("a", "g0", 1), ("a", "g1", 2), ("a", "g1", 2), ("b", "g2", 2)] + [
        ("c", f"h{n}", 1 + n % 2) for n in range(8)
    ]
    index = pd.DataFrame(rows, columns=["label", "group", "fold"])
    splits = fold_splits(index, 1, "label")
    assert splits[index.label == "a"].tolist() == ["test", "train", "train"]
    assert splits[index.label == "b"].tolist() == ["train"]
    assert sorted(splits[(index.label == "c") & (index.fold == 2)]) == ["train", "train", "train", "val"]


def test_a_recording_that_lies_in_two_folds_is_never_on_both_sides():
    index = made_up_index([3] * 20)
    index.loc[0, "fold"] = 2  # the first group has two clips in fold 1 and one in fold 2
    for fold, left_out in ((1, 1), (2, 2), (3, 0)):
        splits = fold_splits(index, fold, "label")
        assert (splits == "left out").sum() == left_out
        sides = pd.Series(splits).where(splits != "left out").groupby(index.group).nunique()
        assert (sides == 1).all()


@pytest.fixture
def folder(make_clip, make_manifest, tmp_path):
    """Ten clips in three folds; one is short, one has no audio."""
    rows = []
    for number in range(10):
        make_clip(f"{number}.mp4", seconds=0.6 if number == 4 else 2.0, hz=300.0 + 90 * number, sound=number != 7)
        rows.append((f"{number}.mp4", "ab"[number % 2], "train"))
    manifest = make_manifest(rows)
    table = pd.read_csv(manifest).assign(fold=[1, 1, 1, 1, 2, 2, 2, 3, None, None], group=[f"g{n}" for n in range(10)])
    table.to_csv(manifest, index=False)
    extract_features(manifest, tmp_path / "out", clips=2, **SETTINGS)
    return tmp_path / "out"


def test_every_clip_has_all_views_and_a_fold_its_own_statistics(folder):
    index, stats = pd.read_csv(folder / "index.csv"), json.loads((folder / "features.json").read_text())
    assert (index.clip_id.value_counts() == 2).all()
    log_mel = np.load(folder / "log_mel.npy").astype(np.float64)
    kept = np.arange(log_mel.shape[1])[None] < index.audio_frames.to_numpy()[:, None]
    for fold in (1, 2, 3):
        rows = index.has_audio & (index.fold != fold)
        values = log_mel[rows][kept[rows]]
        own = stats["folds"][str(fold)]["log_mel"]
        assert (own["mean"], own["std"]) == pytest.approx((values.mean(), values.std()))
    assert stats["folds"]["1"]["frames"] != stats["folds"]["2"]["frames"]


def test_a_fold_is_normalised_by_its_training_folds_and_padding_is_no_signal(folder):
    test = FeatureDataset(folder, "test", 2)
    own = json.loads((folder / "features.json").read_text())["folds"]["2"]["log_mel"]
    assert test.stats["log_mel"] == FeatureDataset(folder, "train").stats["log_mel"] | own
    assert sorted(set(test.clip_ids)) == sorted(set(test.index[test.index.fold == 2].clip_id))
    assert len(set(test.clip_ids)) == 3
    batch, short = test.batch(range(len(test))), test.clip_ids.index(test.index[test.index.path == "4.mp4"].clip_id[0])
    end = test.index.audio_frames[short]
    stored = np.load(folder / "log_mel.npy")[test._rows[short]].astype(np.float32)
    assert batch.audio[short, 0, :end].numpy() == pytest.approx((stored[:end] - own["mean"]) / own["std"], abs=1e-4)
    assert 50 < end < 61
    assert (batch.audio[short, 0, end:] == 0).all()
    assert FeatureDataset(folder, "train", 1).identity == FeatureDataset(folder, "val", 3).identity


def test_a_fold_that_is_not_there_and_a_set_without_folds_are_said(folder):
    with pytest.raises(DatasetError, match=r"has no fold 9, but 1, 2, 3; correct `folds`"):
        FeatureDataset(folder, "test", 9)
    with pytest.raises(DatasetError, match=r"no clip of split 'test'; use one of train; name a fold"):
        FeatureDataset(folder, "test")


def test_training_draws_one_view_of_each_clip(folder):
    train = FeatureDataset(folder, "train", 1)
    views = views_of(train, train.has_audio.nonzero().flatten())
    assert [len(rows) for rows in views] == [2] * len(views)
    drawn = [one_view(views, epoch_generator(0, epoch, "views")).tolist() for epoch in range(20)]
    for picked in drawn:
        assert [train.clip_ids[row] for row in picked] == [train.clip_ids[rows[0]] for rows in views]
    assert {picked[0] for picked in drawn} == set(views[0])
    assert one_view(views, epoch_generator(0, 3, "views")).tolist() == drawn[3]
