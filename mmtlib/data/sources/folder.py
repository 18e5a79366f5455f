"""A set of one's own: one folder a class, or a CSV file. Files of audio alone or of video alone are fine."""

from pathlib import Path

import numpy as np
import pandas as pd

from mmtlib.data.manifest import SPLITS, ManifestError, label_lists, read_table, require, typed_rows
from mmtlib.data.sources.listing import Listing, SourceError, hold_out_of_each

TEST_SHARE = 0.2
_TAKEN = {"fold", "group", "view", "has_audio", "has_video", "audio_frames", "lasts"}  # of sets of folds, of index.csv


def folder(annotations: Path | None, media: list[str], *, val_share: float | int) -> Listing:
    """The clips of folders named by their class, or of a CSV with columns path, label and what else it has.

    Without a CSV, the first folder of each file's path is its class, the whole file its clip and the path its id; where
    all first folders are called train, val or test, they are splits and hold the class folders. A CSV may add clip_id
    (else the path, and `#t=start,end` of a part), start, end, split and columns of its own; `labels` in the place of
    label gives a clip several, joined by `|`. Where no clip is test, a fifth of the train clips is; where none is val,
    `val_share` of the others (each by a hash of the id, of each class, or first label, one at least). Raises
    SourceError for a file outside a class folder, ManifestError for a CSV line that breaks a rule, for two labels of
    the same seconds and for an id of two clips. Parts of one file share its fate, which is then that of its path.
    """
    clips, dataset = (_from_folders(media), {}) if annotations is None else _from_csv(annotations)
    labels = label_lists(clips.label, dataset)
    units = clips.clip_id.mask(clips.groupby("path").clip_id.transform("nunique") > 1, clips.path)
    if "split" not in clips:
        clips["split"] = "train"
    for split, share in {"test": TEST_SHARE, "val": val_share}.items():
        if split not in set(clips.split):
            clips.loc[_held(units[clips.split == "train"], labels.str[0], share, split), "split"] = split
    dataset |= {"name": "folder", "class_list": "labels found", "classes": sorted(set(labels.explode()))}
    return Listing(clips.assign(lasts=np.nan), dataset)


def _held(units: pd.Series, labels: pd.Series, share: float | int, salt: str) -> pd.Index:
    """The rows that are held out: of each class, that of a unit's first row, a share of the units, one at least."""
    first = units.drop_duplicates()
    chosen = first[hold_out_of_each(first, labels[first.index], share, salt)]
    return units.index[units.isin(chosen)]


def _from_folders(media: list[str]) -> pd.DataFrame:
    # An archive is no folder of its own: shard.tar/dog/x.mp4 is of the class dog.
    places = sorted(media)
    parts = [[name for name in path.split("/") if not name.endswith(".tar")] for path in places]
    if not parts:
        raise SourceError("download.media holds no media file; give a folder with one folder a class.")
    columns = ["split", "label"] if {names[0] for names in parts} <= set(SPLITS) else ["label"]
    if astray := [names for names in parts if len(names) <= len(columns)]:
        raise SourceError(f"download.media: {'/'.join(astray[0])} lies in no class folder; move it into one.")
    clips = pd.DataFrame([names[: len(columns)] for names in parts], columns=columns)
    clips = clips.assign(clip_id=["/".join(names) for names in parts], path=places, start=np.nan, end=np.nan)
    if (twice := clips.clip_id.duplicated()).any():
        one, other, *_ = clips.path[clips.clip_id == clips.clip_id[twice.idxmax()]]
        raise SourceError(f"download.media: {one} and {other} have one name; move one away or rename it.")
    return clips


def _from_csv(path: Path) -> tuple[pd.DataFrame, dict[str, bool]]:
    """The lines, and whether their clips have several labels as dataset.json says it."""
    given = read_table(path, ("path",))
    if taken := _TAKEN & set(given):
        raise ManifestError(f"{path}: the column {min(taken)} has a meaning of its own in our tables; rename it.")
    dataset = {"multilabel": True} if "labels" in given else {}
    if not {"label", "labels"} & set(given):
        read_table(path, ("path", "label"))  # says what is missing
    given = given.assign(label=given["labels"]).drop(columns="labels") if dataset else given
    good = label_lists(given.label, dataset).map(lambda names: all(names) and len(set(names)) == len(names))
    require(path, given, good | (not dataset), "label", "join names by |, each once")
    absent = {"clip_id": given.path, "start": "", "end": "", "split": SPLITS[0]}
    table = given.assign(**{name: value for name, value in absent.items() if name not in given})
    rows = typed_rows(path, table)
    times = "#t=" + rows.start.fillna(0.0).astype(str) + ("," + rows.end.astype(str)).fillna("")
    part = rows.path + times.where((rows.start > 0) | rows.end.notna(), "")
    if "clip_id" not in given:
        rows["clip_id"] = part
    for name, values, same in (
        ("labels", rows.label, part),
        ("splits", rows.split, rows.clip_id),
        ("files or parts", part, rows.clip_id),
    ):
        differs = values != values.groupby(same).transform("first")
        if differs.any():
            line = differs.idxmax()
            first = same.index[same == same[line]][0]
            raise ManifestError(f"{path}, lines {first} and {line}: two {name} of {same[line]!r}; keep one of them.")
    return rows.drop(columns=[] if "split" in given else ["split"]).reset_index(drop=True), dataset
