"""UrbanSound8K: 8,732 sounds of a city, at most 4 s each, in ten official folds."""

from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, in_folds, named

PUBLISHED = 8732
CLASSES = ["air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling"]
CLASSES += ["engine_idling", "gun_shot", "jackhammer", "siren", "street_music"]
_COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")
_NAME = r"(?P<clip_id>(?P<fsID>[0-9]+)-(?P<classID>[0-9])-[0-9]+-[0-9]+)"


def urbansound8k(annotations: Path | None, media: list[str]) -> Listing:
    """The clips of metadata/UrbanSound8K.csv, or without it those whose names say all (`fold1/101415-3-0-2.wav`).

    A file lies in a folder fold1 to fold10, its extension does not count. fold: the official one; group: the
    recording on Freesound, of which five lie in two folds as published. The CSV's start and end are times in
    that recording, not in the file, so they are not used. Raises SourceError where no file is named so, ManifestError
    for a line that breaks the format.
    """
    clips = named(media, rf"(?:.*/)?fold(?P<fold>10|[1-9])/{_NAME}\.\w+").drop_duplicates(["fold", "clip_id"])
    if annotations is not None:
        clips = _from_csv(annotations).merge(clips[["fold", "clip_id", "path"]], "left", ["fold", "clip_id"])
        clips["path"] = clips.path.fillna("audio/fold" + clips.fold + "/" + clips.slice_file_name)
    label = clips.classID.astype(int).map(dict(enumerate(CLASSES)))
    clips = clips.assign(label=label, fold=clips.fold.astype(int), group="freesound-" + clips.fsID)
    return in_folds(clips, media, PUBLISHED, name="urbansound8k", class_list="urbansound8k", classes=CLASSES)


def _from_csv(path: Path) -> pd.DataFrame:
    table = read_table(path, _COLUMNS)
    require(path, table, table.fold.isin([str(fold) for fold in range(1, 11)]), "fold", "there are ten, 1 to 10")
    parts = table.slice_file_name.str.extract(rf"^{_NAME}\.wav$")
    good = (parts.fsID == table.fsID) & (parts.classID == table.classID)
    require(path, table, good, "slice_file_name", "it must be fsID-classID-occurrence-slice.wav of its line")
    good = table["class"] == table.classID.map(lambda number: CLASSES[int(number)])
    require(path, table, good, "class", "its classID is another's")
    return table.assign(clip_id=parts.clip_id)
