"""VGGSound and Kinetics-Sounds in their official layouts; listed, found and cut right, to the clip."""

import csv
from functools import partial

import pytest
from real_sets import build_manifest, clip_bytes, counts, csv_text, flawed, put, real_files, video_id

from mmtlib.config import CLASS_LISTS
from mmtlib.data import ManifestError
from mmtlib.data.manifest import read_table
from mmtlib.data.sources.listing import SourceError, class_names
from mmtlib.data.sources.survey import list_clips
from mmtlib.data.sources.youtube import SECONDS

build = partial(build_manifest, workers=1)
TRAIN = ["good", "good", "missing", "truncated", "no index", "silent", "blind", "short", "good", "good"]
TEST = ["good", "empty", "a page", "missing", "missing", "silent", "good"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return flawed(tmp_path_factory.mktemp("made"), SECONDS)


@pytest.fixture
def vggsound(tmp_path, files):
    """The annotation's path and the media folder; clips as `<id>_<six digits>.mp4`, a folder a split."""
    rows = []
    for split, flaws in (("train", TRAIN), ("test", TEST)):
        for flaw in flaws:
            name, start = video_id(len(rows)), 30 * len(rows)
            put(tmp_path / f"media/{split}/{name}_{start:06d}.mp4", files[flaw])
            rows.append((name, start, class_names("vggsound-309")[-len(rows)], split))
    (tmp_path / "vggsound.csv").write_text(csv_text(rows))
    return tmp_path / "vggsound.csv", tmp_path / "media"


def test_vggsound_is_listed_whole_and_counted_exactly(vggsound, capsys):
    manifest, coverage = build("vggsound", *vggsound, val_share=0.3)
    assert coverage.columns.tolist() == [
        "split",
        "listed",
        "found",
        "broken",
        "silent",
        "blind",
        "too_short",
        "in_train",
    ]
    assert coverage.split.tolist() == ["train", "val", "test"]
    rows = coverage.set_index("split")
    assert rows.loc["test"].tolist() == counts(TEST)
    held_out = [flaw for flaw, split in zip(TRAIN, manifest.split, strict=False) if split == "val"]
    kept = [flaw for flaw, split in zip(TRAIN, manifest.split, strict=False) if split == "train"]
    assert held_out
    assert kept
    assert rows.loc["val"].tolist() == counts(held_out)
    assert rows.loc["train"].tolist() == counts(kept)
    assert len(manifest) == len(TRAIN + TEST)
    assert manifest.clip_id[1] == "aB_00000001_000030"
    assert manifest.path[1] == "train/aB_00000001_000030.mp4"
    assert manifest.path[2] == "aB_00000002_000060.mp4"  # missing: where it would be
    assert manifest[["start", "end"]].isna().all(axis=None)
    notes = capsys.readouterr().out
    assert "note: 17 clips listed in vggsound.csv; 199176 or 199467 are published" in notes
    assert "note: 292 of 309 classes have no clip, 'basketball bounce' is the first" in notes


def test_the_authors_own_two_lists_of_vggsound_say_the_same(vggsound, tmp_path):
    path, media = vggsound
    lists = tmp_path / "lists"
    for split in ("train", "test"):
        rows = [row for row in csv.reader(path.read_text().splitlines()) if row[3] == split]
        put(lists / f"{split}.csv", csv_text([(f"{row[0]}_{int(row[1]):06d}.mp4", row[2]) for row in rows]).encode())
    one, other = build("vggsound", path, media, val_share=0.3), build("vggsound", lists, media, val_share=0.3)
    assert one[0].equals(other[0])
    assert one[1].equals(other[1])
    with (lists / "test.csv").open("a") as file:
        file.write("aB_00000099_12.mp4,hail\n")
    with pytest.raises(ManifestError, match=r"test\.csv, line 8: file is 'aB_00000099_12\.mp4'; it must look like"):
        build("vggsound", lists, media)


def test_files_as_yt_dlp_leaves_them(tmp_path, files):
    whole = clip_bytes(tmp_path, 45)
    put(tmp_path / "m/abcdefghi_0.mkv", whole)  # the whole video by its id alone
    put(tmp_path / "m/x/A title [with brackets] [abcdefghi_1].webm", whole)
    put(tmp_path / "m/abcdefghi_2.mp4", files["good"])  # cut by --download-sections: as long as a clip
    put(tmp_path / "m/abcdefghi_3.mp4", whole)
    put(tmp_path / "m/abcdefghi_3_000030.mp4", files["good"])  # the cut clip goes before the whole video
    put(tmp_path / "m/abcdefghi_4.wav", b"")
    put(tmp_path / "m/abcdefghi_4.mp4", files["good"])  # pictures go before sound
    put(tmp_path / "m/abcdefghi_5.f137.mp4", whole)  # what is left of an interrupted download is no clip
    put(tmp_path / "m/abcdefghi_5.mp4.part", whole)
    put(tmp_path / "m/.hidden/abcdefghi_5.mp4", whole)
    rows = [(f"abcdefghi_{number}", 30, "hail", "test") for number in range(6)] + [("abcdefghi_0", 40, "hail", "test")]
    rows += [("abcdefghi_0", 50, "hail", "test")]
    (tmp_path / "v.csv").write_text(csv_text(rows))
    manifest, coverage = build("vggsound", tmp_path / "v.csv", tmp_path / "m")
    assert manifest.path.str.rpartition("/")[2].tolist() == [
        "abcdefghi_0.mkv",
        "A title [with brackets] [abcdefghi_1].webm",
        "abcdefghi_2.mp4",
        "abcdefghi_3_000030.mp4",
        "abcdefghi_4.mp4",
        "abcdefghi_5_000030.mp4",
        "abcdefghi_0.mkv",
        "abcdefghi_0.mkv",
    ]
    assert manifest.start.fillna(-1).tolist() == [30, 30, -1, -1, -1, -1, 40, 50]
    assert manifest.end.fillna(-1).tolist() == [40, 40, -1, -1, -1, -1, 50, 60]
    # One missing; of the 45 s, the clip from 40 s on has but five; the one from 50 s on has nothing.
    assert coverage.set_index("split").loc["test"].tolist() == [8, 7, 1, 0, 0, 1, 0]


def test_a_clip_listed_twice_counts_once(tmp_path, files, capsys):
    put(tmp_path / "m/abcdefghi_0_000030.mp4", files["good"])
    (tmp_path / "v.csv").write_text("abcdefghi_0,30,hail,test\nabcdefghi_0,30,hail,test\n")
    manifest, _ = build("vggsound", tmp_path / "v.csv", tmp_path / "m")
    assert len(manifest) == 1
    assert "1 lines repeat a clip and are left out; 'abcdefghi_0_000030' is the first" in capsys.readouterr().out


def test_the_held_out_clips_depend_on_their_ids_alone(tmp_path):
    rows = [(video_id(number), 7, "hail", "train") for number in range(400)]
    (tmp_path / "a.csv").write_text(csv_text(rows))
    (tmp_path / "b.csv").write_text(csv_text(rows[::-2], quoting=1))
    (tmp_path / "m").mkdir()
    first, second = (build("vggsound", tmp_path / name, tmp_path / "m")[0] for name in ("a.csv", "b.csv"))
    splits = first.set_index("clip_id").split
    assert 8 <= (splits == "val").sum() <= 34  # 5 % of 400, within three standard deviations
    assert (second.set_index("clip_id").split == splits[second.clip_id]).all()
    none = build("vggsound", tmp_path / "a.csv", tmp_path / "m", val_share=0)[0]
    assert set(none.split) == {"train"}


GOOD = "abcdefghi_0,30,hail,test\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD + "../../etc/x,30,hail,test\n", "line 2: youtube_id is '../../etc/x'"),
        (GOOD + "; rm -rf ~ #,30,hail,test\n", "line 2: youtube_id is '; rm -rf ~ #'"),
        (GOOD + "abcdefghi'0,30,hail,test\n", 'line 2: youtube_id is "abcdefghi\'0"'),
        (GOOD + '"abcdefghi""0",30,hail,test\n', "line 2: youtube_id is 'abcdefghi\"0'"),
        (GOOD + "abcdefghiéx,30,hail,test\n", "line 2: youtube_id is"),
        (GOOD + "abcdefghi_0\n,30,hail,test\n", "line 2: 1 fields where there must be 4"),
        (GOOD + '"abcdefghi_0\n",30,hail,test\n', "youtube_id is 'abcdefghi_0\\n'"),
        (GOOD + "abcdefghi_1,-3,hail,test\n", "line 2: start_seconds is '-3'"),
        (GOOD + "abcdefghi_1,1e3,hail,test\n", "start_seconds is '1e3'"),
        (GOOD + "abcdefghi_1,30,thunder storm,test\n", "line 2: label is 'thunder storm'"),
        (GOOD + "abcdefghi_1,30,hail,validation\n", "split is 'validation'"),
        (GOOD + "x" * 10_000_000 + "\n", "field larger than field limit"),
        (GOOD + ("y" * 99 + ",") * 100_000 + "\n", "100001 fields where there must be 4"),
        (GOOD + "abcdefghi_1,30,ha\0il,test\n", "line 2: a NUL character"),
        ((GOOD + "abcdefghi_1,30,é,test\n").encode("latin-1"), "line 2: not UTF-8 text"),
        (GOOD.encode("utf-16"), "not UTF-8 text"),
        (GOOD + 'abcdefghi_1,30,"hail,test\n', "not a CSV"),
        ("", "lists no clips"),
    ],
)
def test_hostile_annotations_are_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "vggsound.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "m").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ManifestError) as error:
        build("vggsound", path, tmp_path / "m", cache=tmp_path / "probe")
    text = str(error.value)
    assert words in text
    assert "vggsound.csv" in text
    assert len(text) < 400
    assert "\n" not in text
    assert text.endswith(".")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "v.csv").write_bytes(b"\xef\xbb\xbf" + 2 * GOOD.replace("\n", "\r\n").encode())
    manifest, _ = build("vggsound", tmp_path / "v.csv", tmp_path / "m")
    assert manifest.clip_id.tolist() == ["abcdefghi_0_000030"]


def test_class_lists_are_the_published_ones():
    vggsound, ks31, ks32 = (class_names(name) for name in ("vggsound-309", *CLASS_LISTS["kinetics-sounds"]))
    assert (len(set(vggsound)), len(set(ks31)), len(set(ks32))) == (309, 31, 32)
    assert vggsound[:2] == ["ambulance siren", "basketball bounce"]
    assert {"female speech, woman speaking", "playing tympani", "eletric blender running"} < set(vggsound)
    assert set(ks32) - set(ks31) == {"strumming guitar"}
    assert ks31 == sorted(ks31)
    assert sum(name.startswith("playing ") for name in ks31) == 15


@pytest.mark.parametrize("validation", ["val.csv", "validate.csv"])
def test_kinetics_sounds_is_listed_whole_and_counted_exactly(tmp_path, files, validation, capsys):
    header = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
    splits = {"train": ("train.csv", TRAIN), "test": (validation, TEST)}
    number = 0
    for split, (name, flaws) in splits.items():
        rows = [header, ("abseiling", "#NAME?", 59, 69, split, 0)]  # no class of the list: not ours to judge
        for flaw in flaws:
            label = class_names("kinetics-sounds-31")[number % 5]
            put(tmp_path / f"k400/{split}/{label}/{video_id(number)}_{number:06d}_{number + 10:06d}.mp4", files[flaw])
            rows.append((label, video_id(number), number, number + 10, split, 0))
            number += 1
        put(tmp_path / "annotations" / name, csv_text(rows).encode())
    put(tmp_path / "annotations/test.csv", b"youtube_id,time_start,time_end,split\n")
    manifest, coverage = build(
        "kinetics-sounds", tmp_path / "annotations", tmp_path / "k400", class_list="kinetics-sounds-31", val_share=0.3
    )
    rows = coverage.set_index("split")
    for split in ("train", "val"):
        flaws = [flaw for flaw, found in zip(TRAIN, manifest.split, strict=False) if found == split]
        assert flaws
        assert rows.loc[split].tolist() == counts(flaws)
    assert rows.loc["test"].tolist() == counts(TEST)
    assert manifest.clip_id[0] == "-B_00000000_000000_000010"
    notes = capsys.readouterr().out
    assert "note: 26 of 31 classes have no clip, 'laughing' is the first" in notes
    assert "note: 11 clips listed in train.csv; 246535 are published" in notes


def test_the_kinetics_list_must_be_named(tmp_path):
    (tmp_path / "m").mkdir()
    for name in (None, "kinetics-sounds-34"):
        with pytest.raises(SourceError, match=r"^download\.class_list: .* is none of kinetics-sounds-31, kinetics-s"):
            build("kinetics-sounds", tmp_path, tmp_path / "m", class_list=name)
    with pytest.raises(SourceError, match="vggsound has no list 'vggsound-310'"):
        build("vggsound", tmp_path / "v.csv", tmp_path / "m", class_list="vggsound-310")


LISTS = {
    "my_train.txt": "aaaaaaaaaa0_000003_000013,10,0\naaaaaaaaaa1_000000_000004,4,30\naaaaaaaaaa2_000001_000011,10,7\n",
    "my_test.txt": "aaaaaaaaaa3_2,10,4\naaaaaaaaaa4_7,10,4\naaaaaaaaaa5_60,10,23\n",
}


@pytest.fixture
def shared_lists(tmp_path):
    for name, text in LISTS.items():
        put(tmp_path / "lists" / name, text.encode())
    return tmp_path / "lists"


def test_the_lists_that_the_literature_shares_are_read(shared_lists, tmp_path, files):
    names = ("aaaaaaaaaa0_000003_000013", "aaaaaaaaaa3_2", "aaaaaaaaaa5_000060_000070")
    for name in names:
        put(tmp_path / f"m/{name}.mp4", files["good"])
    options = {"class_list": "kinetics-sounds-31", "val_share": 0}
    manifest, coverage = build("kinetics-sounds", shared_lists, tmp_path / "m", **options)
    assert manifest.path[[0, 3, 5]].tolist() == [f"{name}.mp4" for name in names]  # one as its list calls it
    assert manifest.clip_id[3] == "aaaaaaaaaa3_000002_000012"
    assert manifest.split.tolist() == ["train"] * 3 + ["test"] * 3
    classes = ["blowing nose", "tickling", "playing accordion", *["dribbling basketball"] * 2, "shoveling snow"]
    assert manifest.label.tolist() == classes
    assert manifest.start[[0, 3, 5]].isna().all()
    assert coverage.set_index("split").found.to_dict() == {"train": 1, "val": 0, "test": 2}
    lasts = list_clips("kinetics-sounds", shared_lists, [], **options).clips.lasts
    assert lasts.tolist() == [10, 4, 10, 10, 10, 10]


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("my_train.txt", "aaaaaaaaaa0,10,0", "file is 'aaaaaaaaaa0'; it must look like <youtube_id>_<start>_<end>"),
        ("my_train.txt", "aaaaaaaaa/0_1_2,10,0", "youtube_id is 'aaaaaaaaa/0'; it must be 11 of"),
        ("my_train.txt", "aaaaaaaaaa0_5_5,10,0", "time_end is '5'; it must come after time_start"),
        ("my_test.txt", "aaaaaaaaaa0_1,10,31", "class is '31'; it must be a number from 0 to 30"),
        ("my_test.txt", "aaaaaaaaaa0_1,ten,3", "seconds is 'ten'; it must be whole seconds"),
    ],
)
def test_a_broken_line_of_the_shared_lists_is_named(shared_lists, tmp_path, name, line, words):
    (tmp_path / "m").mkdir()
    put(shared_lists / name, (LISTS[name] + line + "\n").encode())
    with pytest.raises(ManifestError) as error:
        build("kinetics-sounds", shared_lists, tmp_path / "m", class_list="kinetics-sounds-31")
    assert f"{name}, line 4: {words}" in str(error.value)


def test_the_shared_lists_count_31_classes(shared_lists, tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(SourceError, match="counts 31 classes; name kinetics-sounds-31"):
        build("kinetics-sounds", shared_lists, tmp_path / "m", class_list="kinetics-sounds-32")


def test_the_real_shared_lists_name_the_classes_that_kinetics_does():
    lists, kinetics = (real_files(name, "annotations") for name in ("kinetics-sounds-lists", "kinetics-400"))
    options = {"class_list": "kinetics-sounds-31", "val_share": 0}
    clips = list_clips("kinetics-sounds", lists / "KineticSound", [], **options).clips
    assert clips.split.value_counts().to_dict() == {"train": 14_799, "test": 2_597}
    assert clips.clip_id.is_unique
    assert clips.label.nunique() == 31
    published = read_table(kinetics / "test.csv", ("label", "youtube_id", "time_start", "time_end"))  # their test clips
    names = published.set_index("youtube_id").label
    known = clips[clips.clip_id.str[:11].isin(names.index)]
    assert known.split.value_counts().to_dict() == {"test": 2_567}
    assert (known.clip_id.str[:11].map(names) == known.label).all()
