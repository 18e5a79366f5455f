"""ESC-50 by its CSV, ESC-10 by its folders."""

import json

import pytest
from real_sets import clip_bytes, csv_text, listed, put, real_files

from mmtlib.data import ManifestError, read_manifest
from mmtlib.data.download import download
from mmtlib.data.sources.listing import SourceError

HEADER = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
CLASSES = [(0, "dog", True), (1, "rooster", True), (14, "chirping_birds", False)]


def rows() -> list[tuple]:
    """Two clips of one recording for each class and fold."""
    found = []
    for target, name, ten in CLASSES:
        for fold in range(1, 6):
            source = 100 * fold + target
            found += [(f"{fold}-{source}-{take}-{target}.wav", fold, target, name, ten, source, take) for take in "AB"]
    return found


@pytest.fixture
def made(tmp_path):
    put(tmp_path / "meta/esc50.csv", csv_text([HEADER, *rows()]).encode())
    sound = clip_bytes(tmp_path, 1, picture=False)
    for row in rows()[1:]:  # the first is missing
        put(tmp_path / "audio" / row[0], sound)
    (tmp_path / "audio/1-100-B-0.wav").rename(tmp_path / "audio/1-100-B-0.ogg")
    put(tmp_path / "audio/9-1-A-0.wav", sound)
    put(tmp_path / "esc50.gif", b"")
    return tmp_path


def test_rows_of_the_csv(made, capsys):
    download(made / "out", source="esc50", annotations=str(made / "meta/esc50.csv"), media=str(made), workers=1)
    clips = read_manifest(made / "out/manifest.csv").set_index("clip_id")
    assert len(clips) == 30
    assert set(clips.split) == {"train"}
    assert clips.fold.dtype == int
    assert clips.fold.tolist() == [row[1] for row in rows()]
    assert clips.loc["1-100-A-0", ["path", "label", "group"]].tolist() == [
        "audio/1-100-A-0.wav",
        "dog",
        "freesound-100",
    ]
    assert clips.path["1-100-B-0"] == "audio/1-100-B-0.ogg"
    assert clips.group.nunique() == 15
    dataset = json.loads((made / "out/dataset.json").read_text())
    assert dataset["classes"] == ["dog", "rooster", "chirping_birds"]
    assert (dataset["name"], dataset["class_list"], dataset["folds"]) == ("esc-50", "esc-50", [1, 2, 3, 4, 5])
    assert "1-100-A-0,audio/1-100-A-0.wav,missing" in (made / "out/problems.csv").read_text()
    assert "2 media files are not used as clips, 'esc50.gif' is the first" in capsys.readouterr().out


def test_the_ten_classes_of_the_csv(made, capsys):
    found = listed("esc50", made / "meta/esc50.csv", made, "esc-10")
    assert found.dataset == {
        "name": "esc-10",
        "class_list": "esc-10",
        "classes": ["dog", "rooster"],
        "folds": [1, 2, 3, 4, 5],
    }
    assert len(found.clips) == 20
    assert "2 media files" in capsys.readouterr().out  # those of other classes are no strays
    with pytest.raises(SourceError, match="esc50 has no list 'esc-20'; name esc-10 or leave it out"):
        listed("esc50", made / "meta/esc50.csv", made, "esc-20")


def test_the_folders_of_esc10(tmp_path, capsys):
    for place in ("001 - Dog bark/1-30226-A", "001 - Dog bark/5-9032-B", "010 - Fire crackling/1-4211-A"):
        put(tmp_path / f"{place}.ogg", b"")
    put(tmp_path / "README.txt", b"")
    put(tmp_path / "1-4211-B.ogg", b"")
    put(tmp_path / "001 - Dog bark/my dog.ogg", b"")
    put(tmp_path / "101 - Dog/1-30226-A.ogg", b"")
    clips, dataset = listed("esc50", None, tmp_path)
    assert clips.clip_id.tolist() == ["dog_bark/1-30226-A", "dog_bark/5-9032-B", "fire_crackling/1-4211-A"]
    assert clips.path[2] == "010 - Fire crackling/1-4211-A.ogg"
    assert clips.fold.tolist() == [1, 5, 1]
    assert clips.group.tolist() == ["freesound-30226", "freesound-9032", "freesound-4211"]
    assert dataset == {
        "name": "esc-10",
        "class_list": "esc-10",
        "classes": ["dog_bark", "fire_crackling"],
        "folds": [1, 5],
    }
    assert "3 media files are not used as clips, '001 - Dog bark/my dog.ogg' is the first" in capsys.readouterr().out
    with pytest.raises(SourceError, match="holds no clip of esc-10; give its folder as it was published"):
        listed("esc50", None, tmp_path / "101 - Dog")


def test_a_recording_in_two_folds_is_noted(tmp_path, capsys):
    for place in ("001 - Dog bark/1-77-A", "001 - Dog bark/2-77-B", "002 - Rain/1-78-A"):
        put(tmp_path / f"{place}.ogg", b"")
    listed("esc50", None, tmp_path)
    assert "note: 1 groups lie in more than one fold, 'freesound-77' is the first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "1-100-A-0.wav,1,",
            "1-100-A-0.wav,2,",
            "line 2: filename is '1-100-A-0.wav'; it must be fold (1 to 5)-src_file",
        ),
        ("1-100-A-0.wav,1,", "6-100-A-0.wav,6,", "line 2: filename is '6-100-A-0.wav'"),
        ("dog,True,100,A", "dog,yes,100,A", "line 2: esc10 is 'yes'; it must be True or False"),
        ("0,dog,True,100,A", "0,cat,True,100,A", "line 2: target is '0'; that has more than one category"),
        ("1,rooster", "1,dog", "line 2: category is 'dog'; that has more than one target"),
        ("src_file", "source", "no column src_file"),
    ],
)
def test_a_broken_csv_is_named(made, old, new, words):
    path = made / "meta/esc50.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ManifestError) as error:
        listed("esc50", path, made)
    assert "esc50.csv" in str(error.value)
    assert words in str(error.value)


def test_the_real_files():
    clips, dataset = listed("esc50", None, real_files("ESC-10"))
    assert clips.fold.value_counts().to_dict() == dict.fromkeys(range(1, 6), 80)
    assert clips.label.value_counts().tolist() == [40] * 10
    assert len(dataset["classes"]) == 10
    assert clips.clip_id.is_unique
    assert clips.groupby("group").fold.nunique().max() == 1
