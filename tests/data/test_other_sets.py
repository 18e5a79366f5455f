"""The programs of docs/other_sets.md, on made-up lists in the official layout and on official ones that are here."""

import re

import pandas as pd
import pytest
from real_sets import put, real_files

from mmtlib.config import ROOT
from mmtlib.data.sources.folder import folder
from mmtlib.data.sources.survey import survey

DOC = (ROOT / "docs/other_sets.md").read_text()
PROGRAMS = dict(re.findall(r"\n## (.*?)\n.*?```python\n(.*?)```", DOC, re.DOTALL))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a set's program in a folder of its official lists, then list the clips of the CSV that it writes."""
    monkeypatch.chdir(tmp_path)

    def run(name, files, media=()):
        for path, text in files.items():
            put(tmp_path / path, text.encode())
        exec(compile(PROGRAMS[name], name, "exec"), {})
        csv = tmp_path / f"{name.lower()}.csv"
        if not media:
            return folder(csv, [], val_share=0)
        for path in media:
            put(tmp_path / "media" / path, b"")
        return survey("folder", csv, tmp_path / "media", val_share=0.5, workers=1)

    return run


def test_every_set_has_its_program():
    assert list(PROGRAMS) == ["AudioSet", "FSD50K", "AVE", "EPIC-SOUNDS"]


def test_audioset(run):
    head = (
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds, labels\n"
    )
    train = '--4gqARaEJE, 0.000, 10.000, "/m/09x0r,/m/05zppz"\n-0RWZT-miFs, 420.000, 430.000, "/t/dd00"\n'
    names = 'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00,Whoosh\n'
    lists = {"class_labels_indices.csv": names, "balanced_train_segments.csv": head + train}
    lists["eval_segments.csv"] = head + '007P6bFgRCU, 10.000, 20.000, "/t/dd00,/m/09x0r"\n'
    files = ["--4gqARaEJE.wav", "-0RWZT-miFs.wav", "007P6bFgRCU.wav"]
    found = run("AudioSet", lists, files)
    assert found.dataset["classes"] == ["Male speech, man speaking", "Speech", "Whoosh"]
    assert found.manifest.label.tolist() == ["Speech|Male speech, man speaking", "Whoosh", "Whoosh|Speech"]
    assert (found.manifest.clip_id + ".wav").tolist() == found.manifest.path.tolist() == files
    assert found.manifest.split.tolist()[2] == "test"


def test_fsd50k(run):
    rows = 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h",train\n'
    lists = {"FSD50K.ground_truth/dev.csv": f"{rows}16399,Bark,/m/05tny_,val\n"}
    lists["FSD50K.ground_truth/eval.csv"] = 'fname,labels,mids\n37199,"Bark,Music","/m/05tny_,/m/04rlf"\n'
    places = ["FSD50K.dev_audio/64760.wav", "FSD50K.dev_audio/16399.wav", "FSD50K.eval_audio/37199.wav"]
    found = run("FSD50K", lists, places)
    assert found.dataset["classes"] == ["Bark", "Electric_guitar", "Guitar", "Music"]
    assert found.manifest.path.tolist() == places
    assert found.manifest.split.tolist() == ["train", "val", "test"]


AVE = ["Church bell&RUhOCu3LNXM&good&0&10", "Bark&4AYySiliYAw&good&2&6", "Cat&4AYySiliYAw&good&2&6"]


def test_ave(run):
    lists = {"trainSet.txt": "\n".join(AVE), "valSet.txt": AVE[0].replace("RU", "ru"), "testSet.txt": AVE[1].lower()}
    found = run("AVE", lists, ["RUhOCu3LNXM.mp4", "4AYySiliYAw.mp4", "ruhOCu3LNXM.mp4", "4ayysiliyaw.mp4"])
    first = found.manifest.iloc[1]
    assert (first.label, first.start, first.end, first.split) == ("Bark|Cat", 2, 6, "train")
    assert found.manifest.split.tolist() == ["train", "train", "val", "test"]


def test_all_events_that_ave_lists_are_labels_of_a_clip(run):
    lines = (real_files("AVE", "annotations") / "Annotations.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("Category&")]
    found = run("AVE", {"trainSet.txt": "\n".join(lines[2:]), "valSet.txt": lines[0], "testSet.txt": lines[1]})
    assert len(lines) == 4143
    assert found.clips.label.str.split("|").explode().size == 4142  # one has no length
    assert len(found.clips) == 4096
    assert len(found.dataset["classes"]) == 28


def test_epic_sounds_lists_what_its_official_file_lists(run):
    text = (real_files("epic-sounds", "annotations") / "EPIC_Sounds_validation.csv").read_text(encoding="utf-8")
    header, first, *_ = text.splitlines()
    train = first.replace("P01_11", "P99_11")
    found = run("EPIC-SOUNDS", {"EPIC_Sounds_validation.csv": text, "EPIC_Sounds_train.csv": f"{header}\n{train}\n"})
    official = pd.read_csv("EPIC_Sounds_validation.csv")
    test = found.clips[found.clips.split == "test"]
    assert len(official) == 8035
    assert len(test) == len(official) - 1  # two events in the same seconds
    assert len(found.dataset["classes"]) == official["class"].nunique() == 44
    row = test.set_index("clip_id").loc["P01_11_1"]
    assert (row.path, row.label, row.start, row.end) == ("P01/P01_11.MP4", "rustle", 3.065, 14.447)
