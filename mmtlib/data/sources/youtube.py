"""VGGSound (200,000 clips, 309 classes) and Kinetics-Sounds (those of Kinetics-400 in some 30 that can be heard).

Both are clips of ten seconds out of YouTube videos, cut already or still whole.

A clip is looked for under its official name, `<id>_<start>.mp4` or `<id>_<start>_<end>.mp4` (six digits each),
else as yt-dlp leaves its video: `<id>.<ext>` or `Title [<id>].<ext>`; any folder below the media root, any
common extension. Our reading: neither set has a validation split of its own that leaves the test set alone, so
a share of the train clips is held out by a hash of their ids.
"""

import re
from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, SourceError, by_stem, class_names, hold_out, note_count, stem

_WHOLE = re.compile(r"^([A-Za-z0-9_-]{11})$|\[([A-Za-z0-9_-]{11})\]$")
SECONDS = 10  # of a clip of VGGSound
PUBLISHED = {"train": 246_535, "test": 19_907}  # clips of Kinetics-400, all its classes


def vggsound(annotations: Path, media: list[str], *, val_share: float | int) -> Listing:
    """The clips of vggsound.csv, whose lines are youtube_id,start_seconds,label,split without a header.

    `annotations` may also be the folder of the authors' train.csv and test.csv, whose lines are <clip_id>.mp4,label.
    Classes are those of the authors' stat.csv in its order, which VGGSounder numbers likewise. Raises
    ManifestError for a line that breaks the format or names another class.
    """
    classes, parts = class_names("vggsound-309"), []
    lists = {split: annotations / f"{split}.csv" for split in ("train", "test")}
    for split, path in lists.items() if annotations.is_dir() else [("", annotations)]:
        if split:
            table = read_table(path, ("file", "label"), header=False).assign(split=split)
            names = table.file.str.extract(r"^(.{11})_([0-9]{6})\.mp4$")
            require(path, table, names[0].notna(), "file", "it must look like <youtube_id>_<six digits>.mp4")
            table = table.assign(youtube_id=names[0], start_seconds=names[1])
        else:
            table = read_table(path, ("youtube_id", "start_seconds", "label", "split"), header=False)
            require(path, table, table.split.isin(lists.keys()), "split", "it must be train or test")
        require(path, table, table.label.isin(classes), "label", "that is none of VGGSound's 309 classes")
        start = whole_seconds(path, table, "start_seconds")
        parts.append(located(path, table, start, start + SECONDS, [start], media))
    note_count(f"clips listed in {annotations.name}", sum(map(len, parts)), 199_176, 199_467)
    return held_out(pd.concat(parts, ignore_index=True), val_share, "vggsound", "vggsound-309", classes)


def kinetics_sounds(annotations: Path, media: list[str], *, class_list: str, val_share: float | int) -> Listing:
    """The clips of Kinetics-400 that fall in a list of classes; its validation split is our test split.

    `annotations` is the folder of train.csv and val.csv (or validate.csv), with columns label, youtube_id,
    time_start, time_end; a test.csv there is not used, as is usual. Or it is that of my_train.txt and my_test.txt,
    which the literature on balanced learning shares: lines <youtube_id>_<start>[_<end>],seconds,class, the classes
    being those of kinetics-sounds-31, counted from 0. Raises SourceError for another class list, ManifestError for a
    line of these classes that breaks the format.
    """
    classes, parts = class_names(class_list), []
    last = next((name for name in ("my_test.txt", "val.csv") if (annotations / name).exists()), "validate.csv")
    if (shared := last == "my_test.txt") and class_list != "kinetics-sounds-31":
        raise SourceError(f"download.class_list: {annotations} counts 31 classes; name kinetics-sounds-31.")
    for split, name in (("train", "my_train.txt" if shared else "train.csv"), ("test", last)):
        path = annotations / name
        if shared:
            table = _numbered(path, classes)
        else:
            table = read_table(path, ("label", "youtube_id", "time_start", "time_end"))
            note_count(f"clips listed in {path.name}", len(table), PUBLISHED[split])
            table = table[table.label.isin(classes)]
        start, end = (whole_seconds(path, table, column) for column in ("time_start", "time_end"))
        require(path, table, end > start, "time_end", "it must come after time_start")
        found = located(path, table.assign(split=split), start, end, [start, end], media)
        if shared:  # a file may be called as the list calls it
            found["path"] = table.file.map(by_stem(media)).astype(object).fillna(found.path)
        parts.append(found)
    return held_out(pd.concat(parts, ignore_index=True), val_share, "kinetics-sounds", class_list, classes)


def _numbered(path: Path, classes: list[str]) -> pd.DataFrame:
    """The lines of my_train.txt or my_test.txt as those of Kinetics' own files; where a name has no end, it follows."""
    table = read_table(path, ("file", "seconds", "class"), header=False)
    names = table.file.str.extract(r"^(.{11})_([0-9]{1,6})(?:_([0-9]{1,6}))?$")
    require(path, table, names[0].notna(), "file", "it must look like <youtube_id>_<start>_<end>")
    labels = table["class"].map({str(number): name for number, name in enumerate(classes)})
    require(path, table, labels.notna(), "class", f"it must be a number from 0 to {len(classes) - 1}")
    end = names[2].fillna((names[1].astype(int) + whole_seconds(path, table, "seconds")).astype(str))
    return table.assign(youtube_id=names[0], time_start=names[1], time_end=end, label=labels)


def whole_seconds(path: Path, table: pd.DataFrame, column: str) -> pd.Series:
    """A column of times as numbers; raises ManifestError where one is not in whole seconds."""
    good = table[column].str.fullmatch(r"[0-9]{1,6}(?:\.0*)?")
    require(path, table, good, column, "it must be whole seconds")
    return table[column].astype(float)


def located(path: Path, table: pd.DataFrame, start, end, named: list[pd.Series], media: list[str]) -> pd.DataFrame:
    """The clip of each row, of its label and split; `named` are the times in a cut clip's name."""
    video = table.youtube_id
    require(path, table, video.str.fullmatch(r"[A-Za-z0-9_-]{11}"), "youtube_id", "it must be 11 of A-Z a-z 0-9 _ -")
    cut = by_stem(media)
    whole = {found[1] or found[2]: file for file in reversed(media) if (found := _WHOLE.search(stem(file)))}
    clip_id = video.str.cat([times.astype(int).astype(str).str.zfill(6) for times in named], sep="_")
    is_cut = clip_id.isin(cut.keys())
    uncut = ~is_cut & video.isin(whole.keys())
    place = clip_id.map(cut).where(is_cut, video.map(whole).where(uncut, clip_id + ".mp4"))
    times = {"start": start.where(uncut), "end": end.where(uncut), "lasts": end - start}
    return pd.DataFrame({"clip_id": clip_id, "path": place, **times, "label": table.label, "split": table.split})


def held_out(clips: pd.DataFrame, val_share: float | int, name: str, class_list: str, classes: list[str]) -> Listing:
    """The listing of clips in train and test, a share of the train clips made val; notes classes without a clip."""
    there = set(clips.label)
    if absent := [name for name in classes if name not in there]:
        print(f"note: {len(absent)} of {len(classes)} classes have no clip, {absent[0]!r} is the first", flush=True)
    clips.loc[(clips.split == "train") & hold_out(clips.clip_id, val_share), "split"] = "val"
    return Listing(clips, {"name": name, "class_list": class_list, "classes": classes})
