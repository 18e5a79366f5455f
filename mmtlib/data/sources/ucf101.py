"""UCF101: 13,320 videos of 101 actions; three official lists, each of train and test clips, are its folds."""

import re
from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, SourceError, class_names, in_folds, note_count, stem

PUBLISHED = {"clips": 13_320, "classes": 101}
LISTS = (1, 2, 3)
_CLIP = r"^(?P<clip>(?P<label>\w+)/(?P<clip_id>v_(?P=label)_g(?P<g>\d\d)_c\d\d)\.\w+)(?: (?P<number>\d+))?\s*$"


def ucf101(annotations: Path, media: list[str], *, class_list: str | list[str] | None) -> Listing:
    """The clips that trainlist01.txt to testlist03.txt in the folder `annotations` name, with its classInd.txt.

    A file may lie in any folder and have any extension; case does not count, as the lists' own spelling varies
    (HandstandPushups, HandStandPushups). fold N: list N tests the clip; group: its class and g number, the video that
    it was cut from. class_list: all (None), sound (the 51 classes with audio) or names of classes. Raises SourceError
    for an unknown class, ManifestError for a line that breaks the format, and for lists that do not fit one another.
    """
    classes = _classes(annotations / "classInd.txt")
    chosen = _chosen(class_list, classes)
    paths = {(kind, n): annotations / f"{kind}list{n:02d}.txt" for n in LISTS for kind in ("train", "test")}
    lists = {key: _clips(path, classes) for key, path in paths.items()}
    ids = {key: set(table.clip_id) for key, table in lists.items()}
    for (kind, n), table in lists.items():
        path, clip = paths[kind, n], table.clip_id
        again = clip.duplicated() | clip.isin(ids["train", n] if kind == "test" else ())
        require(path, table, ~again, "clip", f"list {n} names it twice, so keep one of the lines")
        for other in LISTS:
            named = clip.isin(ids["train", other] | ids["test", other])
            require(path, table, named, "clip", f"train or test list {other} must name it, too")
            if kind == "test" and other < n:
                alone = ~clip.isin(ids["test", other])
                require(path, table, alone, "clip", f"test list {other} names it, too, so keep it in one of them")
    tested = {clip: n for n in LISTS for clip in ids["test", n]}
    clips = pd.concat([lists["train", 1], lists["test", 1]], ignore_index=True)
    there = {stem(file).lower(): file for file in reversed(media)}  # of two files the first in `media`
    place = clips.clip_id.str.lower().map(there).astype(object).fillna(clips["clip"])
    clips = clips.assign(path=place, fold=clips.clip_id.map(tested))
    name = "ucf101-sound" if class_list == "sound" else "ucf101"
    name = f"{len(chosen)} classes" if isinstance(class_list, list) else name
    published = PUBLISHED["clips"] if name == "ucf101" else None
    return in_folds(clips, media, published, name="ucf101", class_list=name, classes=chosen)


def _classes(path: Path) -> list[str]:
    """The classes by their numbers, which count up from 1."""
    table = read_table(path, ("class",), header=False)
    parts = table["class"].str.extract(r"^(?P<number>\d+) (?P<name>\w+)$")
    good = parts.number == pd.Series(range(1, len(table) + 1), table.index).astype(str)
    require(path, table, good, "class", "it must be a number, counting up from 1, and a name")
    require(path, table, ~parts.name.str.lower().duplicated(), "class", "that name stands for two classes")
    note_count(f"classes in {path.name}", len(table), PUBLISHED["classes"])
    return parts.name.tolist()


def _chosen(class_list: str | list[str] | None, classes: list[str]) -> list[str]:
    """The classes of a list, in the order of their numbers."""
    lists = {None: classes, "all": classes, "sound": class_names("ucf101-sound")}
    names = class_list if isinstance(class_list, list) else lists.get(class_list)
    if names is None:
        raise SourceError(f"download.class_list: {class_list!r} is neither all nor sound; name one, or list classes.")
    known, wanted = ({name.lower(): name for name in some} for some in (classes, names))
    if unknown := [wanted[key] for key in wanted if key not in known]:
        raise SourceError(f"download.class_list: {unknown[0]!r} is no class in classInd.txt; take a name from there.")
    return [known[key] for key in known if key in wanted]


def _clips(path: Path, classes: list[str]) -> pd.DataFrame:
    """clip (as listed), clip_id, label and group of each line."""
    table = read_table(path, ("clip",), header=False)
    parts = table["clip"].str.extract(_CLIP, flags=re.IGNORECASE)
    require(path, table, parts.clip_id.notna(), "clip", "it must look like Archery/v_Archery_g01_c01.avi")
    label = parts.label.str.lower().map({name.lower(): name for name in classes})
    require(path, table, label.notna(), "clip", "its folder must be a class of classInd.txt")
    number = label.map({name: str(index) for index, name in enumerate(classes, 1)})
    require(path, table, parts.number.isna() | (parts.number == number), "clip", "its class has another number")
    return parts[["clip", "clip_id"]].assign(label=label, group=label + "_g" + parts.g)
