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
        table = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: not a CSV ({error}); correct the quoting.") from error
    if not table:
        raise ManifestError(f"{path} is empty; it needs a header line ({','.join(COLUMNS)}) and one line a clip.")
    header, rows = table[0][1], table[1:]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ManifestError(f"{path}: no column {', '.join(missing)}; the header must name {','.join(COLUMNS)}.")
    double = sorted({name for name in header if header.count(name) > 1})
    if double:
        raise ManifestError(f"{path}: column {', '.join(double)} occurs twice; rename or drop one.")
    if not rows:
        raise ManifestError(f"{path} lists no clips; add one line a clip below the header.")
    for line, row in rows:
        if len(row) != len(header):
            raise ManifestError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)}; "
                "correct the line, quoting any field with a comma."
            )

    lines = [line for line, _ in rows]
    columns = dict(zip(header, map(list, zip(*(row for _, row in rows), strict=True)), strict=True))
    _check_ids(path, lines, columns["clip_id"])
    _check_paths(path, lines, columns["path"])
    _check_labels(path, lines, columns["label"], columns["split"])
    columns["start"], columns["end"] = _seconds(path, lines, columns["start"], columns["end"])
    extras = [name for name in header if name not in COLUMNS]
    for name in extras:
        columns[name] = _typed(columns[name])
    return pd.DataFrame({name: columns[name] for name in (*COLUMNS, *extras)})


def _check_ids(path: Path, lines: list[int], ids: list[str]) -> None:
    seen: dict[str, int] = {}
    for line, clip_id in zip(lines, ids, strict=True):
        if not clip_id.strip():
            raise ManifestError(f"{path}, line {line}: clip_id is empty; give every clip a unique one.")
        if clip_id in seen:
            raise ManifestError(
                f"{path}, line {line}: clip_id {clip_id!r} already stands in line {seen[clip_id]}; make it unique."
            )
        seen[clip_id] = line


def _check_paths(path: Path, lines: list[int], paths: list[str]) -> None:
    root = path.parent.resolve()
    inside: dict[Path, bool] = {}  # folder -> whether it stays below root once links are followed
    for line, name in zip(lines, paths, strict=True):
        given = PurePosixPath(name)
        bad = not name.strip() or given.is_absolute() or ".." in given.parts
        if not bad:
            file = root / given
            if file.parent not in inside:
                inside[file.parent] = file.parent.resolve().is_relative_to(root)
            bad = not inside[file.parent] or (file.is_symlink() and not file.resolve().is_relative_to(root))
        if bad:
            raise ManifestError(
                f"{path}, line {line}: path {name!r} does not stay below the manifest's folder; "
                "give a relative path to a file in it, without '..' or links that lead out."
            )


def _check_labels(path: Path, lines: list[int], labels: list[str], splits: list[str]) -> None:
    for line, label, split in zip(lines, labels, splits, strict=True):
        if not label.strip():
            raise ManifestError(f"{path}, line {line}: label is empty; name the clip's class or drop the line.")
        if split not in SPLITS:
            raise ManifestError(f"{path}, line {line}: split is {split!r}; use one of {', '.join(SPLITS)}.")


def _seconds(path: Path, lines: list[int], starts: list[str], ends: list[str]) -> tuple[list[float], list[float]]:
    parsed: tuple[list[float], list[float]] = ([], [])
    for line, *pair in zip(lines, starts, ends, strict=True):
        for field, text, values in zip(("start", "end"), pair, parsed, strict=True):
            try:
                value = float(text) if text.strip() else math.nan
            except ValueError:
                value = -1.0
            if value < 0 or math.isinf(value):
                raise ManifestError(f"{path}, line {line}: {field} is {text!r}; give seconds >= 0 or leave it empty.")
            values.append(value)
        low, high = parsed[0][-1], parsed[1][-1]
        if high <= (0.0 if math.isnan(low) else low):
            raise ManifestError(f"{path}, line {line}: end {high:g} is not after start {low:g}; correct the two times.")
    return parsed


def _typed(values: list[str]) -> pd.Series:
    column = pd.Series(values, dtype=str)
    if set(values) <= {"True", "False"}:
        return column == "True"
    try:
        return pd.to_numeric(column.mask(column == ""))
    except ValueError:
        return column
