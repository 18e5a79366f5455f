"""Kinetics-Sounds: the clips of Kinetics-400 in some 30 classes that can be heard."""

from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, SourceError, class_names, note_count
from mmtlib.data.sources.youtube import held_out, located, whole_seconds

KINETICS_LISTS = ("kinetics-sounds-31", "kinetics-sounds-32")
PUBLISHED = {"train": 246_535, "test": 19_907}  # clips of Kinetics-400, all its classes


def kinetics_sounds(annotations: Path, media: list[str], *, class_list: str | None, val_share: float | int) -> Listing:
    """The clips of Kinetics-400 that fall in a list of classes; its validation split is our test split.

    `annotations` is the folder of train.csv and val.csv (or validate.csv), with columns label, youtube_id,
    time_start, time_end; a test.csv there is not used, as is usual. Raises SourceError for a class list that
    is not named, ManifestError for a line of these classes that breaks the format.
    """
    if class_list not in KINETICS_LISTS:
        raise SourceError(f"download.class_list: {class_list!r} is none of {', '.join(KINETICS_LISTS)}; name one.")
    classes = class_names(class_list)
    validation = "val.csv" if (annotations / "val.csv").exists() else "validate.csv"
    parts = []
    for split, name in (("train", "train.csv"), ("test", validation)):
        path = annotations / name
        table = read_table(path, ("label", "youtube_id", "time_start", "time_end"))
        note_count(f"clips listed in {path.name}", len(table), PUBLISHED[split])
        table = table[table.label.isin(classes)]
        start, end = (whole_seconds(path, table, column) for column in ("time_start", "time_end"))
        require(path, table, end > start, "time_end", "it must come after time_start")
        parts.append(located(path, table, start, end, [start, end], media).assign(label=table.label, split=split))
    clips = pd.concat(parts, ignore_index=True)
    return held_out(clips, val_share, "kinetics-sounds", class_list, classes)
