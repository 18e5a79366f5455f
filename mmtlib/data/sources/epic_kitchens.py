"""EPIC-KITCHENS-100: segments of long videos, each a verb and a noun; nothing is cut or rewritten."""

from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, by_stem, hold_out, note_count

PUBLISHED = {"train": 67_217, "validation": 9_668, "verb": 97, "noun": 300}
_COLUMNS = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")


def epic_kitchens(annotations: Path, media: list[str], *, val_share: float | int) -> Listing:
    """The segments of EPIC_100_train.csv and EPIC_100_validation.csv in the folder `annotations`.

    clip_id is the narration_id, `<video_id>.MP4` lies in any folder below the media root. Columns verb and noun
    hold the names that EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv (or ..._v2.csv) give to the
    class numbers, `label` both. The validation split is our test split; val is a share of the train videos,
    whole ones, held out by a hash of their ids (our reading: the official test labels are not public). Without
    EPIC_100_train.csv there are test clips alone. Raises ManifestError for a line that breaks the format.
    """
    heads = {head: _classes(annotations, head) for head in ("verb", "noun")}
    videos = by_stem(media)
    parts = []
    for split, name in (("train", "train"), ("test", "validation")):
        path = annotations / f"EPIC_100_{name}.csv"
        if split == "train" and not path.exists():
            print(f"note: {path} does not exist, so there are test clips alone", flush=True)
            continue
        table = read_table(path, _COLUMNS)
        note_count(f"segments listed in {path.name}", len(table), PUBLISHED[name])
        parts.append(_segments(path, table, heads, videos).assign(split=split, video=table.video_id))
    clips = pd.concat(parts, ignore_index=True)
    clips.loc[(clips.split == "train") & hold_out(clips.video, val_share), "split"] = "val"
    name = "epic-kitchens-100"
    return Listing(clips.drop(columns="video"), {"name": name, "class_list": name, "heads": heads})


def _classes(folder: Path, head: str) -> list[str]:
    path = folder / f"EPIC_100_{head}_classes.csv"
    if not path.exists() and path.with_stem(f"{path.stem}_v2").exists():
        path = path.with_stem(f"{path.stem}_v2")
    table = read_table(path, ("id", "key"))
    numbers = pd.Series(range(len(table)), table.index).astype(str)
    require(path, table, table.id == numbers, "id", "ids must count up from 0")
    require(path, table, ~table.key.duplicated(), "key", "that name stands for two classes")
    note_count(f"{head} classes in {path.name}", len(table), PUBLISHED[head])
    return table.key.tolist()


def _segments(path: Path, table: pd.DataFrame, heads: dict[str, list[str]], videos: dict[str, str]) -> pd.DataFrame:
    video = table.video_id
    require(path, table, video.str.fullmatch(r"P[0-9]{2}_[0-9]{2,3}"), "video_id", "it must look like P01_11")
    good = table.narration_id.str.fullmatch(r"P[0-9]{2}_[0-9]{2,3}_[0-9]{1,6}")
    require(path, table, good, "narration_id", "it must look like P01_11_0")
    start, stop = (_time(path, table, column) for column in ("start_timestamp", "stop_timestamp"))
    require(path, table, stop > start, "stop_timestamp", "it must come after start_timestamp")
    names = {}
    for head, classes in heads.items():
        names[head] = table[f"{head}_class"].map({str(index): name for index, name in enumerate(classes)})
        require(path, table, names[head].notna(), f"{head}_class", f"there are {len(classes)} {head} classes")
    place = [videos.get(name, f"{name}.MP4") for name in video]
    times = {"start": start, "end": stop, "lasts": stop - start}
    label = names["verb"] + " " + names["noun"]
    return pd.DataFrame({"clip_id": table.narration_id, "path": place, **times, "label": label, **names})


def _time(path: Path, table: pd.DataFrame, column: str) -> pd.Series:
    good = table[column].str.fullmatch(r"[0-9]{2}:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?")
    require(path, table, good, column, "it must be a time as 00:01:02.34")
    hours, minutes, seconds = (table[column].str.split(":").str[index].astype(float) for index in range(3))
    return 3600 * hours + 60 * minutes + seconds
