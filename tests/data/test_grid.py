"""GRID: talkers' folders, sentences in the names of files."""

import json
from itertools import islice, product

import pytest
from real_sets import clip_bytes, listed, put, real_files

from mmtlib.data import ManifestError, read_manifest
from mmtlib.data.download import download
from mmtlib.data.sources.grid import WORDS, sentence
from mmtlib.data.sources.listing import SourceError

NAMES = ["".join(letters) for letters in islice(product(*WORDS.values()), 0, 60_000, 1500)]  # 40


def align(words: str) -> bytes:
    """Times in 1/25000 s, as published."""
    lines = ["0 23750 sil", *(f"{number} {number + 1} {word}" for number, word in enumerate(words.split())), "9 10 sil"]
    return "\n".join(lines).encode()


def test_a_sentence_is_six_letters():
    assert list(sentence("bbaf2n").values()) == ["bin", "blue", "at", "f", "two", "now"]
    assert list(sentence("swwzzp").values()) == ["set", "white", "with", "z", "zero", "please"]
    assert list(sentence("lrio9s").values()) == ["lay", "red", "in", "o", "nine", "soon"]
    for name in ("bbaw2n", "bbaf0n", "bbaf2", "bbaf2nn", "BBAF2N", "", "xbaf2n"):
        assert sentence(name) is None
    assert len(NAMES) == 40
    assert all(map(sentence, NAMES))


def test_a_talker_alone_is_dealt_into_five_equal_folds(tmp_path, capsys):
    media = tmp_path / "media"
    film = clip_bytes(tmp_path, 1)
    for number, name in enumerate(NAMES):
        put(media / f"s1/video/{name}.mp4", film if number == 0 else b"")
        put(media / f"s1/video/{name}.wav", b"")  # beside the video
    put(media / "s1/video/intro.mp4", b"")
    put(media / f"extra/{NAMES[1]}.mpg", b"")
    put(media / f"s1/again/{NAMES[1]}.mpg", b"")
    download(tmp_path / "out", source="grid", media=str(media), workers=1)
    clips = read_manifest(tmp_path / "out/manifest.csv")
    assert clips.columns.tolist()[6:] == ["command", "colour", "letter", "digit", "fold", "group"]
    assert sorted(clips.clip_id) == sorted(f"s1_{name}" for name in NAMES)
    assert clips.group.tolist() == clips.clip_id.tolist()
    assert clips.fold.value_counts().to_dict() == dict.fromkeys(range(1, 6), 8)
    assert set(clips.split) == {"train"}
    first = clips.set_index("clip_id").loc[f"s1_{NAMES[0]}"]
    assert first.path == f"s1/video/{NAMES[0]}.mp4"
    assert first[["command", "colour", "letter", "digit", "label"]].tolist() == [
        "bin",
        "blue",
        "a",
        "zero",
        "bin blue a zero",
    ]
    dataset = json.loads((tmp_path / "out/dataset.json").read_text())
    assert {head: len(names) for head, names in dataset["heads"].items()} == {
        "command": 4,
        "colour": 4,
        "letter": 25,
        "digit": 10,
    }
    assert dataset["heads"]["digit"][:2] == ["zero", "one"]
    assert (dataset["name"], dataset["class_list"], dataset["folds"]) == ("grid", "grid", [1, 2, 3, 4, 5])
    out = capsys.readouterr().out
    assert "3 media files are not used as clips, 's1/video/intro.mp4' is the first" in out
    assert "more than one fold" not in out


def test_talkers_are_dealt_round(tmp_path):
    for talker in (1, 2, 3, 10, 20, 34):
        for name in NAMES[:3]:
            put(tmp_path / f"s{talker}/{name}.mpg", b"")
    clips = listed("grid", None, tmp_path).clips
    assert clips.clip_id.is_unique
    folds = clips.groupby(clips.clip_id.str.partition("_")[0]).fold.unique()
    assert {talker: list(found) for talker, found in folds.items()} == {
        "s1": [1],
        "s2": [2],
        "s3": [3],
        "s10": [4],
        "s20": [5],
        "s34": [1],
    }
    with pytest.raises(SourceError, match="grid has no list 'x'; leave it out"):
        listed("grid", None, tmp_path, "x")
    with pytest.raises(SourceError, match="holds no clip of grid"):
        listed("grid", None, tmp_path / "s1")  # whose talker no folder names


def test_words_of_an_alignment_must_agree(tmp_path):
    put(tmp_path / "s1/bbaf2n.mpg", b"")
    with pytest.raises(SourceError, match=r"has no \.align file of a sentence; leave annotations out"):
        listed("grid", tmp_path / "s1", tmp_path)
    put(tmp_path / "align/s1/bbaf2n.align", align("bin blue at f two now"))
    assert len(listed("grid", tmp_path / "align", tmp_path).clips) == 1
    put(tmp_path / "align/s1/bbaf2n.align", align("bin blue at f sp two soon"))
    words = (
        r"bbaf2n\.align: the words are 'bin blue at f two soon', its name says 'bin blue at f two now'; correct one\.$"
    )
    with pytest.raises(ManifestError, match=words):
        listed("grid", tmp_path / "align", tmp_path)


def test_the_real_files():
    folder = real_files("GRID")
    clips, dataset = listed("grid", folder, folder)  # with its alignments, all of which agree
    assert len(clips) == 1000
    assert clips.fold.value_counts().to_dict() == dict.fromkeys(range(1, 6), 200)
    assert all(set(clips[head]) == set(names) for head, names in dataset["heads"].items())
