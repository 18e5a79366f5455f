"""Turn a manifest's clips into two arrays on disk: log-mel spectrograms and small frames.

Decoding is what makes audio-video training slow, so it is done once. Every clip that cannot be used is
counted and listed with its reason, and a clip without sound or picture carries a flag rather than zeros that
look real.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap, write_array_header_1_0

from mmtlib.data.decode import (
    DTYPES,
    Decoded,
    FeatureError,
    Settings,
    Task,
    View,
    clip_tasks,
    decode,
    decoders,
    share_of_cores,
)
from mmtlib.data.decode import LogMel as LogMel
from mmtlib.data.manifest import SPLITS, media_root, read_manifest
from mmtlib.files import write_text

_SAMPLE = 512  # train clips behind the statistics where no arrays are kept
_CHUNK = 8  # clips per task of a worker: few enough to balance, enough to hide the cost of a task
_REPORT_S = 10.0


def extract_features(
    manifest_path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    cache: bool = True,
    workers: int = 0,
    shard: tuple[int, int] | None = None,
    **settings: float | int,
) -> dict[str, dict[str, int]]:
    """Write the feature folder `out` of a manifest and return its coverage: split -> what -> count of clips.

    `settings` are the fields of Settings. Per clip the central `seconds` of its window are read: sound at
    `sample_rate` as a log-mel of `mel_bins` bands, and `frames` frames of `size` x `size`. A test clip has
    `clips` x `crops` views (media.read_views), each a row. Coverage counts the clips that are listed, used,
    missing or broken, and of the used ones those that are silent (no sound, or digital silence), blind (no
    picture) or too_short: sound shorter by more than a hop, whose rest is digital silence. `workers` processes
    decode (0: one a core); the result does not depend on their number. The folder appears in one step, over an
    older one:

    log_mel.npy float16 (N, time, mel), frames.npy uint8 (N, T, size, size, 3), index.csv (the manifest's rows
    used, in the arrays' order, with view where there are several, has_audio and has_video), skipped.csv (the
    rest, with reasons) and features.json (settings, classes, statistics of the train split, coverage,
    fingerprint). Rows of a missing modality hold the train mean; their flag is what counts. Class order and
    names come from dataset.json beside the manifest, where there is one, else from the sorted labels.

    Without `cache` every clip is decoded once to see what it holds, but no arrays are kept: FeatureDataset
    decodes again what it is asked for. The statistics are then those of up to 512 train clips, spread evenly.
    With `shard` (i, n) the i-th of n parts of the manifest goes to the folder `out`.part-i-of-n, and
    merge_features joins the parts. Raises ManifestError, and FeatureError where nothing can be made.
    """
    checked = Settings(**settings)
    manifest_path, out = Path(manifest_path), Path(out)
    number, count = shard or (0, 1)
    if workers < 0:
        raise FeatureError(f"features.workers is {workers}; give a count, or 0 for one process a core.")
    manifest = read_manifest(manifest_path)
    if not 0 <= number < count <= len(manifest):
        raise FeatureError(f"There is no part {number} of {count} of {len(manifest)} clips; count the parts from 0.")
    if shard:
        out = out.with_name(f"{out.name}.part-{number}-of-{count}")
    part = {
        "shard": [number, count],
        "manifest": os.path.relpath(manifest_path, out),  # folders may move together
        "manifest_sha256": _sha256(manifest_path),
        "dataset": _dataset(manifest_path, manifest),
        "settings": asdict(checked),
        "cache": cache,
    }
    root = media_root(manifest_path)
    first, last = (len(manifest) * edge // count for edge in (number, number + 1))
    with _replacing(out, "part.json" if shard else "features.json") as new:
        facts = _decode_all(manifest[first:last], root, checked, cache, workers, new)
        if not shard:
            return _finish(part, manifest, facts, root, workers, new)
        facts["row"] += first
        facts.to_parquet(new / "facts.parquet", index=False)
        write_text(new / "part.json", json.dumps(part))  # in this order, so that a merge writes the same
    return _coverage(manifest, facts)


def merge_features(
    parts: Iterable[str | os.PathLike], out: str | os.PathLike, *, workers: int = 0
) -> dict[str, dict[str, int]]:
    """Join the folders that extract_features wrote with `shard`: the bytes of a run that was not split.

    The parts stay; the manifest must lie where it lay, relative to them. Raises FeatureError for parts that are
    incomplete or do not belong together.
    """
    out, found = Path(out), []
    for folder in map(Path, parts):
        try:
            found.append((json.loads((folder / "part.json").read_text(encoding="utf-8")), folder))
        except (OSError, ValueError) as error:
            raise FeatureError(f"{folder} is no whole part of the features ({error}); extract it again.") from error
    found.sort(key=lambda item: item[0]["shard"])
    shards = [part.pop("shard") for part, _ in found]
    if not shards or shards != [[number, shards[0][1]] for number in range(shards[0][1])]:
        raise FeatureError(f"The parts of the features are {shards} (number, count); give all of them, each once.")
    part, folders = found[0][0], [folder for _, folder in found]
    manifest_path = Path(os.path.normpath(folders[0] / part["manifest"]))
    manifest = read_manifest(manifest_path)
    for other, folder in found:
        if other != part or part["manifest_sha256"] != _sha256(manifest_path):
            raise FeatureError(f"{folder} was made with another manifest or other settings; extract it again.")
    facts = pd.concat([pd.read_parquet(folder / "facts.parquet") for folder in folders], ignore_index=True)
    part["manifest"] = os.path.relpath(manifest_path, out)
    with _replacing(out, "features.json") as new:
        for name, shape in Settings(**part["settings"]).shapes.items() if part["cache"] else ():
            pieces = [np.load(folder / f"{name}.npy", mmap_mode="r") for folder in folders]
            array = _reserve(new / f"{name}.npy", (sum(map(len, pieces)), *shape))
            np.concatenate(pieces, out=array)
            array.flush()
        return _finish(part, manifest, facts, media_root(manifest_path), workers, new)


@contextlib.contextmanager
def _replacing(out: Path, own: str) -> Iterator[Path]:
    """A new folder that takes the place of `out` at the end; an older one must hold the file `own`."""
    if out.exists() and any(out.iterdir()) and not (out / own).exists():
        raise FeatureError(f"{out} holds other files than features; choose another folder for the features.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        if out.exists():
            os.replace(out, old)
        os.replace(new, out)


def _dataset(manifest_path: Path, manifest: pd.DataFrame) -> dict:
    """Name, class list's name and ordered classes of the data set, and its heads where it has several."""
    labels = sorted(set(manifest.label))
    path = manifest_path.with_name("dataset.json")
    if not path.exists():
        return {"name": manifest_path.parent.resolve().name, "class_list": "labels found", "classes": labels}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        heads = {str(head): [str(label) for label in names] for head, names in given.get("heads", {}).items()}
        classes = given.get("classes", labels) if heads else given["classes"]
        name, classes = str(given["name"]), [str(label) for label in classes]
    except (KeyError, TypeError, AttributeError) as error:
        raise FeatureError(
            f"{path} is not a JSON object with name and classes ({error}); run the download stage again."
        ) from error
    for column, names in {"label": classes, **heads}.items():
        if column not in manifest:
            raise FeatureError(
                f"{path} has the head {column!r}, which is no column of the manifest; correct its heads."
            )
        unknown = sorted(set(manifest[column].astype(str)) - set(names))
        if unknown:
            raise FeatureError(f"{path} has no class {unknown[0]!r} that the manifest uses; correct its classes.")
        if len(set(names)) < len(names):
            raise FeatureError(f"{path} names a class twice; correct its classes.")
    described = {"name": name, "class_list": str(given.get("class_list", name)), "classes": classes}
    described |= {"heads": heads} if heads else {}
    return described | ({"source": given["source"]} if "source" in given else {})


def _decode_flags(settings: Settings, task: Task) -> Decoded:
    """As `decode`, but of each array only that it is there, and a digest of them all."""
    made, digest = decode(settings, task), hashlib.sha256()
    for array in (array for view in made.views for array in view if array is not None):
        digest.update(array)
    empty = (View(*(None if array is None else np.empty(0) for array in view)) for view in made.views)
    return made._replace(views=tuple(empty), digest=digest.hexdigest())


def _decode_all(
    manifest: pd.DataFrame, root: Path, settings: Settings, cache: bool, workers: int, folder: Path
) -> pd.DataFrame:
    """Write the arrays of a manifest's rows; what is known of each view, and of each clip that is not used."""
    tasks = clip_tasks(manifest, root)
    per_test = settings.clips * settings.crops
    room = sum(per_test if task.split == "test" else 1 for task in tasks)  # if every clip is used; shortened below
    arrays = {}
    if cache:
        arrays = {name: _reserve(folder / f"{name}.npy", (room, *shape)) for name, shape in settings.shapes.items()}
    results = _run(decode if cache else _decode_flags, tasks, settings, workers)
    facts = []
    used = 0
    for row, made in enumerate(_reported(results, len(tasks))):
        for number, view in enumerate(made.views or [View(None, None)]):
            has = [array is not None for array in view]
            facts.append((row, number, made.status, made.reason, *has, made.too_short, made.digest))
            for name, array in zip(arrays, view, strict=False):
                if array is not None:
                    arrays[name][used] = array
            used += made.status == "used"
    for array in arrays.values():
        _shorten(array, used)
    columns = ["row", "view", "status", "reason", "has_audio", "has_video", "too_short", "digest"]
    return pd.DataFrame(facts, columns=columns)


def _finish(
    part: dict, manifest: pd.DataFrame, facts: pd.DataFrame, root: Path, workers: int, folder: Path
) -> dict[str, dict[str, int]]:
    """Write the tables, the statistics and what follows from them; return the coverage."""
    settings = Settings(**part["settings"])
    used = facts[facts.status == "used"]
    skipped = facts[facts.status != "used"]
    coverage = _coverage(manifest, facts)
    if not coverage["train"]["used"]:
        reason = "the manifest has no row of it" if skipped.empty else skipped.reason.iloc[0]
        raise FeatureError(f"No usable train clip below {root}; the first problem: {reason}")
    several = ["view"] if settings.clips * settings.crops > 1 else []
    has = used[[*several, "has_audio", "has_video"]]
    index = manifest.iloc[used.row].assign(**{name: has[name].to_numpy() for name in has})
    index.to_csv(folder / "index.csv", index=False, lineterminator="\n")
    reasons = {name: skipped[name].to_numpy() for name in ("status", "reason")}
    listed = manifest.iloc[skipped.row][["clip_id", "path", "split"]].assign(**reasons)
    listed.to_csv(folder / "skipped.csv", index=False, lineterminator="\n")

    train = np.flatnonzero(index.split == "train")
    sound, picture = _Moments(1), _Moments(3)
    if part["cache"]:
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r+") for name in settings.shapes]
        flags = has[["has_audio", "has_video"]].to_numpy()
        views = (View(*(a[row] if flag else None for a, flag in zip(arrays, flags[row], strict=True))) for row in train)
    else:
        spread = np.linspace(0, len(train) - 1, min(len(train), _SAMPLE)).round().astype(int)
        tasks = clip_tasks(index.iloc[train[spread]], root)
        views = (view for made in _run(decode, tasks, settings, workers) for view in made.views)
    for view in views:
        if view.log_mel is not None:
            sound.add(view.log_mel[..., None])
        if view.frames is not None:
            picture.add(view.frames)
    (sound_mean,), (sound_std,) = sound.mean_and_std()
    picture_mean, picture_std = picture.mean_and_std()
    described = {
        **part["dataset"],
        # A setting that has its default is left out where an older folder did not have it: the same fingerprint.
        "settings": {k: v for k, v in part["settings"].items() if (k, v) not in (("clips", 1), ("crops", 1))},
        "log_mel": {"shape": [len(used), *settings.shapes["log_mel"]], "mean": sound_mean, "std": sound_std},
        "frames": {
            "shape": [len(used), *settings.shapes["frames"]],
            "mean": [value / 255 for value in picture_mean],  # RGB on a scale of 0..1
            "std": [value / 255 for value in picture_std],
        },
        "coverage": coverage,
    }
    if part["cache"]:
        arrays[0][~flags[:, 0]] = sound_mean
        arrays[1][~flags[:, 1]] = np.rint(picture_mean)
        for array in arrays:
            array.flush()
    source = described.pop("source", None)  # no part of the fingerprint: that is of what was read
    described["fingerprint"] = _fingerprint(described, folder, used.digest)
    if source is not None:
        described["source"] = source
    if not part["cache"]:
        described["manifest"] = part["manifest"]  # says that there are no arrays, and where to decode from
    (folder / "features.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return coverage


def _coverage(manifest: pd.DataFrame, facts: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Counts of clips by split; what only some views of a clip lack, the clip does not lack."""
    kinds = {"status": "first", "has_audio": "max", "has_video": "max", "too_short": "max"}
    clips = facts.groupby("row").agg(kinds)
    is_used = clips.status == "used"
    counts = {
        "listed": is_used | True,
        "used": is_used,
        "missing": clips.status == "missing",
        "broken": clips.status == "broken",
        "silent": is_used & ~clips.has_audio,
        "blind": is_used & ~clips.has_video,
        "too_short": clips.too_short,
    }
    by_split = pd.DataFrame(counts).groupby(manifest.split.iloc[clips.index].to_numpy()).sum()
    return by_split.reindex(SPLITS, fill_value=0).to_dict("index")


def _run(
    function: Callable[[Settings, Task], Decoded], tasks: list[Task], settings: Settings, workers: int
) -> Iterator[Decoded]:
    """The tasks' results in order, from `workers` fresh processes (one: from this process)."""
    make = functools.partial(function, settings)
    workers = min(workers or share_of_cores(), math.ceil(len(tasks) / _CHUNK))
    if workers <= 1:
        yield from map(make, tasks)
        return
    with decoders(workers) as pool:
        try:
            yield from pool.map(make, tasks, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise FeatureError(
                "A feature worker process died, of too little memory or of a file that crashes the decoder; "
                "set features.workers to 1 to see which."
            ) from error


def _reported(results: Iterable[Decoded], total: int) -> Iterator[Decoded]:
    """Passes the results on and prints a line of progress now and then."""
    begin = last = time.monotonic()
    for count, made in enumerate(results, start=1):
        now = time.monotonic()
        if now - last >= _REPORT_S or count == total:
            last = now
            print(f"features: {count}/{total} clips, {count / max(now - begin, 1e-9):.0f} clips/s", flush=True)
        yield made


class _Moments:
    """Mean and standard deviation per channel (the last axis) of what was added, in double precision."""

    def __init__(self, channels: int):
        self._count, self._total, self._square = 0, np.zeros(channels), np.zeros(channels)

    def add(self, array: np.ndarray) -> None:
        values = array.reshape(-1, array.shape[-1]).astype(np.float64)
        self._count += len(values)
        self._total += values.sum(axis=0)
        self._square += np.einsum("nc,nc->c", values, values)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """0 and 1 of nothing. A constant channel's deviation is 1, so that it normalises to 0."""
        mean = self._total / max(self._count, 1)
        std = np.sqrt(np.maximum(self._square / max(self._count, 1) - mean**2, 0.0))
        return mean.tolist(), np.where(std < 1e-4, 1.0, std).tolist()


def _reserve(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file to write into. A full disk is met here: later, in a mapped file, it would kill the process."""
    array = open_memmap(path, "w+", DTYPES[path.stem], shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            size = path.stat().st_size / 2**30
            raise FeatureError(
                f"No room for {path.name} of {size:.1f} GiB ({error.strerror}); free some disk."
            ) from error
    return array


def _shorten(array: np.memmap, rows: int) -> None:
    """Cut an array's .npy file after `rows` rows; numpy pads its header so that any length has room there."""
    array.flush()
    with Path(array.filename).open("r+b") as file:
        shape = (rows, *array.shape[1:])
        write_array_header_1_0(file, {"descr": array.dtype.str, "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + rows * array[0].nbytes)


def _fingerprint(described: dict, folder: Path, digests: Iterable[str]) -> str:
    """sha256 over the description, the index and what the arrays hold, or would hold."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode() + "".join(digests).encode())
    for name in ("log_mel.npy", "frames.npy", "index.csv"):
        if (folder / name).exists():
            digest.update(bytes.fromhex(_sha256(folder / name)))
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
