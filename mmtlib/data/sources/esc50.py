"""ESC-50 and ESC-10: environmental sounds of 5 s each, in five official folds."""

from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, by_stem, in_folds, named, stem

PUBLISHED = {"esc-50": 2000, "esc-10": 400}
_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
_ESC10 = (
    r"(?:.*/)?(?P<target>0(?:0[1-9]|10)) - (?P<label>[^/]+)/(?P<clip_id>(?P<fold>[1-5])-(?P<src_file>\d+)-[A-Z])\.\w+"
)


def esc50(annotations: Path | None, media: list[str], *, class_list: str | None) -> Listing:
    """The clips of meta/esc50.csv, or without it those of ESC-10's own folders (`001 - Dog bark/1-100032-A.ogg`).

    class_list: all 50 classes (None), or esc-10, the rows that the CSV marks so. fold: the official one; group:
    the recording on Freesound that the clip was cut from. Raises SourceError where no file is named so, ManifestError
    for a line of the CSV that breaks the format.
    """
    name = "esc-50" if class_list is None and annotations else "esc-10"
    if annotations is None:
        clips = named(media, _ESC10)
        label = clips.label.str.lower().str.replace(" ", "_")
        clips = clips.assign(label=label, clip_id=label + "/" + clips.clip_id, esc10="True").drop_duplicates("clip_id")
    else:
        clips = _from_csv(annotations, media)
    clips = clips.assign(fold=clips.fold.astype(int), group="freesound-" + clips.src_file)
    wanted = clips if name == "esc-50" else clips[clips.esc10 == "True"]
    classes = wanted.set_index("label").target.astype(int).sort_values().index.unique().tolist()
    return in_folds(clips, media, PUBLISHED[name], name=name, class_list=name, classes=classes)


def _from_csv(path: Path, media: list[str]) -> pd.DataFrame:
    table = read_table(path, _COLUMNS)
    whole = table.fold + "-" + table.src_file + "-" + table["take"] + "-" + table.target + ".wav"
    good = (table.filename == whole) & whole.str.fullmatch(r"[1-5]-[0-9]+-[A-Z]-[0-9]+\.wav")
    require(path, table, good, "filename", "it must be fold (1 to 5)-src_file-take-target.wav of its line")
    require(path, table, table.esc10.isin(["True", "False"]), "esc10", "it must be True or False")
    for one, other in (("target", "category"), ("category", "target")):
        good = table.groupby(one)[other].transform("nunique") == 1
        require(path, table, good, one, f"that has more than one {other}")
    clip_id = table.filename.map(stem)
    place = clip_id.map(by_stem(media)).astype(object).fillna("audio/" + table.filename)
    return table.assign(clip_id=clip_id, path=place, label=table.category)
