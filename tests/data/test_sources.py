"""What holds for every source alike."""

import pytest
from real_sets import build_manifest, put

from mmtlib.data import read_manifest
from mmtlib.data.download import download
from mmtlib.data.manifest import ManifestError
from mmtlib.data.sources.listing import SourceError, list_media


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no real data set is called 'freedoom-sounds'; use vggsound"):
        build_manifest("freedoom-sounds", None, tmp_path)


@pytest.fixture
def linked(tmp_path):
    """A media folder with a link to each kind of place: in it, out of it, round in a circle, and to nothing."""
    root = tmp_path / "media"
    for place in ("media/raw/cat/1.mp4", "media/raw/cat/2.mts", "away/dog/3.aiff", "away/4.wma"):
        put(tmp_path / place, b"")
    (root / "cat").symlink_to("raw/cat")
    (root / "dog").symlink_to(tmp_path / "away/dog")
    (root / "raw/cat/round").symlink_to(root)
    (root / "raw/gone").symlink_to("nowhere")
    (tmp_path / "away/dog/back").symlink_to(root / "raw")  # from there over the first link to itself
    return root


def test_links_to_folders_are_followed_within_the_media_folder_and_out_of_it_where_that_is_wanted(linked, capsys):
    inside = ["cat/1.mp4", "raw/cat/1.mp4", "cat/2.mts", "raw/cat/2.mts"]
    assert list_media(linked) == inside
    notes = capsys.readouterr().out
    assert "note: 3 folders are not read, 'cat/round' is the first: links lead out of the media folder (which" in notes
    assert "note: 1 files are no media by their extensions, 'raw/gone' is the first" in notes
    everything = list_media(linked, follow_links=True)
    assert set(everything) > {*inside, "dog/3.aiff", "dog/back/cat/1.mp4"}
    assert "note: 3 folders are not read" in capsys.readouterr().out


def test_what_a_link_leads_to_can_be_read_by_the_later_stages_where_that_is_wanted(linked, tmp_path):
    (linked / "raw/cat/4.wma").symlink_to(tmp_path / "away/4.wma")
    settings = {"source": "folder", "media": str(linked), "workers": 1}
    with pytest.raises(ManifestError, match=r"leads out of it; put the file there, or set download\.follow_links\."):
        download(tmp_path / "out/clips", **settings)
    manifest = download(tmp_path / "out/clips", **settings, follow_links=True)
    assert {"dog/3.aiff", "raw/cat/4.wma"} < set(manifest.path)
    assert read_manifest(tmp_path / "out/clips/manifest.csv").path.tolist() == manifest.path.tolist()
    (tmp_path / "out/clips/manifest.csv").write_text("clip_id,path,start,end,label,split\na,../x.mp4,,,x,train\n")
    with pytest.raises(ManifestError, match="does not stay below"):
        read_manifest(tmp_path / "out/clips/manifest.csv")


def test_files_that_are_no_media_by_their_extensions_are_counted(tmp_path, capsys):
    for name in ("a.MKA", "b.gif", "c.wav", "d.txt", "e.txt", "f", ".hidden.txt", "x/y.json"):
        put(tmp_path / name, b"")
    assert list_media(tmp_path) == ["b.gif", "c.wav", "a.MKA"]
    assert "note: 4 files are no media by their extensions, 'd.txt' is the first" in capsys.readouterr().out
