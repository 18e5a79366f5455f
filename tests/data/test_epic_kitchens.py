"""EPIC-KITCHENS-100 in its official layout: segments of long videos, verbs and nouns."""

from functools import partial

import pandas as pd
import pytest
from real_sets import build_manifest, clip_bytes, csv_text, put, real_files

from mmtlib.data import ManifestError
from mmtlib.data.sources.survey import list_clips, survey

build = partial(build_manifest, workers=1)
HEADER = ["narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp"]
HEADER += ["start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class"]
HEADER += ["all_nouns", "all_noun_classes"]
OPTIONS = {"class_list": None, "val_share": 0.05}
VERBS, NOUNS = ["take", "put", "turn-on"], ["tap", "spoon", "plate", "board:chopping"]


def line(video: str, number: int, start: str, stop: str, verb: int, noun: int) -> tuple:
    words = ("say it, twice", "grab", verb, "cup", noun, "['cup', 'tap']", f"[{noun}, 0]")
    return (f"{video}_{number}", video[:3], video, "00:00:00.560", start, stop, 1, 113, *words)


def write(folder, train: list, validation: list) -> None:
    put(folder / "EPIC_100_train.csv", csv_text([HEADER, *train]).encode())
    put(folder / "EPIC_100_validation.csv", csv_text([HEADER, *validation]).encode())
    for head, names in (("verb", VERBS), ("noun", NOUNS)):
        rows = [(index, name, f"['{name}', 'x']", "kind") for index, name in enumerate(names)]
        put(folder / f"EPIC_100_{head}_classes.csv", csv_text([("id", "key", "instances", "category"), *rows]).encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return clip_bytes(folder, 20), clip_bytes(folder, 20, sound=False)


@pytest.fixture
def made(tmp_path, videos):
    """Three train videos (one silent), two of validation (one missing, one cut off)."""
    long, silent = videos
    put(tmp_path / "media/P01/videos/P01_01.MP4", long)
    put(tmp_path / "media/P01/videos/P01_102.MP4", silent)
    put(tmp_path / "media/P02/videos/P02_03.MP4", long)
    put(tmp_path / "media/P03/videos/P03_02.MP4", long[: len(long) // 2])
    train = [
        line("P01_01", 0, "00:00:00.00", "00:00:01.89", 0, 2),
        line("P01_01", 1, "00:00:01.56", "00:00:12.5", 1, 3),
        line("P01_01", 10, "00:00:19.00", "00:00:20.20", 2, 0),  # a hair longer than the video: whole enough
        line("P01_102", 0, "00:00:03.00", "00:00:04.00", 0, 0),
        line("P01_102", 1, "00:00:18.00", "00:00:24.00", 0, 1),  # silent and too short
        line("P02_03", 0, "00:00:21.00", "00:00:23.00", 1, 1),  # after the video's end
    ]
    validation = [
        line("P03_01", 0, "00:00:00.00", "00:00:02.00", 0, 0),
        line("P03_02", 0, "00:00:01.00", "00:00:02.00", 0, 0),
        line("P03_02", 1, "01:02:03.45", "01:02:05.00", 1, 0),
    ]
    write(tmp_path / "annotations", train, validation)
    return tmp_path / "annotations", tmp_path / "media"


def test_segments_are_cut_by_time_and_counted_exactly(made, capsys):
    found = survey("epic-kitchens-100", *made, val_share=0, workers=1)
    manifest = found.manifest
    assert manifest.columns.tolist() == ["clip_id", "path", "start", "end", "label", "split", "verb", "noun"]
    assert manifest.clip_id.tolist()[:3] == ["P01_01_0", "P01_01_1", "P01_01_10"]
    assert manifest.path.tolist()[2:7] == [
        "P01/videos/P01_01.MP4",
        "P01/videos/P01_102.MP4",
        "P01/videos/P01_102.MP4",
        "P02/videos/P02_03.MP4",
        "P03_01.MP4",
    ]
    assert manifest.start.tolist() == [0, 1.56, 19, 3, 18, 21, 0, 1, 3723.45]
    assert manifest.end.tolist()[:2] == [1.89, 12.5]
    # The number decides: the annotators' word is another (grab, cup).
    assert manifest.label.tolist()[:3] == ["take plate", "put board:chopping", "turn-on tap"]
    assert (manifest.label == manifest.verb + " " + manifest.noun).all()
    rows = found.coverage.set_index("split")
    assert rows.loc["train"].tolist() == [6, 6, 1, 2, 0, 1, 0]
    assert rows.loc["test"].tolist() == [3, 2, 2, 0, 0, 0, 0]
    assert found.problems.status.tolist() == ["silent", "silent", "too_short", "broken", "missing", "broken", "broken"]
    assert "the file lasts 20.00 s, which is before the clip begins" in found.problems.reason.tolist()
    assert found.dataset["heads"] == {"verb": VERBS, "noun": NOUNS}
    assert list(found.dataset["heads"]) == ["verb", "noun"]
    assert (found.dataset["name"], "classes" in found.dataset) == ("epic-kitchens-100", False)
    notes = capsys.readouterr().out
    assert "note: 3 verb classes in EPIC_100_verb_classes.csv; 97 are published" in notes
    assert "note: 6 segments listed in EPIC_100_train.csv; 67217 are published" in notes


def test_whole_videos_are_held_out(made):
    annotations, media = made
    rows = [
        line(f"P04_{video}", number, "00:00:01.00", "00:00:02.00", 0, 0) for video in range(10, 99) for number in (0, 1)
    ]
    write(annotations, rows, rows[:1])
    manifest, _ = build("epic-kitchens-100", annotations, media, val_share=0.2)
    manifest = manifest[manifest.split != "test"]
    per_video = manifest.groupby(manifest.clip_id.str.rpartition("_")[0]).split.nunique()
    assert (per_video == 1).all()
    assert 7 * 2 <= (manifest.split == "val").sum() <= 30 * 2


def test_without_the_train_file_there_are_test_clips_alone(made, capsys):
    annotations, media = made
    (annotations / "EPIC_100_train.csv").unlink()
    manifest, coverage = build("epic-kitchens-100", annotations, media)
    assert manifest.split.tolist() == ["test"] * 3
    assert coverage.set_index("split").listed.to_dict() == {"train": 0, "val": 0, "test": 3}
    assert "EPIC_100_train.csv does not exist, so there are test clips alone" in capsys.readouterr().out


def test_the_real_files():
    clips = list_clips("epic-kitchens-100", real_files("epic-kitchens-100", "annotations"), [], **OPTIONS).clips
    assert clips.split.value_counts().to_dict() == {"test": 9_668}
    assert clips.iloc[0][["clip_id", "start", "end", "label"]].tolist() == ["P01_11_0", 0.0, 1.89, "take plate"]


def test_the_second_version_of_a_class_list_serves_too(made):
    annotations, media = made
    (annotations / "EPIC_100_noun_classes.csv").rename(annotations / "EPIC_100_noun_classes_v2.csv")
    assert set(build("epic-kitchens-100", annotations, media)[0].noun) <= set(NOUNS)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("video_id", "../../etc/x", "EPIC_100_train.csv, line 2: video_id is '../../etc/x'; it must look like P01_11"),
        ("video_id", "P01_01; rm -rf ~", "video_id is 'P01_01; rm -rf ~'"),
        ("narration_id", "P01_01_'0", "narration_id is"),
        ("start_timestamp", "0.5", "start_timestamp is '0.5'; it must be a time as 00:01:02.34"),
        ("stop_timestamp", "00:00:00.00", "stop_timestamp is '00:00:00.00'; it must come after start_timestamp"),
        ("verb_class", "3", "verb_class is '3'; there are 3 verb classes"),
        ("noun_class", "-1", "noun_class is '-1'; there are 4 noun classes"),
    ],
)
def test_a_broken_line_is_refused_in_one_sentence(made, field, value, words):
    annotations, media = made
    path = annotations / "EPIC_100_train.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[0, field] = value
    table.to_csv(path, index=False)
    with pytest.raises(ManifestError) as error:
        build("epic-kitchens-100", annotations, media)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_class_list_and_a_missing_file_are_named(made):
    annotations, media = made
    classes = annotations / "EPIC_100_verb_classes.csv"
    for content, words in (("id,key\n0,a\n2,b\n", "line 3: id is '2'"), ("id,key\n0,a\n1,a\n", "line 3: key is 'a'")):
        classes.write_text(content)
        with pytest.raises(ManifestError, match=words):
            build("epic-kitchens-100", annotations, media)
    classes.unlink()
    with pytest.raises(ManifestError, match=r"EPIC_100_verb_classes\.csv does not exist"):
        build("epic-kitchens-100", annotations, media)
