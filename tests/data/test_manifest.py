import math
import string

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtlib.config import ROOT
from mmtlib.data import ManifestError, media_root, read_manifest, write_manifest

HEADER = "clip_id,path,start,end,label,split"
ROW = "a,a.mp4,0,1.5,shot,train"


def refused(tmp_path, content: str | bytes) -> str:
    path = tmp_path / "manifest.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    text = str(error.value)
    assert "manifest.csv" in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_reads_types_and_keeps_further_columns(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text(
        "split,snr_db,clip_id,path,start,end,label,scene,audible\n"
        'train,3.5,007,sub/a.mp4,0,1.5,"fire, big",x1,True\n'
        "\n"
        "test,,NA,b.mp4,,,shot,7,False\n"
    )
    table = read_manifest(path)
    assert list(table) == ["clip_id", "path", "start", "end", "label", "split", "snr_db", "scene", "audible"]
    assert list(table.clip_id) == ["007", "NA"]  # neither turned into a number nor into a missing value
    assert list(table.label) == ["fire, big", "shot"]
    np.testing.assert_array_equal(table.start, [0.0, math.nan])
    np.testing.assert_array_equal(table.end, [1.5, math.nan])
    np.testing.assert_array_equal(table.snr_db, [3.5, math.nan])
    assert list(table.scene) == ["x1", "7"]
    assert table.audible.dtype == bool


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("clip_id,path,start,end,split\na,a.mp4,,,train\n", "no column label"),
        (f"{HEADER}\n{ROW}\nb,b.mp4,,,shot,dev\n", "line 3: split is 'dev'"),
        (f"{HEADER}\na,/etc/passwd,,,shot,train\n", "line 2: path is '/etc/passwd'; it does not stay below"),
        (f"{HEADER}\na,../a.mp4,,,shot,train\n", "path is '../a.mp4'"),
        (f"{HEADER}\na,x/../../a.mp4,,,shot,train\n", "path is 'x/../../a.mp4'"),
        (f"{HEADER}\na,,,,shot,train\n", "path is ''"),
        (f"{HEADER}\n{ROW}\n{ROW}\n", "line 3: clip_id is 'a'; a line above has the same"),
        (f"{HEADER}\n ,a.mp4,,,shot,train\n", "clip_id is ' '"),
        (f"{HEADER}\na,a.mp4,,,,train\n", "label is ''"),
        (f"{HEADER}\na,a.mp4,2,2,shot,train\n", "end is '2'; that is not after"),
        (f"{HEADER}\na,a.mp4,,0,shot,train\n", "end is '0'; that is not after"),
        (f"{HEADER}\na,a.mp4,-1,2,shot,train\n", "start is '-1'"),
        (f"{HEADER}\na,a.mp4,0,inf,shot,train\n", "end is 'inf'"),
        (f"{HEADER}\na,a.mp4,0,1:30,shot,train\n", "end is '1:30'"),
        ("", "is empty"),
        (f"{HEADER}\n", "lists no clips"),
        (f"{HEADER}\na,a.mp4,,,shot\n", "line 2: 5 fields where there must be 6"),
        (f'{HEADER}\na,"a.mp4,,,shot,train\n', "not a CSV"),
        (f"{HEADER},label\n{ROW},x\n", "column 'label' occurs twice"),
        (f"{HEADER}\n{ROW}\n".encode() + b"b,\xff.mp4,,,shot,train\n", "line 3: not UTF-8"),
        (f"{HEADER}\n{ROW}\nb,\0.mp4,,,shot,train\n", "line 3: a NUL"),
    ],
)
def test_refuses_a_broken_manifest_in_one_sentence(tmp_path, content, words):
    assert words in refused(tmp_path, content)


def test_refuses_links_that_lead_out_and_takes_links_that_stay(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "real").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.mp4").touch()
    (root / "real" / "a.mp4").touch()
    (root / "out").symlink_to(outside)
    (root / "out.mp4").symlink_to(outside / "a.mp4")
    (root / "in").symlink_to(root / "real")
    for name in ("out/a.mp4", "out.mp4"):
        assert f"path is '{name}'" in refused(root, f"{HEADER}\na,{name},,,shot,train\n")
    (root / "manifest.csv").write_text(f"{HEADER}\na,in/a.mp4,,,shot,train\n")
    assert list(read_manifest(root / "manifest.csv").path) == ["in/a.mp4"]


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "away").symlink_to("/")
    (tmp_path / "manifest.csv").write_text(f"{HEADER}\na,loop/a.mp4,,,shot,train\n")
    read_manifest(tmp_path / "manifest.csv")  # it leads nowhere, so its clip is missing
    assert "path is 'x/away'" not in refused(tmp_path, f"{HEADER}\na,away/etc/passwd,,,shot,train\n")


def test_paths_start_from_the_media_root_where_dataset_json_names_one(tmp_path):
    clips, media, outside = tmp_path / "clips", tmp_path / "media", tmp_path / "outside"
    for folder in (clips, media, outside):
        folder.mkdir()
    (media / "out").symlink_to(outside)
    (clips / "out").mkdir()
    manifest = clips / "manifest.csv"
    manifest.write_text(f"{HEADER}\na,out/a.mp4,,,shot,train\n")
    assert media_root(manifest) == clips.resolve()
    assert len(read_manifest(manifest)) == 1
    (clips / "dataset.json").write_text(f'{{"media": "{media}"}}')
    assert media_root(manifest) == media.resolve()
    with pytest.raises(ManifestError, match=r"path is 'out/a\.mp4'; it does not stay below .*media"):
        read_manifest(manifest)
    (clips / "dataset.json").write_text('{"media": "data/vggsound"}')
    assert media_root(manifest) == ROOT / "data" / "vggsound"
    for damaged in ("[]", "{", '{"media": 3}'):
        (clips / "dataset.json").write_text(damaged)
        with pytest.raises(ManifestError, match=r"dataset\.json is damaged"):
            read_manifest(manifest)


def test_a_byte_order_mark_and_any_line_ending_are_accepted(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\r\n{ROW}\r\n".encode())
    assert read_manifest(path).label.tolist() == ["shot"]
    path.write_bytes(f"{HEADER}\r{ROW}\r".encode())
    assert read_manifest(path).label.tolist() == ["shot"]


def test_a_message_never_carries_a_huge_text(tmp_path):
    long = "x" * 100_000
    assert len(refused(tmp_path, f"{HEADER}\na,a.mp4,,,shot,{long}\n")) < 500
    assert "field larger than field limit" in refused(tmp_path, f"{HEADER}\na,a.mp4,,,shot,{2 * long}\n")
    assert "fields where there must be 6" in refused(tmp_path, f"{HEADER}\n{',' * 1_000_000}\n")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ManifestError, match="does not exist; run the download stage"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="is a folder"):
        read_manifest(tmp_path)


def test_write_is_atomic_and_checks_first(tmp_path):
    path = tmp_path / "manifest.csv"
    good = pd.DataFrame([dict(zip(HEADER.split(","), ("a", "a.mp4", 0.1, 1 / 3, "shot", "val"), strict=True))])
    write_manifest(good, path)
    pd.testing.assert_frame_equal(read_manifest(path), good, check_dtype=False)
    with pytest.raises(ManifestError, match="split is 'dev'"):
        write_manifest(good.assign(split="dev"), path)
    assert list(read_manifest(path).split) == ["val"]
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.csv"]


names = st.text(string.ascii_letters + " ,\"'#é", min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(names, min_size=1, max_size=3), climb=st.integers(0, 3))
def test_any_path_is_kept_exactly_or_refused_for_climbing(tmp_path_factory, parts, climb):
    path = tmp_path_factory.mktemp("m") / "manifest.csv"
    name = "/".join(parts[:1] + [".."] * climb + parts[1:])
    table = pd.DataFrame([{"clip_id": "a", "path": name, "start": "", "end": 2, "label": "x", "split": "test"}])
    if climb:
        with pytest.raises(ManifestError, match="does not stay below"):
            write_manifest(table, path)
    else:
        write_manifest(table, path)
        assert list(read_manifest(path).path) == [name]
