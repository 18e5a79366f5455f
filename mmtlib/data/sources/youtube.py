"""What VGGSound and Kinetics-Sounds share: clips of ten seconds out of YouTube videos, cut already or still whole.

A clip is looked for under its official name, `<id>_<start>.mp4` or `<id>_<start>_<end>.mp4` (six digits each),
else as yt-dlp leaves its video: `<id>.<ext>` or `Title [<id>].<ext>`; any folder below the media root, any
common extension. Our reading: neither set has a validation split of its own that leaves the test set alone, so
a share of the train clips is held out by a hash of their ids.
"""

import re
from pathlib import Path

import pandas as pd

from mmtlib.data.manifest import require
from mmtlib.data.sources.listing import Listing, by_stem, hold_out, stem

_WHOLE = re.compile(r"^([A-Za-z0-9_-]{11})$|\[([A-Za-z0-9_-]{11})\]$")


def whole_seconds(path: Path, table: pd.DataFrame, column: str) -> pd.Series:
    """A column of times as numbers; raises ManifestError where one is not in whole seconds."""
    good = table[column].str.fullmatch(r"[0-9]{1,6}(?:\.0*)?")
    require(path, table, good, column, "it must be whole seconds")
    return table[column].astype(float)


def located(path: Path, table: pd.DataFrame, start, end, named: list[pd.Series], media: list[str]) -> pd.DataFrame:
    """clip_id, path, start, end and lasts of each row; `named` are the times in a cut clip's name."""
    video = table.youtube_id
    require(path, table, video.str.fullmatch(r"[A-Za-z0-9_-]{11}"), "youtube_id", "it must be 11 of A-Z a-z 0-9 _ -")
    cut = by_stem(media)
    whole = {found[1] or found[2]: file for file in reversed(media) if (found := _WHOLE.search(stem(file)))}
    clip_id = video.str.cat([times.astype(int).astype(str).str.zfill(6) for times in named], sep="_")
    is_cut = clip_id.isin(cut.keys())
    uncut = ~is_cut & video.isin(whole.keys())
    place = clip_id.map(cut).where(is_cut, video.map(whole).where(uncut, clip_id + ".mp4"))
    return pd.DataFrame(
        {"clip_id": clip_id, "path": place, "start": start.where(uncut), "end": end.where(uncut), "lasts": end - start}
    )


def held_out(clips: pd.DataFrame, val_share: float | int, name: str, class_list: str, classes: list[str]) -> Listing:
    """The listing of clips in train and test, a share of the train clips made val; notes classes without a clip."""
    there = set(clips.label)
    if absent := [name for name in classes if name not in there]:
        print(f"note: {len(absent)} of {len(classes)} classes have no clip, {absent[0]!r} is the first", flush=True)
    clips.loc[(clips.split == "train") & hold_out(clips.clip_id, val_share), "split"] = "val"
    return Listing(clips, {"name": name, "class_list": class_list, "classes": classes})
