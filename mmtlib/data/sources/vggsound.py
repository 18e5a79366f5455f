"""VGGSound: 200,000 clips of ten seconds in 309 classes."""

from pathlib import Path

from mmtlib.data.manifest import read_table, require
from mmtlib.data.sources.listing import Listing, SourceError, class_names, note_count
from mmtlib.data.sources.youtube import held_out, located, whole_seconds

SECONDS = 10


def vggsound(annotations: Path, media: list[str], *, class_list: str | None, val_share: float | int) -> Listing:
    """The clips of vggsound.csv, whose lines are youtube_id,start_seconds,label,split without a header.

    Classes are those of the authors' stat.csv in its order, which VGGSounder numbers likewise. Raises
    ManifestError for a line that breaks the format or names another class.
    """
    if class_list not in (None, "vggsound-309"):
        raise SourceError(f"download.class_list: vggsound has no list {class_list!r}; leave it out.")
    table = read_table(annotations, ("youtube_id", "start_seconds", "label", "split"), header=False)
    classes = class_names("vggsound-309")
    require(annotations, table, table.label.isin(classes), "label", "that is none of VGGSound's 309 classes")
    require(annotations, table, table.split.isin(["train", "test"]), "split", "it must be train or test")
    note_count(f"clips listed in {annotations.name}", len(table), 199_176, 199_467)
    start = whole_seconds(annotations, table, "start_seconds")
    clips = located(annotations, table, start, start + SECONDS, [start], media)
    clips = clips.assign(label=table.label, split=table.split)
    return held_out(clips, val_share, "vggsound", "vggsound-309", classes)
