"""ESC-50 and ESC-10: environmental sounds of 5 s each, in five official folds."""

import re
from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, SourceError, in_folds, note_count, note_others, stem

PUBLISHED = {"esc-50": 2000, "esc-10": 400}
_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
_ESC10 = re.compile(
    r"(?:.*/)?(?P<class>0(?:0[1-9]|10)) - (?P<name>[^/]+)/(?P<file>(?P<fold>[1-5])-(?P<source>\d+)-[A-Z])\.\w+"
)


def esc50(annotations: Path | None, media: list[str], *, class_list: str | None, val_share: float | int) -> Listing:
    """The clips of meta/esc50.csv, or without it those of ESC-10's own folders (`001 - Dog bark/1-100032-A.ogg`).

    class_list: all 50 classes (None), or esc-10, the rows that the CSV marks so. fold: the official one; group:
    the recording on Freesound that the clip was cut from. val_share is not used: val follows from the groups.
    Raises SourceError for another list and where no file is named so, ManifestError for a line of the CSV that
    breaks the format.
    """
    if class_list not in (None, "esc-10"):
        raise SourceError(f"download.class_list: esc50 has no list {class_list!r}; name esc-10 or leave it out.")
    name = "esc-50" if class_list is None and annotations else "esc-10"
    clips = _from_names(media) if annotations is None else _from_csv(annotations, media)
    if annotations and class_list:
        clips = clips[clips.esc10 == "True"].reset_index(drop=True)
    note_count(f"clips of {name}", len(clips), PUBLISHED[name])
    classes = [label for _, label in sorted(set(zip(clips.target, clips.label, strict=True)))]
    clips = clips[["clip_id", "path", "label", "fold", "group"]]
    return in_folds(clips, name=name, class_list=name, classes=classes)


def _from_csv(path: Path, media: list[str]) -> pd.DataFrame:
    table = read_table(path, _COLUMNS)
    named = table.fold + "-" + table.src_file + "-" + table["take"] + "-" + table.target + ".wav"
    good = (table.filename == named) & named.str.fullmatch(r"[1-5]-[0-9]+-[A-Z]-[0-9]+\.wav")
    require(path, table, good, "filename", "it must be fold (1 to 5)-src_file-take-target.wav of its line")
    require(path, table, table.esc10.isin(["True", "False"]), "esc10", "it must be True or False")
    for one, other in (("target", "category"), ("category", "target")):
        good = table.groupby(one)[other].transform("nunique") == 1
        require(path, table, good, one, f"that has more than one {other}")
    there = {stem(file): file for file in reversed(media)}  # of two files the first in `media`
    name = table.filename.map(stem)
    place = name.map(there).fillna("audio/" + table.filename)
    note_others(media, place)
    given = {"target": table.target.astype(int), "fold": table.fold.astype(int), "group": "freesound-" + table.src_file}
    return table.assign(clip_id=name, path=place, label=table.category, **given)


def _from_names(media: list[str]) -> pd.DataFrame:
    rows = {}
    for file in media:
        if found := _ESC10.fullmatch(file):
            label = found["name"].lower().replace(" ", "_")
            row = (file, label, int(found["fold"]), f"freesound-{found['source']}", int(found["class"]))
            rows.setdefault(f"{label}/{found['file']}", row)
    note_others(media, (row[0] for row in rows.values()))
    clips = pd.DataFrame(list(rows.values()), columns=["path", "label", "fold", "group", "target"])
    return clips.assign(clip_id=list(rows))
