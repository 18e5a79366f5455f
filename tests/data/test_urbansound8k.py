"""UrbanSound8K by its CSV or by its names."""

import json

import pytest
from real_sets import clip_bytes, csv_text, listed, put, real_files

from mmtlib.data import ManifestError, read_manifest
from mmtlib.data.download import download
from mmtlib.data.sources.listing import SourceError
from mmtlib.data.sources.urbansound8k import CLASSES

HEADER = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
ROWS = [
    (
        f"{1000 * fold + number}-{number}-0-{piece}.wav",
        1000 * fold + number,
        58.5,
        62.5,
        1,
        fold,
        number,
        CLASSES[number],
    )
    for fold in range(1, 11)
    for number in (0, 3)
    for piece in (0, 7)
]


@pytest.fixture
def made(tmp_path):
    put(tmp_path / "metadata/UrbanSound8K.csv", csv_text([HEADER, *ROWS]).encode())
    sound = clip_bytes(tmp_path, 1, picture=False)
    for row in ROWS[1:]:  # the first is missing
        put(tmp_path / f"audio/fold{row[5]}" / row[0], sound)
    (tmp_path / "audio/fold10/10003-3-0-7.wav").rename(tmp_path / "audio/fold10/10003-3-0-7.ogg")
    put(tmp_path / "audio/fold2/1003-3-0-0.wav", sound)  # of fold 1
    return tmp_path


def test_rows_of_the_csv(made, capsys):
    path = made / "metadata/UrbanSound8K.csv"
    download(made / "out", source="urbansound8k", annotations=str(path), media=str(made), workers=1)
    clips = read_manifest(made / "out/manifest.csv").set_index("clip_id")
    assert len(clips) == 40
    assert set(clips.split) == {"train"}
    assert clips.start.isna().all()  # the CSV's times are those of another file
    assert clips.end.isna().all()
    assert clips.fold.tolist() == [row[5] for row in ROWS]
    assert clips.loc["1000-0-0-0", ["path", "label", "group"]].tolist() == [
        "audio/fold1/1000-0-0-0.wav",
        "air_conditioner",
        "freesound-1000",
    ]
    assert clips.path["1003-3-0-0"] == "audio/fold1/1003-3-0-0.wav"
    assert clips.path["10003-3-0-7"] == "audio/fold10/10003-3-0-7.ogg"
    assert clips.group.nunique() == 20
    dataset = json.loads((made / "out/dataset.json").read_text())
    assert dataset["classes"] == CLASSES
    assert (dataset["name"], dataset["class_list"]) == ("urbansound8k", "urbansound8k")
    assert dataset["folds"] == list(range(1, 11))
    assert (made / "out/problems.csv").read_text().count("missing") == 1
    assert "1 media files are not used as clips, 'audio/fold2/1003-3-0-0.wav' is the" in capsys.readouterr().out


def test_names_alone(tmp_path, capsys):
    for place in ("fold1/101415-3-0-2.ogg", "fold1/101415-3-0-3.ogg", "fold10/7-9-1-0.wav", "fold11/8-9-1-0.wav"):
        put(tmp_path / "audio" / place, b"")
    put(tmp_path / "audio/9-9-1-0.wav", b"")
    clips, dataset = listed("urbansound8k", None, tmp_path)
    assert clips.clip_id.tolist() == ["7-9-1-0", "101415-3-0-2", "101415-3-0-3"]
    assert clips.label.tolist() == ["street_music", "dog_bark", "dog_bark"]
    assert clips.fold.tolist() == [10, 1, 1]
    assert clips.group.tolist() == ["freesound-7", "freesound-101415", "freesound-101415"]
    assert dataset["folds"] == [1, 10]
    assert "2 media files are not used as clips, 'audio/9-9-1-0.wav' is the first" in capsys.readouterr().out
    put(tmp_path / "audio/fold2/101415-3-0-4.ogg", b"")  # in a folder where it should not be
    listed("urbansound8k", None, tmp_path)
    assert "1 groups lie in more than one fold, 'freesound-101415' is the first" in capsys.readouterr().out
    with pytest.raises(SourceError, match="urbansound8k has no list 'x'; leave it out"):
        listed("urbansound8k", None, tmp_path, "x")
    with pytest.raises(SourceError, match="holds no clip of urbansound8k"):
        listed("urbansound8k", None, tmp_path / "audio/fold11")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",1,1,0,air", ",1,11,0,air", "line 2: fold is '11'; there are ten, 1 to 10"),
        (
            "1000-0-0-0.wav,1000",
            "1000-0-0-0.wav,1001",
            "line 2: slice_file_name is '1000-0-0-0.wav'; it must be fsID-cl",
        ),
        ("1000-0-0-0.wav", "../1000-0-0-0.wav", "line 2: slice_file_name is '../1000-0-0-0.wav'"),
        ("air_conditioner", "siren", "line 2: class is 'siren'; its classID is another's"),
        ("fsID", "id", "no column fsID"),
    ],
)
def test_a_broken_csv_is_named(made, old, new, words):
    path = made / "metadata/UrbanSound8K.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ManifestError) as error:
        listed("urbansound8k", path, made)
    assert "UrbanSound8K.csv" in str(error.value)
    assert words in str(error.value)


def test_the_real_files():
    clips, dataset = listed("urbansound8k", None, real_files("UrbanSound8K"))
    assert clips.fold.value_counts().to_dict() == {2: 888, 1: 873, 10: 837}
    assert len(clips) == 2598
    assert set(clips.label) == set(CLASSES)
    assert clips.groupby("group").fold.nunique().max() == 1
    assert dataset["folds"] == [1, 2, 10]
