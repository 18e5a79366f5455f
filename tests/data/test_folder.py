"""A set of one's own: folders of classes, or a CSV."""

from functools import partial

import pytest
from real_sets import build_manifest, clip_bytes, csv_text, put

from mmtlib.data import ManifestError, read_manifest, write_manifest
from mmtlib.data.sources.listing import SourceError
from mmtlib.data.sources.survey import survey

build = partial(build_manifest, "folder", workers=1)


def test_folders_are_classes_and_sound_alone_is_fine(tmp_path):
    sound = clip_bytes(tmp_path, 1, picture=False)
    root = tmp_path / "birds"
    for label in ("wren", "crow", "a kite"):
        for number in range(20):
            put(root / label / f"x{number % 3}" / f"{number}.m4a", sound)
    put(root / "wren/notes.txt", b"not a clip")
    put(root / "wren/.1.m4a", b"hidden")
    put(root / "crow/bad.wav", b"")
    found = survey("folder", None, root, val_share=0.2, workers=1)
    manifest = found.manifest
    assert len(manifest) == 61
    assert manifest.clip_id.tolist() == manifest.path.tolist()
    assert manifest.path[0] == "a kite/x0/0.m4a"
    assert (manifest.label == manifest.path.str.partition("/")[0]).all()
    assert found.dataset["classes"] == ["a kite", "crow", "wren"]
    assert (found.dataset["name"], found.dataset["class_list"]) == ("birds", "labels found")
    assert set(manifest.split) == {"train", "val", "test"}
    total = found.coverage.drop(columns="split").sum()
    assert total.tolist() == [61, 61, 1, 0, 60, 0, 0]
    assert found.problems.status.value_counts().to_dict() == {"blind": 60, "broken": 1}
    put(root / "crow/one more.m4a", sound)
    again = build(None, root, val_share=0.2)[0].set_index("clip_id").split
    assert (again[manifest.clip_id] == manifest.split.to_numpy()).all()  # what is added moves nothing


@pytest.mark.parametrize("clips", range(3, 12))
def test_a_small_set_has_each_class_in_each_split(tmp_path, clips):
    for number in range(20 * clips):
        put(tmp_path / f"m/{number // clips}/{number}.wav", b"")
    manifest = build(None, tmp_path / "m", val_share=0.05)[0]
    assert manifest.groupby(["split", "label"]).ngroups == 3 * 20


def test_a_class_too_small_for_three_splits_is_named(tmp_path, capsys):
    for name in ("a/1", "a/2", "b/1"):
        put(tmp_path / f"m/{name}.wav", b"")
    manifest = build(None, tmp_path / "m", val_share=0.05)[0]
    assert manifest.groupby("label").split.agg(sorted).to_dict() == {"a": ["test", "train"], "b": ["train"]}
    notes = capsys.readouterr().out
    assert "note: 2 classes have no clip in val, 'a' is the first" in notes
    assert "note: 1 classes have no clip in test, 'b' is the first" in notes


def test_folders_may_be_split_first(tmp_path):
    for place in ("train/a", "train/b", "test/a"):
        put(tmp_path / "m" / place / "1.wav", b"")
    manifest, coverage = build(None, tmp_path / "m", val_share=0)
    assert list(zip(manifest.split, manifest.label, strict=True)) == [("test", "a"), ("train", "a"), ("train", "b")]
    assert coverage.listed.tolist() == [2, 0, 1]


def test_of_folders_train_and_val_alone_a_fifth_of_train_is_tested(tmp_path):
    for split, clips in (("train", 40), ("val", 10)):
        for number in range(clips):
            put(tmp_path / f"m/{split}/{'ab'[number % 2]}/{number}.wav", b"")
    splits = build(None, tmp_path / "m")[0].set_index("clip_id").split
    assert (splits[splits.index.str.startswith("val/")] == "val").all()
    assert splits.value_counts().to_dict().keys() == {"train", "val", "test"}
    assert 2 <= (splits == "test").sum() <= 16
    held = build(None, tmp_path / "m")[0].set_index("clip_id").split
    assert held.equals(splits)


def test_a_file_outside_a_class_folder_and_an_empty_folder_are_refused(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(SourceError, match="holds no media file"):
        build(None, tmp_path / "m")
    put(tmp_path / "m/a/1.wav", b"")
    put(tmp_path / "m/2.wav", b"")
    with pytest.raises(SourceError, match=r"2\.wav lies in no class folder; move it into one\.$"):
        build(None, tmp_path / "m")


def test_a_csv_brings_windows_splits_and_columns_of_its_own(tmp_path):
    put(tmp_path / "m/sub/long.mp4", clip_bytes(tmp_path, 4))
    rows = [
        ("path", "label", "start", "end", "split", "camera"),
        ("sub/long.mp4", "a", 0, 2, "train", 7),
        ("sub/long.mp4", "b", 2, 6, "test", 7),
        ("; rm -rf ~", "a", "", "", "val", 8),
    ]
    text = csv_text(rows)
    (tmp_path / "c.csv").write_text(text)
    manifest, coverage = build(tmp_path / "c.csv", tmp_path / "m")
    assert manifest.clip_id.tolist() == ["sub/long.mp4#t=0.0,2.0", "sub/long.mp4#t=2.0,6.0", "; rm -rf ~"]
    (tmp_path / "c.csv").write_text(text.replace("path,", "clip_id,path,").replace("sub", "x,sub", 1))
    with pytest.raises(ManifestError, match="line 3: 6 fields where there must be 7"):
        build(tmp_path / "c.csv", tmp_path / "m")
    named = [("clip_id", *rows[0]), *((f"c{index}", *row) for index, row in enumerate(rows[1:]))]
    (tmp_path / "c.csv").write_text(csv_text(named))
    manifest, coverage = build(tmp_path / "c.csv", tmp_path / "m")
    assert manifest.columns.tolist() == ["clip_id", "path", "start", "end", "label", "split", "camera"]
    assert manifest.end.tolist()[:2] == [2, 6]
    assert coverage.drop(columns="split").to_numpy().tolist() == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
    ]
    (tmp_path / "m/dataset.json").write_text("{}")
    write_manifest(manifest, tmp_path / "m/manifest.csv")


def test_an_id_that_is_not_given_says_which_part_and_repeats_are_left_out(tmp_path, capsys):
    (tmp_path / "m").mkdir()
    rows = [("", ""), (0, 1.5), ("1.50", ""), (0.25, "2"), ("0.0", ""), (0, "1.5")]
    text = csv_text([("path", "label", "start", "end"), *(("x.mp4", "a", *row) for row in rows)])
    (tmp_path / "c.csv").write_text(text)
    manifest, _ = build(tmp_path / "c.csv", tmp_path / "m")
    assert manifest.clip_id.tolist() == ["x.mp4", "x.mp4#t=0.0,1.5", "x.mp4#t=1.5", "x.mp4#t=0.25,2.0"]
    assert "note: 2 lines repeat a clip and are left out; 'x.mp4' is the first" in capsys.readouterr().out


def test_parts_of_a_file_stay_together(tmp_path, capsys):
    (tmp_path / "m").mkdir()
    rows = [(f"{name}.wav", label, 2 * part, 2 * part + 2) for name in "abcdefgh" for part, label in enumerate("xyxyx")]
    rows += [("alone.wav", "x", "", ""), ("of z.wav", "z", 0, 2), ("of z.wav", "z", 2, 4)]
    (tmp_path / "c.csv").write_text(csv_text([("path", "label", "start", "end"), *rows]))
    manifest, _ = build(tmp_path / "c.csv", tmp_path / "m", val_share=0.2)
    assert (manifest.groupby("path").split.nunique() == 1).all()
    assert set(manifest.split[manifest.label == "x"]) == {"train", "val", "test"}
    assert set(manifest.split[manifest.label == "z"]) == {"train"}  # of one file alone
    assert "note: 1 classes have no clip in test, 'z' is the first" in capsys.readouterr().out
    rows = [(*row, "test" if row[0] == "b.wav" else "train") for row in rows]
    (tmp_path / "c.csv").write_text(csv_text([("path", "label", "start", "end", "split"), *rows]))
    manifest, _ = build(tmp_path / "c.csv", tmp_path / "m", val_share=0.2)
    assert (manifest.groupby("path").split.nunique() == 1).all()
    assert set(manifest.path[manifest.split == "test"]) == {"b.wav"}
    assert "val" in set(manifest.split)


def test_what_train_shares_with_the_other_splits_is_counted_and_said(tmp_path, capsys):
    clip = clip_bytes(tmp_path, 4)
    for name in ("a.mp4", "b.mp4"):
        put(tmp_path / "m" / name, clip)
    (tmp_path / "m/link.mp4").symlink_to("a.mp4")
    rows = [
        ("clip_id", "path", "label", "start", "end", "split"),
        ("c0", "a.mp4", "x", 0, 2, "train"),
        ("c1", "a.mp4", "x", 2, 4, "test"),  # begins where that ends
        ("c2", "a.mp4", "x", 1, 3, "test"),
        ("c3", "link.mp4", "x", "", "", "val"),
        ("c4", "b.mp4", "x", "", "", "test"),
        ("c5", "b.mp4", "y", 3, 4, "test"),
    ]
    (tmp_path / "c.csv").write_text(csv_text(rows))
    found = survey("folder", tmp_path / "c.csv", tmp_path / "m", workers=1)
    assert found.coverage.in_train.tolist() == [0, 1, 1]
    assert found.problems.clip_id.tolist() == ["c2", "c3"]
    notes = capsys.readouterr().out
    assert "note: 2 clips of val and test are in train, too, 'c2' is the first" in notes
    assert "note: 1 classes have no clip in train, 'y' is the first" in notes
    assert [f"note: {note}" for note in found.dataset["notes"]] == [
        line for line in notes.splitlines() if " in train" in line or "have no clip" in line
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\n../../etc/x,a\n", "c.csv, line 2: path is '../../etc/x'"),
        ("path,label\n/etc/passwd,a\n", "c.csv, line 2: path is '/etc/passwd'"),
        ("path,label\nout/passwd,a\n", "the link 'out/passwd' leads out of it"),
        ("path,label\nx.mp4,\n", "c.csv, line 2: label is ''"),
        ("path,label\nx.mp4,a\ny.mp4,a\nx.mp4,b\n", "c.csv, lines 2 and 4: two labels of 'x.mp4'; keep one of"),
        ("path,label,start,end\nx.mp4,a,0,1\nx.mp4,b,,1.0\n", "lines 2 and 3: two labels of 'x.mp4#t=0.0,1.0'"),
        ("clip_id,path,label\n1,x.mp4,a\n2,x.mp4,b\n", "lines 2 and 3: two labels of 'x.mp4'"),
        ("clip_id,path,label\n1,x.mp4,a\n1,y.mp4,a\n", "lines 2 and 3: two files or parts of '1'"),
        ("path,label,split\nx.mp4,a,train\nx.mp4,a,test\n", "lines 2 and 3: two splits of 'x.mp4'"),
        ("path,label,split\nx.mp4,a,dev\n", "c.csv, line 2: split is 'dev'"),
        ("path,label,clip_id\nx.mp4,a,\n", "c.csv, line 2: clip_id is ''"),
        ("path,label,start,end\nx.mp4,a,3,2\n", "c.csv, line 2: end is '2'; that is not after the line's start"),
        ("path,label,start\nx.mp4,a,-inf\n", "c.csv, line 2: start is '-inf'"),
        ("path,label\nx.mp4,a\n" + "y" * 10_000_000, "c.csv, line 3: not a CSV (field larger than field limit"),
        ("path,label\nx.mp4,a\ny\0.mp4,a\n", "c.csv, line 3: a NUL character"),
        ("path,label\nx.mp4,a\né.mp4,a\n".encode("latin-1"), "c.csv, line 3: not UTF-8 text"),
        ('path,label\n"x.mp4,a\n', "not a CSV"),
        ("path,label,view\nx.mp4,a,1\n", "c.csv: the column view has a meaning of its own in our tables; rename it."),
        ("path,label,group\nx.mp4,a,1\n", "c.csv: the column group has a meaning of its own"),
    ],
)
def test_a_hostile_csv_is_refused_in_one_sentence(tmp_path, content, words):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/out").symlink_to("/etc")
    (tmp_path / "c.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ManifestError) as error:
        build(tmp_path / "c.csv", tmp_path / "m", cache=tmp_path / "probe")
    assert words in str(error.value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_id_with_quotes_a_byte_order_mark_and_crlf_are_no_harm(tmp_path):
    (tmp_path / "m").mkdir()
    text = 'clip_id,path,label\r\n"it\'s ""1"" & $(rm -rf ~)",x.mp4,"=a, b"\r\n'
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    manifest, _ = build(tmp_path / "c.csv", tmp_path / "m")
    write_manifest(manifest, tmp_path / "m/manifest.csv")
    (clip,) = read_manifest(tmp_path / "m/manifest.csv").itertuples()
    assert (clip.clip_id, clip.label) == ('it\'s "1" & $(rm -rf ~)', "=a, b")
