"""Read and write manifests: the CSV table that says which clips a data set has.

Columns: clip_id (unique), path (relative to the manifest's folder), start and end (seconds, may be empty: the
whole file), label, split (train, val or test); further columns are kept as they are. Whether the files exist
is not checked here: the features stage counts those that are missing.
"""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path, PurePosixPath

import pandas as pd

from mmtlib import files

COLUMNS = ("clip_id", "path", "start", "end", "label", "split")
SPLITS = ("train", "val", "test")


class ManifestError(ValueError):
    """A manifest that cannot be used; the text is one sentence that names file, field and remedy."""


def read_manifest(path: str | os.PathLike) -> pd.DataFrame:
    """Read a manifest; its own columns come first, further ones after them in the file's order.

    `path` stays relative to the manifest's folder and is known to stay below it; start and end are float
    seconds, NaN where empty. Further columns become numbers or booleans where every filled value is one.
    Raises ManifestError for a file that is missing, not UTF-8 CSV or empty, and for any row that breaks a
    rule.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; run the download stage or write a manifest there.") from None
    except IsADirectoryError:
        raise ManifestError(f"{path} is a folder; pass the path of the manifest file in it.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ManifestError(f"{path}, line {line}: not UTF-8 text; save the manifest as UTF-8.") from error
    return _parse(path, text)


def write_manifest(manifest: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a manifest in one atomic step; raises ManifestError, writing nothing, where reading it would."""
    path = Path(path)
    text = manifest.to_csv(index=False, lineterminator="\n")
    _parse(path, text)
    files.write_text(path, text)


def _parse(path: Path, text: str) -> pd.DataFrame:
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ManifestError(f"{path}, line {line}: a NUL character; the file is damaged or not a CSV, write it again.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: not a CSV ({error}); correct the quoting.") from error
    if not lines:
        raise ManifestError(f"{path} is empty; it needs a header line ({','.join(COLUMNS)}) and one line a clip.")
    header, rows = lines[0][1], lines[1:]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ManifestError(f"{path}: no column {', '.join(missing)}; the header must name {','.join(COLUMNS)}.")
    double = sorted({name for name in header if header.count(name) > 1})
    if double:
        raise ManifestError(f"{path}: column {', '.join(double)} occurs twice; rename or drop one.")
    if not rows:
        raise ManifestError(f"{path} lists no clips; add one line a clip below the header.")

    root = path.parent.resolve()
    for line, row in rows:
        if problem := _problem(header, row, root):
            raise ManifestError(f"{path}, line {line}: {problem}")
    table = pd.DataFrame([row for _, row in rows], columns=header, dtype=str)
    first_line: dict[str, int] = {}
    for (line, _), clip_id in zip(rows, table.clip_id, strict=True):
        if clip_id in first_line:
            earlier = first_line[clip_id]
            raise ManifestError(
                f"{path}, line {line}: clip_id {clip_id!r} already stands in line {earlier}; make it unique."
            )
        first_line[clip_id] = line
    for name in ("start", "end"):
        table[name] = table[name].map(_seconds).astype(float)
    extras = [name for name in header if name not in COLUMNS]
    for name in extras:
        table[name] = _typed(table[name])
    return table[[*COLUMNS, *extras]]


def _problem(header: list[str], row: list[str], root: Path) -> str:
    """What is wrong with one line by itself, and the remedy; empty where nothing is."""
    if len(row) != len(header):
        return f"{len(row)} fields where the header has {len(header)}; correct the line, quoting fields with a comma."
    fields = dict(zip(header, row, strict=True))
    if not fields["clip_id"].strip():
        return "clip_id is empty; give every clip a unique one."
    if not _stays_below(root, fields["path"]):
        return (
            f"path {fields['path']!r} does not stay below the manifest's folder; "
            "give a relative path to a file in it, without '..' or links that lead out."
        )
    if not fields["label"].strip():
        return "label is empty; name the clip's class or drop the line."
    if fields["split"] not in SPLITS:
        return f"split is {fields['split']!r}; use one of {', '.join(SPLITS)}."
    for name in ("start", "end"):
        if _seconds(fields[name]) < 0:
            return f"{name} is {fields[name]!r}; give seconds >= 0 or leave it empty."
    start, end = _seconds(fields["start"]), _seconds(fields["end"])
    if end <= (0.0 if math.isnan(start) else start):
        return f"end {end:g} is not after start {start:g}; correct the two times."
    return ""


def _stays_below(root: Path, name: str) -> bool:
    """Whether a path leads to a place below `root`, links followed, and is not just a way to say so."""
    given = PurePosixPath(name)
    if not name.strip() or given.is_absolute() or ".." in given.parts:
        return False
    return (root / given).resolve().is_relative_to(root)


def _seconds(text: str) -> float:
    """A time; NaN where the text is empty, -1 where it is no finite number."""
    try:
        value = float(text) if text.strip() else math.nan
    except ValueError:
        return -1.0
    return -1.0 if math.isinf(value) else value


def _typed(column: pd.Series) -> pd.Series:
    """Booleans or numbers where every filled value is one, else the text."""
    if column.isin(["True", "False"]).all():
        return column == "True"
    try:
        return pd.to_numeric(column.mask(column == ""))
    except ValueError:
        return column
