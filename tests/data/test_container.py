"""Media files in tar archives, read where they lie there."""

import errno
import gzip
import io
import os
import tarfile

import numpy as np
import pandas as pd
import pytest
from real_sets import build_manifest, counts, csv_text, flawed, video_id

from freedoom_sounds.files import write_clip
from mmtlib.data.container import MediaError, locate, members, open_media
from mmtlib.data.dataset import FeatureDataset
from mmtlib.data.features import extract_features
from mmtlib.data.manifest import ManifestError, read_manifest
from mmtlib.data.probe import probe
from mmtlib.data.sources.listing import SourceError, list_media

SETTINGS = {
    "sample_rate": 16000,
    "mel_bins": 16,
    "window_ms": 25,
    "hop_ms": 10,
    "frames": 2,
    "size": 16,
    "seconds": 0.5,
}
SPLITS = ["train"] * 5 + ["val", "test"]


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """Seven clips of two classes below one folder a class, their manifest, and one more that is missing."""
    root, rng = tmp_path_factory.mktemp("loose"), np.random.default_rng(0)
    rows = []
    for number, split in enumerate(SPLITS):
        label = ("dog", "bell")[number % 2]
        path = f"{label}/clip.{number}.mp4" if number else "dog/clip0.mp4"
        (root / label).mkdir(exist_ok=True)
        frames = rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
        write_clip(root / path, frames, 8, rng.integers(-9999, 9999, (16000, 1), dtype=np.int16), 16000)
        rows.append((f"c{number}", path, "", "", label, split))
    rows.append(("gone", "dog/gone.mp4", "", "", "dog", "train"))
    table = pd.DataFrame(rows, columns=["clip_id", "path", "start", "end", "label", "split"])
    table.to_csv(root / "manifest.csv", index=False)
    (root / "dataset.json").write_text('{"name": "loose", "classes": ["dog", "bell"]}')
    return root


def _archive(path, *entries):
    with tarfile.open(path, "w") as tar:
        for name, data in entries:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def packed(loose, tmp_path_factory):
    """The same clips in archives as WebDataset's tools write them: one or two a split, a json beside each clip."""
    out = tmp_path_factory.mktemp("packed")
    table = pd.read_csv(loose / "manifest.csv", keep_default_na=False)
    entries = {}
    for row in table[table.clip_id != "gone"].itertuples():
        archive = f"{row.split}-{len(entries) % 2:06d}.tar"
        files = [(row.path, (loose / row.path).read_bytes()), (f"{row.path[:-4]}.json", b"[]")]
        entries[archive] = entries.get(archive, []) + files
        table.loc[row.Index, "path"] = f"{archive}/{row.path}"
    for archive, files in entries.items():
        _archive(out / archive, *files)
    table.to_csv(out / "manifest.csv", index=False)
    (out / "dataset.json").write_bytes((loose / "dataset.json").read_bytes())
    return out


@pytest.mark.parametrize("cache", [True, False])
def test_features_are_those_of_the_loose_files(loose, packed, tmp_path, cache):
    coverage = [
        extract_features(root / "manifest.csv", tmp_path / root.name, cache=cache, workers=1, **SETTINGS)
        for root in (loose, packed)
    ]
    assert coverage[0] == coverage[1]
    assert coverage[0]["train"]["missing"] == 1
    for split in ("train", "test"):
        batches = []
        for root in (loose, packed):
            data = FeatureDataset(tmp_path / root.name, split)
            batches.append(data.batch(range(len(data))))
        for one, other in zip(*batches, strict=True):
            assert one.equal(other)


def test_a_source_finds_the_files_in_archives(loose, packed):
    manifest, coverage = build_manifest("folder", None, packed, workers=1)
    assert sorted(manifest.label.unique()) == ["bell", "dog"]
    assert sum(coverage.found) == 7
    assert not coverage[["broken", "silent", "blind"]].to_numpy().any()
    assert set(manifest.clip_id) == {name.split("/", 1)[1] for name in manifest.path}
    again, _ = build_manifest("folder", packed / "manifest.csv", packed, workers=1)
    assert again.set_index("clip_id").split.drop("gone").to_dict() == dict(
        zip((f"c{n}" for n in range(7)), SPLITS, strict=True)
    )


def test_verdicts_on_packed_files_are_kept_until_the_archive_changes(packed, tmp_path, capsys):
    names = [packed / name for name in list_media(packed)]
    first = probe(names, cache=tmp_path, workers=1)
    assert first.status.eq("ok").all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmtlib.data.probe.look", lambda name: pytest.fail(f"{name} is looked at again"))
        pd.testing.assert_frame_equal(probe(names, cache=tmp_path, workers=1), first)


def test_a_file_that_cannot_be_reached_is_not_called_missing(tmp_path):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", refused)
        with pytest.raises(MediaError, match=r"a.mp4 cannot be reached \(Permission denied\); mend that or drop"):
            locate(tmp_path / "a.mp4")


def test_a_file_of_an_archive_is_found_and_others_are_not(packed):
    (name, place), *_ = members(packed / "val-000000.tar").items()
    assert place == locate(packed / "val-000000.tar" / name)
    with place.file.open("rb") as file:
        file.seek(place.offset)
        assert file.read(8)[4:] == b"ftyp"
    assert locate(packed / "val-000000.tar" / "nothing.mp4") is None
    with pytest.raises(MediaError, match=r"nothing\.mp4 does not exist"):
        open_media(packed / "val-000000.tar" / "nothing.mp4")


def test_flaws_are_counted_in_an_archive_as_in_a_folder(tmp_path):
    files = flawed(tmp_path, 10)
    names = {f"{video_id(number)}_{30:06d}.mp4": flaw for number, flaw in enumerate(files)}
    (tmp_path / "v.csv").write_text(csv_text([(name[:11], 30, "hail", "test") for name in names]))
    (tmp_path / "m/part").mkdir(parents=True)
    there = [(name, files[flaw]) for name, flaw in names.items() if files[flaw] is not None]
    _archive(tmp_path / "m/part/x.tar", *there)
    manifest, coverage = build_manifest("vggsound", tmp_path / "v.csv", tmp_path / "m", workers=1)
    assert coverage.set_index("split").loc["test"].tolist() == counts(list(files))
    assert manifest.path[0] == "part/x.tar/-B_00000000_000030.mp4"


def test_an_archive_that_changed_is_read_anew(tmp_path):
    _archive(tmp_path / "x.tar", ("a.mp4", b"1"))
    assert list(members(tmp_path / "x.tar")) == ["a.mp4"]
    _archive(tmp_path / "x.tar", ("a.mp4", b"1"), ("./b.mp4", bytes(20_000)))
    assert list(members(tmp_path / "x.tar")) == ["a.mp4", "b.mp4"]


def test_broken_members_are_told_like_broken_files(tmp_path):
    _archive(tmp_path / "x.tar", ("text.mp4", b"hello"), ("empty.mp4", b""), ("cut.mp4", b"\0\0\0\x18ftypisom"))
    for name, message in (("text", "is not a media file"), ("empty", "is empty"), ("cut", "is a cut-off mp4")):
        with pytest.raises(MediaError, match=f"{name}.mp4 {message}"):
            open_media(tmp_path / "x.tar" / f"{name}.mp4")


def _damaged(path, damage):
    _archive(path, ("dog/a.mp4", bytes(5000)), ("dog/b.mp4", b"2"))
    whole = path.read_bytes()
    second = whole.index(b"dog/b.mp4")
    path.write_bytes(
        {
            "cut in a file": whole[:3000],
            "cut between files": whole[:second],
            "header": whole[:second] + b"\xff" + whole[second + 1 :],
            "size": whole[:124] + b"\xff" * 12 + whole[136:148] + b"010726\0 " + whole[156:],
            "gzip": gzip.compress(whole),
            "text": b"no archive" * 99,
        }[damage]
    )


@pytest.mark.parametrize("damage", ["cut in a file", "cut between files", "header", "size", "gzip", "text"])
def test_a_damaged_archive_is_one_sentence_and_its_files_are_broken(tmp_path, damage):
    _damaged(tmp_path / "x.tar", damage)
    with pytest.raises(SourceError, match=r"x\.tar is no whole, uncompressed tar archive .*fetch or make it again\.$"):
        list_media(tmp_path)
    table = probe([tmp_path / "x.tar/dog/a.mp4", tmp_path / "x.tar/dog/none.mp4"], cache=tmp_path, workers=1)
    assert table.status.tolist() == ["broken"] * 2
    assert "x.tar is no whole" in table.reason[0]
    _archive(tmp_path / "x.tar", ("dog/a.mp4", b"hello, hello"))
    assert probe([tmp_path / "x.tar/dog/a.mp4"], cache=tmp_path, workers=1).reason[0].count("is not a media file") == 1


@pytest.mark.parametrize("name", ["../../evil/a.mp4", "/etc/a.mp4", "dog/../../a.mp4", ".."])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    _archive(tmp_path / "x.tar", (name, b"1"), ("dog/b.mp4", b"2"))
    with pytest.raises(SourceError, match=r"\(the name '.*' leads out of it\)"):
        build_manifest("folder", None, tmp_path, workers=1)
    for path in (name, "x.tar/../x.tar/dog/b.mp4"):
        (tmp_path / "manifest.csv").write_text(f"clip_id,path,start,end,label,split\na,x.tar/../{path},,,x,train\n")
        with pytest.raises(ManifestError, match="does not stay below"):
            read_manifest(tmp_path / "manifest.csv")


def test_an_archive_that_is_a_link_out_of_the_media_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.tar").symlink_to(_archive(tmp_path / "x.tar", ("dog/b.mp4", b"2")))
    with pytest.raises(ManifestError, match=r"the link 'x\.tar/dog/b\.mp4' leads out of it"):
        build_manifest("folder", None, tmp_path / "in", workers=1)


def test_names_that_differ_in_dots_are_one_hidden_ones_are_left_out_and_one_name_in_two_archives_is_refused(tmp_path):
    _archive(
        tmp_path / "x.tar", (".//dog/./b.mp4", b"1"), ("dog/b.mp4", b"2"), (".h/a.mp4", b"3"), ("dog/.a.mp4", b"4")
    )
    assert list_media(tmp_path) == ["x.tar/dog/b.mp4"]
    _archive(tmp_path / "y.tar", ("dog/b.mp4", b"another clip"))
    with pytest.raises(SourceError, match=r"x\.tar/dog/b\.mp4 and y\.tar/dog/b\.mp4 have one name"):
        build_manifest("folder", None, tmp_path, workers=1)


def test_links_and_folders_in_an_archive_are_no_files(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            about = tarfile.TarInfo(f"{kind.decode()}.mp4")
            about.type, about.linkname = kind, "/etc/passwd"
            tar.addfile(about)
    assert members(tmp_path / "x.tar") == {}
    assert list_media(tmp_path) == []
