"""Read and write manifests: the CSV table that says which clips a data set has.

Columns: clip_id (unique), path (relative to the media root), start and end (seconds, may be empty: the whole file),
label, split (train, val or test); further columns are kept as they are. In a set of several labels a clip, whose
dataset.json says `multilabel`, label holds them joined by `|`. The media root is the folder that dataset.json beside
the manifest names as `media`, else the manifest's own. Whether the files exist is not checked here: the features stage
counts those that are missing.
"""

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mmtlib import config, files

COLUMNS = ("clip_id", "path", "start", "end", "label", "split")
SPLITS = ("train", "val", "test")
SHORT_S = 0.5  # a clip that lacks less than this is whole: cutting at key frames is no more exact


class ManifestError(ValueError):
    """A manifest or annotation file that cannot be used; one sentence that names file, field and remedy."""


def media_root(path: str | os.PathLike) -> Path:
    """The folder that a manifest's paths start from, absolute, links followed.

    `media` of dataset.json beside the manifest (relative: to the repository root), else the manifest's folder.
    Raises ManifestError for a dataset.json that is no JSON object or whose media is no text.
    """
    return _media(Path(path))[0]


def _media(path: Path) -> tuple[Path, bool]:
    """The media root of a manifest, and whether links may lead out of it."""
    described = path.with_name("dataset.json")
    try:
        known = json.loads(described.read_text(encoding="utf-8")) if described.exists() else {}
        media, follow_links = known.get("media"), known.get("follow_links") is True
        return path.parent.resolve() if media is None else config.workspace(media), follow_links
    except (ValueError, AttributeError, TypeError) as error:
        raise ManifestError(f"{described} is damaged ({error}); run the download stage again.") from error


def read_manifest(path: str | os.PathLike) -> pd.DataFrame:
    """Read a manifest; its own columns come first, further ones after them in the file's order.

    `path` stays relative to the media root and is known to stay below it; start and end are float seconds, NaN
    where empty. Further columns become numbers or booleans where every filled value is one. Raises
    ManifestError for a file that is missing, not UTF-8 CSV or empty, and for any row that breaks a rule.
    """
    path = Path(path)
    if not path.exists():
        raise ManifestError(f"{path} does not exist; run the download stage or write a manifest there.")
    return _check(path, read_table(path, COLUMNS))


def write_manifest(manifest: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a manifest in one atomic step; raises ManifestError, writing nothing, where reading it would."""
    path = Path(path)
    data = manifest.to_csv(index=False, lineterminator="\n").encode()
    _check(path, _parse(path, data, COLUMNS))
    files.write_bytes(path, data)


def read_table(path: Path, columns: tuple[str, ...], *, header: bool = True) -> pd.DataFrame:
    """Read any CSV that was written by others: a table of text, indexed by the line each row ends in.

    The header must name `columns` and may name more; without a header the columns are exactly those. A byte
    order mark and any line ending are accepted. Raises ManifestError for a file that cannot be read, is not UTF-8
    or no CSV, that holds a NUL or no row, and for a row with another number of fields.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; put the file there or correct the path.") from None
    except IsADirectoryError:
        raise ManifestError(f"{path} is a folder; pass the path of the CSV file in it.") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}); correct the path or its rights.") from error
    return _parse(path, data, columns, header)


def require(path: Path, table: pd.DataFrame, good: pd.Series, column: str, wanted: str) -> None:
    """Raise a ManifestError that shows the first row of a table read from `path` that is not `good`."""
    if not good.all():
        line = good.idxmin()
        raise ManifestError(f"{path}, line {line}: {column} is {_shown(table.at[line, column])}; {wanted}.")


def label_lists(labels: pd.Series, dataset: Mapping[str, Any]) -> pd.Series:
    """Each clip's labels as a list; `dataset` is dataset.json, which says whether there are several."""
    return labels.str.split("|") if dataset.get("multilabel") else labels.map(lambda name: [name])


def _shown(text: str) -> str:
    """A text from a file as a message may show it: quoted, on one line, cut where it is long."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _parse(path: Path, data: bytes, columns: tuple[str, ...], header: bool = True) -> pd.DataFrame:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ManifestError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ManifestError(f"{path}, line {line}: a NUL character; the file is damaged or not a CSV, write it again.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: not a CSV ({error}); correct the quoting.") from error
    names = list(columns)
    if header:
        if not lines:
            raise ManifestError(f"{path} is empty; it needs a header line ({','.join(columns)}) and one line a clip.")
        names = lines.pop(0)[1]
        if missing := [name for name in columns if name not in names]:
            raise ManifestError(f"{path}: no column {', '.join(missing)}; the header must name {','.join(columns)}.")
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise ManifestError(f"{path}: column {_shown(', '.join(double))} occurs twice; rename or drop one.")
    if not lines:
        raise ManifestError(f"{path} lists no clips; add one line a clip.")
    for line, row in lines:
        if len(row) != len(names):
            found = f"{len(row)} fields where there must be {len(names)}"
            raise ManifestError(f"{path}, line {line}: {found}; correct the line, quoting fields with a comma.")
    return pd.DataFrame([row for _, row in lines], index=[line for line, _ in lines], columns=names, dtype=str)


def typed_rows(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Rows read from `path` with start and end in seconds, NaN where empty; raises ManifestError for a wrong field."""
    require(path, table, table.clip_id.str.strip() != "", "clip_id", "give every clip a unique one")
    wanted = "it does not stay below the media folder, so give a relative path without '..'"
    require(path, table, ~_climbs(table.path), "path", wanted)
    require(path, table, table.label.str.strip() != "", "label", "name the clip's class or drop the line")
    require(path, table, table.split.isin(SPLITS), "split", f"use one of {', '.join(SPLITS)}")
    times = {}
    for name in ("start", "end"):
        is_empty = table[name].str.strip() == ""
        times[name] = pd.to_numeric(table[name].mask(is_empty), errors="coerce").astype(float)
        good = is_empty | times[name].between(0, math.inf, inclusive="left")
        require(path, table, good, name, "give seconds >= 0 or leave it empty")
    good = ~(times["end"] <= times["start"].fillna(0.0))
    require(path, table, good, "end", "that is not after the line's start, so correct the two times")
    return table.assign(**times)


def _check(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The typed manifest of a table of text."""
    rows = typed_rows(path, table)
    root, follow_links = _media(path)
    wanted = f"it does not stay below {root}, so put the file there in the place of a link"
    require(path, table, stays_below(root, table.path, follow_links), "path", wanted)
    require(path, table, ~table.clip_id.duplicated(), "clip_id", "a line above has the same, so make it unique")
    extras = [name for name in table if name not in COLUMNS]
    rows = rows.assign(**{name: _typed(table[name]) for name in extras})
    return rows[[*COLUMNS, *extras]].reset_index(drop=True)


def _climbs(names: pd.Series) -> pd.Series:
    """Whether each path is empty, absolute or has a part `..`, by its text alone."""
    return names.str.strip().eq("") | names.str.startswith("/") | names.str.contains(r"(?:^|/)\.\.(?:/|$)")


def stays_below(root: Path, names: pd.Series, follow_links: bool = False) -> pd.Series:
    """Whether paths lead to places below `root` (absolute); 100,000 take some seconds. With `follow_links` links may
    lead anywhere, else they must stay below it, too.
    """
    inside, top = ~_climbs(names), os.path.join(root, "")
    if follow_links:
        return inside
    return inside & names.where(inside, "x").map(lambda name: os.path.realpath(top + name).startswith(top))


def _typed(column: pd.Series) -> pd.Series:
    """Booleans or numbers where every filled value is one, else the text."""
    if column.isin(["True", "False"]).all():
        return column == "True"
    try:
        return pd.to_numeric(column.mask(column == ""))
    except ValueError:
        return column
