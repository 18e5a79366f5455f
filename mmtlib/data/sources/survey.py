"""Real data sets: their official annotations and a local folder of media become a manifest and its coverage."""

import os
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmtlib import config
from mmtlib.data.manifest import COLUMNS, SHORT_S, SPLITS, ManifestError, label_lists, stays_below
from mmtlib.data.probe import probe
from mmtlib.data.sources.epic_kitchens import epic_kitchens
from mmtlib.data.sources.esc50 import esc50
from mmtlib.data.sources.folder import folder
from mmtlib.data.sources.grid import grid
from mmtlib.data.sources.listing import Listing, SourceError, list_media
from mmtlib.data.sources.ucf101 import ucf101
from mmtlib.data.sources.urbansound8k import urbansound8k
from mmtlib.data.sources.youtube import kinetics_sounds, vggsound

SOURCES = {
    "vggsound": vggsound,
    "kinetics-sounds": kinetics_sounds,
    "epic-kitchens-100": epic_kitchens,
    "ucf101": ucf101,
    "esc50": esc50,
    "urbansound8k": urbansound8k,
    "grid": grid,
    "folder": folder,
}
"""Name -> function(annotations, media files) that lists the clips; it may take class_list and val_share, too."""

_STATUS = ("missing", "broken", "silent", "blind", "too_short", "in_train")
_CUT_S = 1.0  # a file at most this much longer than its clip is taken to be the clip


class Survey(NamedTuple):
    """A data set as it is on this machine."""

    manifest: pd.DataFrame
    dataset: dict[str, Any]  # dataset.json
    coverage: pd.DataFrame  # split, listed, found, broken, silent, blind, too_short, in_train
    problems: pd.DataFrame  # clip_id, path, status, reason: a row for each problem of a clip


def survey(
    source: str,
    annotations: str | os.PathLike | None,
    media: str | os.PathLike,
    *,
    class_list: str | list[str] | None = None,
    val_share: float | int = 0.05,
    follow_links: bool = False,
    workers: int | str = 0,
    cache: Path | None = None,
) -> Survey:
    """List a data set's clips and look into each of their files once.

    source: a name of SOURCES; annotations: its annotation file, or the folder of them (none: names say the
    classes); media: the folder with the files. Relative paths start at the repository root. val_share: the
    share of train clips held out where the set has neither a validation split nor folds. follow_links: take files
    that links lead to out of `media`, too. workers, cache: see `probe`.

    The manifest has every clip listed; where its file is not there, the path at which it was looked for. A file of a
    clip and at most a second more is taken whole, of a longer one the clip's seconds are used. Coverage counts files:
    found (missing ones are not), broken (not whole, no media, or over before the clip begins), and of the others silent
    (no audio), blind (no video) and too_short (it lacks more than 0.5 s of the clip); and clips of val and test that
    are in_train: some of their seconds are those of a train clip. Prints notes of these and of classes that train
    lacks. Raises SourceError for a setting, ManifestError for an annotation file that cannot be used, ClusterError.
    """
    if source not in SOURCES:
        raise SourceError(f"download.source: no real data set is called {source!r}; use {', '.join(SOURCES)}.")
    if annotations is None and "annotations" in config.TAKES[source][0]:
        raise SourceError(f"download.annotations: {source} needs them; give its official CSV file or their folder.")
    root = config.workspace(media)
    if not root.is_dir():
        raise SourceError(f"download.media: {root} is no folder; give the one that holds the media files.")
    listed = None if annotations is None else config.workspace(annotations)
    listing = list_clips(source, listed, list_media(root, follow_links), class_list=class_list, val_share=val_share)
    clips, again = listing.clips, listing.clips.clip_id.duplicated()
    if twice := clips.clip_id[again].tolist():
        print(f"note: {len(twice)} lines repeat a clip and are left out; {twice[0]!r} is the first", flush=True)
    clips = clips[~again].reset_index(drop=True)
    if away := clips.path[~stays_below(root, clips.path, follow_links)].tolist():
        remedy = "put the file there, or set download.follow_links"
        raise ManifestError(f"{root}: the link {away[0]!r} leads out of it; {remedy}.")
    places = f"{root}/" + clips.path
    facts = probe(places, cache=cache, workers=workers).set_index("path").loc[places].reset_index(drop=True)
    clips, problems = _judge(clips, facts, places)
    notes = []
    if shared := problems.clip_id[problems.status == "in_train"].tolist():
        notes.append(f"{len(shared)} clips of val and test are in train, too, {shared[0]!r} is the first")
    for head in listing.dataset.get("heads", ["label"]):
        names = label_lists(clips[head], listing.dataset).explode()
        for split in ["train"] if "folds" in listing.dataset else SPLITS:
            known = set(names[clips.split == split])
            if unknown := [name for name in names.unique() if name not in known]:
                notes.append(f"{len(unknown)} classes have no clip in {split}, {unknown[0]!r} is the first")
    for note in notes:
        print(f"note: {note}", flush=True)
    coverage = pd.crosstab(problems.split, problems.status).reindex(index=SPLITS, columns=_STATUS, fill_value=0)
    coverage.insert(0, "listed", clips.split.value_counts().reindex(SPLITS, fill_value=0))
    coverage.insert(1, "found", coverage.listed - coverage.pop("missing"))
    dataset = listing.dataset | {"media": str(media)} | ({"name": root.name} if source == "folder" else {})
    dataset |= ({"follow_links": True} if follow_links else {}) | ({"notes": notes} if notes else {})
    extras = [name for name in clips if name not in (*COLUMNS, "lasts")]
    coverage = coverage.rename_axis(index="split", columns=None).reset_index()
    return Survey(clips[[*COLUMNS, *extras]], dataset, coverage, problems[["clip_id", "path", "status", "reason"]])


def list_clips(source: str, annotations: Path | None, media: list[str], **options: Any) -> Listing:
    """What the source lists, no file looked into; `options` are class_list and val_share, of which it may take none."""
    known, class_list = config.CLASS_LISTS.get(source, []), options["class_list"]
    names = ", ".join(known)
    if source == "kinetics-sounds" and class_list not in known:
        raise SourceError(f"download.class_list: {class_list!r} is none of {names}; name one.")
    if source != "ucf101" and class_list not in (None, *known):  # whose classes may be listed, too
        remedy = f"name {names} or leave it out" if known else "leave it out"
        raise SourceError(f"download.class_list: {source} has no list {class_list!r}; {remedy}.")
    takes = signature(SOURCES[source]).parameters.keys() & options.keys()
    return SOURCES[source](annotations, media, **{name: options[name] for name in takes})


def _judge(clips: pd.DataFrame, facts: pd.DataFrame, places: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The clips with their final windows, and what is wrong with each, told from its file."""
    good = facts.status == "ok"
    is_cut = good & (facts.duration <= clips.lasts + _CUT_S)
    clips = clips.assign(start=clips.start.mask(is_cut), end=clips.end.mask(is_cut))
    start = clips.start.fillna(0.0)
    outside = good & (start >= facts.duration)
    usable = good & ~outside
    wanted = clips.lasts.fillna(clips.end - start)
    there = np.minimum(clips.end.fillna(np.inf), facts.duration) - start
    length = facts.duration.map("{:.2f} s".format)
    found = [
        ("missing", facts.status == "missing", "no such file below the media folder"),
        ("broken", facts.status == "broken", facts.reason),
        ("broken", outside, "the file lasts " + length + ", which is before the clip begins"),
        ("silent", usable & ~facts.has_audio, "the file has no audio"),
        ("blind", usable & ~facts.has_video, "the file has no video"),
        ("too_short", usable & (there < wanted - SHORT_S), "the file lasts " + length + ", the clip should be longer"),
        ("in_train", _in_train(clips, places), "a train clip has the same seconds, or some of them"),
    ]
    parts = [clips.assign(status=status, reason=reason)[which] for status, which, reason in found]
    return clips, pd.concat(parts).sort_index(kind="stable")


def _in_train(clips: pd.DataFrame, places: pd.Series) -> pd.Series:
    """Which clips of val and test overlap a train clip of the same file, whatever links lead to it."""
    times = {"start": clips.start.fillna(0.0), "end": clips.end.fillna(np.inf), "row": clips.index}
    spans = pd.DataFrame({"file": places.map(os.path.realpath), **times})
    is_train = clips.split == "train"
    pairs = spans[~is_train].merge(spans[is_train], on="file", suffixes=("", "_train"))
    pairs = pairs[(pairs.start < pairs.end_train) & (pairs.start_train < pairs.end)]
    return clips.index.to_series().isin(pairs.row)
