"""UCF101 in its official layout: three lists of train and test clips."""

import json

import pytest
from real_sets import clip_bytes, listed, put, real_files

from mmtlib.data import ManifestError, read_manifest
from mmtlib.data.download import download
from mmtlib.data.sources.listing import SourceError, class_names

# Folder, spelling in the names; the two differ as published.
CLASSES = [("Archery", "Archery"), ("HandstandPushups", "HandStandPushups"), ("YoYo", "YoYo")]
CLIPS = [
    f"{folder}/v_{name}_g{group:02d}_c{clip:02d}.avi"
    for folder, name in CLASSES
    for group in range(1, 5)
    for clip in (1, 2)
]


def group(line: str) -> int:
    return int(line.split("_g")[1][:2])


@pytest.fixture
def lists(tmp_path):
    """List N tests group N; group 4 is never tested."""
    folder = tmp_path / "ucfTrainTestlist"
    numbers = {name: number for number, (name, _) in enumerate(CLASSES, 1)}
    put(folder / "classInd.txt", "".join(f"{number} {name}\r\n" for name, number in numbers.items()).encode())
    for number in (1, 2, 3):
        train = [f"{clip} {numbers[clip.split('/')[0]]}\r\n" for clip in CLIPS if group(clip) != number]
        test = [f"{clip}\r\n" for clip in CLIPS if group(clip) == number]
        put(folder / f"trainlist0{number}.txt", "".join(train).encode())
        put(folder / f"testlist0{number}.txt", "".join(test).encode())
    return folder


def test_lists_are_folds_and_groups_are_of_their_class(tmp_path, lists, capsys):
    media = tmp_path / "media"
    for clip in CLIPS[1:]:  # the first is missing
        put(media / clip.replace(".avi", ".mp4"), clip_bytes(tmp_path, 1) if clip == CLIPS[1] else b"")
    (media / CLIPS[2].replace(".avi", ".mp4")).rename(
        media / "v_archery_g02_c01.MKV"
    )  # another folder, case, extension
    put(media / "YoYo/outtake.mp4", b"")
    manifest = download(
        tmp_path / "out", source="ucf101", annotations=str(lists), media=str(media), class_list=None, workers=1
    )
    again = read_manifest(tmp_path / "out/manifest.csv")
    assert manifest.columns.tolist() == ["clip_id", "path", "start", "end", "label", "split", "fold", "group"]
    assert len(again) == 24
    assert set(again.split) == {"train"}
    assert again.fold.fillna(0).tolist() == [0 if group(clip) == 4 else group(clip) for clip in again.clip_id]
    assert manifest.fold.dtype == "Int64"
    rows = (tmp_path / "out/manifest.csv").read_text().splitlines()
    assert "v_Archery_g01_c01,Archery/v_Archery_g01_c01.avi,,,Archery,train,1,Archery_g01" in rows
    pushups = "HandstandPushups,train,,HandstandPushups_g04"
    assert f"v_HandStandPushups_g04_c02,HandstandPushups/v_HandStandPushups_g04_c02.mp4,,,{pushups}" in rows
    assert again.set_index("clip_id").path["v_Archery_g02_c01"] == "v_archery_g02_c01.MKV"
    assert again.groupby("group").size().tolist() == [2] * 12
    dataset = json.loads((tmp_path / "out/dataset.json").read_text())
    assert dataset["classes"] == [name for name, _ in CLASSES]
    assert (dataset["name"], dataset["class_list"], dataset["folds"]) == ("ucf101", "ucf101", [1, 2, 3])
    problems = (tmp_path / "out/problems.csv").read_text()
    assert "v_Archery_g01_c01,Archery/v_Archery_g01_c01.avi,missing," in problems
    assert "v_Archery_g01_c02" not in problems
    assert "1 media files are not used as clips, 'YoYo/outtake.mp4' is the first" in capsys.readouterr().out


def test_classes_are_all_those_with_sound_or_those_named(tmp_path, lists, capsys):
    put(tmp_path / "media" / CLIPS[0], b"")
    found = listed("ucf101", lists, tmp_path / "media", ["yoyo", "Archery"])
    assert found.dataset["classes"] == ["Archery", "YoYo"]
    assert found.dataset["class_list"] == "2 classes"
    assert len(found.clips) == 16
    found = listed("ucf101", lists, tmp_path / "media", ["YoYo"])  # a file of a class not chosen is no stray
    assert "not used" not in capsys.readouterr().out
    with pytest.raises(SourceError, match=r"'Yoyo2' is no class in classInd\.txt; take a name from there\.$"):
        listed("ucf101", lists, tmp_path / "media", ["Archery", "Yoyo2"])
    with pytest.raises(SourceError, match="'loud' is neither all nor sound"):
        listed("ucf101", lists, tmp_path / "media", "loud")
    assert len(listed("ucf101", lists, tmp_path / "media", "all").clips) == 24
    names = [*(name for name, _ in CLASSES), *sorted({*class_names("ucf101-sound")} - {"Archery", "HandstandPushups"})]
    (lists / "classInd.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, 1)))
    found = listed("ucf101", lists, tmp_path / "media", "sound")
    assert found.dataset["class_list"] == "ucf101-sound"
    assert sorted(found.dataset["classes"]) == sorted(class_names("ucf101-sound"))
    assert set(found.clips.label) == {"Archery", "HandstandPushups"}


def test_51_classes_carry_sound():
    names = class_names("ucf101-sound")
    assert len(set(names)) == len(names) == 51
    assert not {"YoYo", "Basketball", "JumpRope"} & set(names)


A, Z = "Archery/v_Archery_g01_c01.avi", "YoYo/v_YoYo_g04_c02.avi"


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("trainlist02", f"{A} 1\r\n", "", f"testlist01.txt, line 1: clip is '{A}'; train or test list 2 must name it"),
        (
            "trainlist02",
            f"{Z} 3",
            f"{Z} 3\r\n{Z} 3",
            "trainlist02.txt, line 19: clip is 'YoYo/v_YoYo_g04_c02.avi'; list",
        ),
        (
            "testlist01",
            f"{A}\r\n",
            f"{A}\r\n{Z}\r\n",
            "testlist01.txt, line 2: clip is 'YoYo/v_YoYo_g04_c02.avi'; list",
        ),
        (
            "testlist01",
            A,
            "Archery/v_YoYo_g01_c01.avi",
            "testlist01.txt, line 1: clip is 'Archery/v_YoYo_g01_c01.avi'; ",
        ),
        ("testlist03", "YoYo", "Yodel", "testlist03.txt, line 5: clip is 'Yodel/v_Yodel_g03_c01.avi'; its folder must"),
        ("trainlist01", f"{Z} 3", f"{Z} 2", "trainlist01.txt, line 18: clip is 'YoYo/v_YoYo_g04_c02.avi 2'; its class"),
        ("classInd", "3 YoYo", "4 YoYo", "classInd.txt, line 3: class is '4 YoYo'; it must be a number, counting up"),
        ("classInd", "3 YoYo", "3 archery", "classInd.txt, line 3: class is '3 archery'; that name stands for two"),
    ],
)
def test_a_broken_list_is_named(tmp_path, lists, name, old, new, words):
    path = lists / f"{name}.txt"
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())
    put(tmp_path / "media/x.mp4", b"")
    with pytest.raises(ManifestError) as error:
        listed("ucf101", lists, tmp_path / "media")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_clip_in_two_test_lists_and_a_list_that_is_not_there(tmp_path, lists):
    put(tmp_path / "media/x.mp4", b"")
    for name in ("trainlist02.txt", "testlist02.txt"):
        text = (lists / name).read_bytes().decode().replace(f"{A} 1\r\n", "")
        (lists / name).write_bytes((text + (f"{A}\r\n" if name[1] == "e" else "")).encode())
    with pytest.raises(
        ManifestError, match=r"testlist02\.txt, line 7: .* test list 1 names it, too, so keep it in one"
    ):
        listed("ucf101", lists, tmp_path / "media")
    (lists / "testlist03.txt").unlink()
    with pytest.raises(ManifestError, match=r"testlist03\.txt does not exist; put the file there"):
        listed("ucf101", lists, tmp_path / "media")


def test_the_real_files():
    folder = real_files("UCF101")
    names = [path.name for path in folder.iterdir() if any(path.glob("v_*"))]
    clips = listed("ucf101", folder / "ucfTrainTestlist", folder, names).clips
    assert (len(names), len(clips)) == (7, 930)
    assert clips.path.str.endswith(".mp4").all()  # each is there
    assert not clips.groupby("group").fold.nunique(dropna=False).gt(1).any()
    every = listed("ucf101", folder / "ucfTrainTestlist", folder).clips
    assert len(every) == 13_320
    assert every.fold.value_counts().sort_index().tolist() == [3783, 3734, 3696]
