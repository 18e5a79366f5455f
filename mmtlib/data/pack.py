"""Pack the media files of a manifest into tar archives as WebDataset wants them.

`python -m mmtlib.data.pack MANIFEST OUT [--gigabytes 1]`: a few large files instead of 200,000 small ones, for
file systems that are slow at those. They are read in place (media.open_media), in any order, with the same numbers;
tools of WebDataset stream them from anywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd

from mmtlib import files
from mmtlib.data.manifest import media_root, read_manifest, write_manifest
from mmtlib.data.media import locate


class PackError(ValueError):
    """Files that cannot be packed; one sentence with the remedy."""


def pack(manifest_path: str | os.PathLike, out: str | os.PathLike, *, gigabytes: float | int = 1.0) -> dict[str, int]:
    """Write a manifest's files to `out`, split by split; return how many were packed, and how many are missing.

    `out` gets train-000000.tar and so on, each of `gigabytes` (10^9 bytes) at most, but for a file that is larger,
    manifest.csv with the paths in them, and dataset.json. A file keeps its folder and name (WebDataset's key; dots
    become _, but for the extension's) and is followed by <key>.json, a list of the manifest's rows of it. Files are
    in an order drawn by hash, so that a reader from front to back meets the classes mixed; the bytes depend on the
    files alone. A missing file stays in the manifest, where stage features counts it. Raises ManifestError, MediaError
    for a damaged archive, and PackError where `out` is not empty or two files would have one name.
    """
    manifest_path, out = Path(manifest_path), Path(out)
    manifest = read_manifest(manifest_path)
    if not gigabytes > 0:
        raise PackError(f"gigabytes is {gigabytes}; give a number above 0.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out} is no empty folder; give another one.")
    root = media_root(manifest_path)
    found = {path: locate(root / path) for path in manifest.path.unique()}
    there = manifest[manifest.path.map(found).notna()]
    names = {path: _member_name(path) for path in there.path.unique()}
    keys = pd.Series({path: str(PurePosixPath(name).with_suffix("")) for path, name in names.items()}, dtype=str)
    if keys.duplicated().any():
        both = keys.index[keys == keys[keys.duplicated()].iloc[0]]
        raise PackError(f"{both[0]} and {both[1]} would be one sample of an archive; rename one of them.")
    out.mkdir(parents=True, exist_ok=True)
    places, rows_of = {}, there.groupby("path")
    for split, rows in there.groupby("split", sort=False):
        paths = [path for path in rows.path.unique() if path not in places]  # a long file may serve two splits
        paths.sort(key=lambda path: hashlib.sha256(path.encode()).digest())
        sizes = [found[path].size for path in paths]
        for number, chosen in enumerate(_shares(paths, sizes, gigabytes * 1e9)):
            archive = f"{split}-{number:06d}.tar"
            part = out / f".{archive}.part"
            try:
                with tarfile.open(part, "w") as tar:
                    for path in chosen:
                        place = found[path]
                        with place.file.open("rb") as file:
                            file.seek(place.offset)
                            _add(tar, names[path], file, place.size)
                        rows_text = rows_of.get_group(path).to_json(orient="records").encode()
                        _add(tar, f"{keys[path]}.json", io.BytesIO(rows_text), len(rows_text))
                        places[path] = f"{archive}/{names[path]}"
                os.replace(part, out / archive)
            finally:
                part.unlink(missing_ok=True)
            print(f"{archive}: {len(chosen)} files, {(out / archive).stat().st_size / 1e9:.2f} GB", flush=True)
    described = manifest_path.with_name("dataset.json")
    if described.exists():
        about = json.loads(described.read_text(encoding="utf-8"))
        about.pop("media", None)  # paths start at the manifest's own folder
        files.write_text(out / "dataset.json", json.dumps(about, indent=1) + "\n")
    write_manifest(manifest.assign(path=manifest.path.map(lambda path: places.get(path, path))), out / "manifest.csv")
    return {"packed": len(places), "missing": len(found) - len(places)}


def _member_name(path: str) -> str:
    # A file that is packed already leaves its old archive's name behind.
    *folders, name = [part for part in path.split("/") if not part.endswith(".tar")]
    stem, dot, extension = name.rpartition(".")
    return "/".join([*folders, stem.replace(".", "_") + dot + extension])


def _shares(paths: list[str], sizes: list[int], most: float) -> Iterator[list[str]]:
    """The paths cut into runs of at most `most` bytes."""
    share, total = [], 0
    for path, size in zip(paths, sizes, strict=True):
        if share and total + size > most:
            yield share
            share, total = [], 0
        share.append(path)
        total += size
    if share:
        yield share


def _add(tar: tarfile.TarFile, name: str, file, size: int) -> None:
    about = tarfile.TarInfo(name)  # of no owner and no date, for the same bytes everywhere
    about.size = size
    tar.addfile(about, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mmtlib.data.pack", description="Pack media into tar archives.")
    parser.add_argument("manifest", help="a manifest.csv, as stage download writes it")
    parser.add_argument("out", help="folder that is made")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of an archive (1)")
    given = parser.parse_args(arguments)
    try:
        counts = pack(given.manifest, given.out, gigabytes=given.gigabytes)
    except (ValueError, OSError) as error:
        raise SystemExit(f"mmtlib.data.pack: {error}") from None
    print(", ".join(f"{count} {word}" for word, count in counts.items()))


if __name__ == "__main__":
    main()
