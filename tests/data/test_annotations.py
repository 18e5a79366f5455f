"""What the sources share."""

import os

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_sets import put

from mmtlib.data.sources.listing import SourceError, hold_out, hold_out_of_each, list_media, stem


def test_media_files_are_listed_once_pictures_first(tmp_path):
    for name in (
        "b/x.MP4",
        "a/x.wav",
        "a/deep/y.webm",
        "z.mp4",
        "a/note.txt",
        ".h/x.mp4",
        "a/.x.mp4",
        "mp4",
        "a/x.part",
    ):
        put(tmp_path / name, b"")
    assert list_media(tmp_path) == ["b/x.MP4", "z.mp4", "a/deep/y.webm", "a/x.wav"]
    with pytest.raises(SourceError, match="cannot be listed"):
        list_media(tmp_path / "nowhere")
    put(tmp_path / os.fsdecode(b"a/\xe9.mp4"), b"")
    with pytest.raises(SourceError, match=r"the name 'a/\\udce9\.mp4' is not UTF-8; rename that file\.$"):
        list_media(tmp_path)


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8")), unique=True), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_all_that_a_smaller_one_does(ids, one, two):
    table = pd.Series(ids, dtype=object)
    small, large = (set(table[hold_out(table, share)]) for share in sorted([one, two]))
    assert small <= large <= set(ids)


def test_the_share_is_kept_and_splits_are_drawn_independently():
    ids = pd.Series([f"clip {number}" for number in range(10_000)])
    val, test = hold_out(ids, 0.05), hold_out(ids, 0.2, "test")
    assert 435 <= val.sum() <= 565
    assert 1850 <= test.sum() <= 2150
    assert 60 <= (val & test).sum() <= 140
    assert not hold_out(ids, 0).any()


@given(st.lists(st.tuples(st.text("abc", max_size=9), st.sampled_from("xyz")), unique=True), st.floats(0, 1))
def test_of_each_class_one_is_held_out_at_least_and_one_kept(clips, share):
    table = pd.DataFrame(clips, columns=["id", "label"], dtype=object)
    held, plain = hold_out_of_each(table.id + table.label, table.label, share), hold_out(table.id + table.label, share)
    for _, part in table.groupby("label"):
        drawn, most = plain[part.index].sum(), min(int(len(part) * max(share, 0.5)), len(part) - 1)
        assert held[part.index].sum() == min(max(drawn, int(share > 0)), most)
        if 0 < drawn <= most:
            assert held[part.index].tolist() == plain[part.index].tolist()


def test_stem():
    assert [stem(name) for name in ("a/b.c.mp4", "b.mp4", "x.y/b")] == ["b.c", "b", ""]
