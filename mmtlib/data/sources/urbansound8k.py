"""UrbanSound8K: 8,732 sounds of a city, at most 4 s each, in ten official folds."""

import re
from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, SourceError, in_folds, note_count, note_others

PUBLISHED = 8732
CLASSES = ["air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling"]
CLASSES += ["engine_idling", "gun_shot", "jackhammer", "siren", "street_music"]
_COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")
_FILE = re.compile(r"(?:.*/)?fold(10|[1-9])/(([0-9]+)-([0-9])-[0-9]+-[0-9]+)\.\w+")


def urbansound8k(
    annotations: Path | None, media: list[str], *, class_list: str | None, val_share: float | int
) -> Listing:
    """The clips of metadata/UrbanSound8K.csv, or without it those whose names say all (`fold1/101415-3-0-2.wav`).

    A file lies in a folder fold1 to fold10, its extension does not count. fold: the official one; group: the
    recording on Freesound, of which five lie in two folds as published. The CSV's start and end are times in
    that recording, not in the file, so they are not used; nor is val_share: val follows from the groups. Raises
    SourceError for a class_list and where no file is named so, ManifestError for a line that breaks the format.
    """
    if class_list is not None:
        raise SourceError(f"download.class_list: urbansound8k has no list {class_list!r}; leave it out.")
    rows = {}
    for file in media:
        if found := _FILE.fullmatch(file):
            fold, name, source, number = found.groups()
            rows.setdefault((int(fold), name), (name, file, int(fold), int(number), source))
    clips = pd.DataFrame(list(rows.values()), columns=["clip_id", "path", "fold", "number", "source"])
    if annotations is not None:
        clips = _from_csv(annotations, {key: row[1] for key, row in rows.items()})
    note_others(media, clips.path)
    note_count("clips of UrbanSound8K", len(clips), PUBLISHED)
    clips = clips.assign(label=clips.number.map(dict(enumerate(CLASSES))), group="freesound-" + clips.source)
    clips = clips.drop(columns=["number", "source"])
    return in_folds(clips, name="urbansound8k", class_list="urbansound8k", classes=CLASSES)


def _from_csv(path: Path, there: dict[tuple[int, str], str]) -> pd.DataFrame:
    table = read_table(path, _COLUMNS)
    require(path, table, table.fold.isin([str(fold) for fold in range(1, 11)]), "fold", "there are ten, 1 to 10")
    parts = table.slice_file_name.str.extract(r"^(?P<name>(?P<source>[0-9]+)-(?P<number>[0-9])-[0-9]+-[0-9]+)\.wav$")
    good = (parts.source == table.fsID) & (parts.number == table.classID)
    require(path, table, good, "slice_file_name", "it must be fsID-classID-occurrence-slice.wav of its line")
    folds, numbers = table.fold.astype(int), table.classID.astype(int)
    require(path, table, table["class"] == numbers.map(dict(enumerate(CLASSES))), "class", "its classID is another's")
    keys = zip(folds, parts.name, table.slice_file_name, strict=True)
    place = [there.get((fold, name), f"audio/fold{fold}/{file}") for fold, name, file in keys]
    given = {"clip_id": parts.name, "path": place, "fold": folds, "number": numbers, "source": table.fsID}
    return pd.DataFrame(given).reset_index(drop=True)
