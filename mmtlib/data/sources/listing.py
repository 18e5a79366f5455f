"""What the sources of real data sets share: class lists, the media files that are there, the held-out split."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmtlib.data.container import MediaError, members
from mmtlib.files import digest

VIDEO = ("mp4", "mkv", "webm", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "flv", "wmv", "3gp", "ogv", "mts", "m2ts")
VIDEO += ("m2t", "vob", "asf", "f4v", "3g2", "ogm", "mk3d", "mxf", "dv", "rm", "rmvb", "nut", "gif")
AUDIO = ("wav", "flac", "mp3", "m4a", "aac", "ogg", "oga", "opus", "mka", "aif", "aiff", "aifc", "wma", "m4b", "mp2")
AUDIO += ("ac3", "eac3", "dts", "amr", "awb", "au", "caf", "w64", "wv", "ape", "mpc", "tta", "tak", "spx", "weba")
_NO_TEXT = re.compile(r"[\ud800-\udfff]")  # what Python makes of a file name that is no UTF-8
_RANK = {f".{extension}": rank for rank, extension in enumerate(VIDEO + AUDIO)}


class SourceError(ValueError):
    """A setting of stage download that fits no data set; one sentence that names the setting and the remedy."""


class Listing(NamedTuple):
    """What an annotation lists, before a file is looked into."""

    clips: pd.DataFrame  # the manifest's columns, further ones, and `lasts`: seconds the clip should have, or NaN
    dataset: dict[str, Any]  # dataset.json


def class_names(name: str) -> list[str]:
    """The class list of that name (mmtlib/data/classes), in its published order."""
    return (Path(__file__).parent / "classes" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def list_media(root: Path, follow_links: bool = False) -> list[str]:
    """Media files below `root`, by their extensions: relative paths, files of video first, then by name.

    Of a tar archive the files in it are listed. Hidden files and folders are left out. Links to folders are followed,
    those that lead out of `root` only with `follow_links`. Prints notes of links and files that are left out. Raises
    SourceError where `root` or a folder in it cannot be listed, or an archive cannot be read.
    """

    def fail(error: OSError) -> None:
        raise SourceError(f"download.media: {error.filename} cannot be listed ({error.strerror}); mend it.") from error

    found, others, astray = [], [], []
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        below = Path(folder).relative_to(root)
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in shown if not _leads_away(root, Path(folder, name), follow_links)]
        astray += [str(below / name) for name in {*shown} - {*folders}]
        archives = [name for name in names if name.endswith(".tar") and not name.startswith(".")]
        names = [name for name in names if not name.endswith(".tar")]
        try:
            names += [f"{name}/{member}" for name in archives for member in members(Path(folder, name))]
        except (MediaError, OSError) as error:
            raise SourceError(f"download.media: {error}") from error
        for name in names:
            rank = _RANK.get(os.path.splitext(name)[1].lower(), -1)
            if not name.startswith(".") and "/." not in name:
                (found if rank >= 0 else others).append((rank, str(below / name)))
    names = [path for _, path in sorted(found)]
    if odd := list(filter(_NO_TEXT.search, names)):
        raise SourceError(f"download.media: the name {odd[0]!r} is not UTF-8; rename that file.")
    if astray:
        why = "out of the media folder (which download.follow_links allows) or round in a circle"
        print(f"note: {len(astray)} folders are not read, {min(astray)!r} is the first: links lead {why}", flush=True)
    if others:
        first = min(others)[1]
        print(f"note: {len(others)} files are no media by their extensions, {first!r} is the first", flush=True)
    return names


def _leads_away(root: Path, folder: Path, follow_links: bool) -> bool:
    """Whether a folder is a link round to one above it, or one out of `root` that is not to be followed."""
    if not folder.is_symlink():
        return False
    real = folder.resolve()
    is_round = any(real == above.resolve() for above in folder.parents)
    return is_round or not (follow_links or real.is_relative_to(root.resolve()))


def stem(path: str) -> str:
    """A file's name without folder and extension."""
    return path.rpartition("/")[2].rpartition(".")[0]


def by_stem(media: list[str]) -> dict[str, str]:
    """Each file by its name without folder and extension; of two files the first in `media`."""
    return {stem(file): file for file in reversed(media)}


def named(media: list[str], pattern: str) -> pd.DataFrame:
    """A row for each file that matches `pattern` as a whole: the named groups of the match, and `path`."""
    return pd.Series(media, dtype=str).str.extract(rf"^(?:{pattern})\Z").assign(path=media).dropna()


def hold_out(ids: pd.Series, share: float | int, salt: str = "val") -> pd.Series:
    """Which ids fall in a share held out: those whose sha256 lies below it, so an id's fate never changes."""
    return _places(ids, salt) < share


def hold_out_of_each(ids: pd.Series, labels: pd.Series, share: float | int, salt: str = "val") -> pd.Series:
    """As `hold_out`, but of each class of two clips or more one at least, if any, and half of them at most.

    Where the share is larger than that, it and all but one are the most.
    """
    places = _places(ids, salt)
    of_class = places.groupby(labels)
    count = (places < share).groupby(labels).transform("sum").clip(lower=int(share > 0))
    size = of_class.transform("size")
    most = np.minimum((size * max(share, 0.5)).astype(int), size - 1)
    return of_class.rank() <= np.minimum(count, most)


def _places(ids: pd.Series, salt: str) -> pd.Series:
    """Where the sha256 of each id lies, from 0 to 1."""
    return pd.Series([int(digest(f"{salt} {name}".encode()), 16) / 2**64 for name in ids], ids.index, dtype=float)


def note_count(what: str, found: int, *published: int) -> None:
    """Print a note where a count is none of the published ones."""
    if found not in published:
        print(f"note: {found} {what}; {' or '.join(map(str, published))} are published", flush=True)


def in_folds(clips: pd.DataFrame, media: list[str], published: int | None, **dataset: Any) -> Listing:
    """The listing of a set of folds, of which each of the files `media` is one clip or none; `dataset`: dataset.json.

    clips: clip_id, path, label, fold, group and any heads; those of other classes than the set's are left out, and
    so are other columns. `fold` counts from 1, NA: the clip is never tested; clips of one `group` belong on one side
    of every split. All are in the split train, since train, val and test follow from fold and group. Prints a note
    where files are no clips, their number is not the published one, or a group lies in several folds. Raises
    SourceError where there is no clip.
    """
    known, heads = set(clips.path), list(dataset.get("heads", ()))
    if others := [file for file in media if file not in known]:
        print(f"note: {len(others)} media files are not used as clips, {others[0]!r} is the first", flush=True)
    if not heads:
        clips = clips[clips.label.isin(dataset["classes"])]
    if clips.empty:
        raise SourceError(f"download.media holds no clip of {dataset['name']}; give its folder as it was published.")
    if published is not None:
        note_count(f"clips of {dataset['class_list']}", len(clips), published)
    folds = clips.fold.astype("Int64")
    spread = folds.fillna(0).groupby(clips.group).nunique()
    if torn := spread.index[spread > 1].tolist():
        print(f"note: {len(torn)} groups lie in more than one fold, {torn[0]!r} is the first", flush=True)
    clips = clips.assign(start=np.nan, end=np.nan, lasts=np.nan, split="train", fold=folds)
    columns = ["clip_id", "path", "label", *heads, "start", "end", "lasts", "split", "fold", "group"]
    dataset["folds"] = sorted(map(int, folds.dropna().unique()))
    return Listing(clips[columns].reset_index(drop=True), dataset)
