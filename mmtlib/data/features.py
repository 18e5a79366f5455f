"""Turn a manifest's clips into two arrays on disk: log-mel spectrograms and small frames.

Decoding is what makes audio-video training slow, so it is done once. Every clip that cannot be used is counted and
listed with its reason, and a clip without audio or video carries a flag rather than zeros that look real.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.lib.format import write_array_header_1_0

from mmtlib.cluster import run_all
from mmtlib.data.decode import DTYPES, Decoded, Settings, Task, View, clip_tasks, decode
from mmtlib.data.manifest import SHORT_S, SPLITS, label_lists, media_root, read_manifest
from mmtlib.data.spectrogram import FeatureError
from mmtlib.files import naming
from mmtlib.sections import check

_ABOUT = ("source", "notes", "pairs", "ceilings")  # no part of the fingerprint, which is of what was read
_SAMPLE = 512  # train clips behind the statistics where no arrays are kept


def extract_features(
    manifest_path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    cache: bool = True,
    workers: int | str = 0,
    **settings: float | int | None,
) -> dict[str, dict[str, int]]:
    """Write the feature folder `out` of a manifest and return its coverage: split -> what -> count of clips.

    `settings` are the fields of Settings. Per clip the central `seconds` of its window are read: audio at
    `sample_rate` as a log-mel of `mel_bins` bands, and `frames` frames of `size` x `size`. A test clip has
    `clips` x `crops` views (media.read_views), each a row. Coverage counts the clips that are listed, used,
    missing or broken, and of the used ones those that are silent (no audio, or digital silence), blind (no
    video) or too_short: audio shorter by more than SHORT_S, whose rest is digital silence. `workers` decode, as
    cluster.connect takes them; the bytes do not depend on them. The folder appears in one step, over an older one:

    log_mel.npy float16 (N, time, mel), frames.npy uint8 (N, T, size, size, 3), index.csv (the manifest's rows
    used, in the arrays' order, with view where there are several, has_audio and has_video), skipped.csv (the
    rest, with reasons) and features.json (settings, classes, statistics of the train split, coverage,
    fingerprint). Rows of a missing modality hold the train mean; their flag is what counts. Class order and
    names come from dataset.json beside the manifest, where there is one, else from the sorted labels.

    Without `cache` every clip is decoded once to see what it holds, but no arrays are kept: FeatureDataset
    decodes again what it is asked for. The statistics are then those of up to 512 train clips, spread evenly.
    Raises ParamsError, ManifestError, FeatureError where nothing can be made, and ClusterError.
    """
    checked = check(Settings, settings, "features")
    manifest_path, out = Path(manifest_path), Path(out)
    manifest = read_manifest(manifest_path)
    dataset, root = _dataset(manifest_path, manifest), media_root(manifest_path)
    with naming(out), _replacing(out) as new:
        facts = _decode_all(manifest, root, checked, cache, workers, new)
        coverage, used = _coverage(manifest, facts), facts[facts.status == "used"]
        if not coverage["train"]["used"]:
            first = next(iter(facts.reason[facts.status != "used"]), "the manifest has no row of it")
            raise FeatureError(f"No usable train clip below {root}; the first problem: {first}")
        index = _write_tables(manifest, facts, checked, new)
        train = np.flatnonzero(index.split == "train")
        if cache:
            arrays = [np.load(new / f"{name}.npy", mmap_mode="r+") for name in DTYPES]
            has = index[["has_audio", "has_video"]].to_numpy()
            views = (View(*(a[row] if own else None for a, own in zip(arrays, has[row], strict=True))) for row in train)
        else:
            train = train[np.linspace(0, len(train) - 1, min(len(train), _SAMPLE)).round().astype(int)]
            tasks = clip_tasks(index.iloc[train], root)
            made = run_all(functools.partial(decode, checked), tasks, workers, what="clips decoded for the statistics")
            views = (clip.views[view] for view, clip in zip(used.view.iloc[train], made, strict=True))
        folds = index.get("fold", pd.Series(0, index.index)).iloc[train]
        if checked.motion:
            views = (view if (f := view.frames) is None else View(view.log_mel, f - f.mean(0)) for view in views)
        sums = _sums_by_fold(views, used.audio_frames.iloc[train], folds)
        log_mel, frames = _normalisation(sums.values())
        if cache:
            arrays[0][~has[:, 0]] = log_mel["mean"]
            arrays[1][~has[:, 1]] = np.rint(255 * np.array(frames["mean"]))
            for array in arrays:
                array.flush()
        about = {name: dataset.pop(name) for name in _ABOUT if name in dataset}
        described = {
            **dataset,
            # Defaults are left out, since an older folder did not have them: the same fingerprint.
            "settings": checked.model_dump(exclude_defaults=True),
            "log_mel": {"shape": [len(used), *checked.shapes["log_mel"]]} | log_mel,
            "frames": {"shape": [len(used), *checked.shapes["frames"]]} | frames,
            "coverage": coverage,
        }
        if "fold" in index:  # the statistics of its training folds
            described["folds"] = {
                str(int(fold)): dict(zip(("log_mel", "frames"), _normalisation(others), strict=True))
                for fold in sorted(index.fold.dropna().unique())
                if (others := [own for other, own in sums.items() if other != fold])
            }
        described["fingerprint"] = _fingerprint(described, new, used.digest)
        described |= about
        if not cache:  # says that there are no arrays, and where to decode from; folders may move together
            described["manifest"] = os.path.relpath(manifest_path, out)
        (new / "features.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return coverage


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of `out` at the end; an older one must hold features."""
    if out.exists() and any(out.iterdir()) and not (out / "features.json").exists():
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
        raise FeatureError(f"{path} is damaged ({error}); run the download stage again.") from error
    for column, names in {"label": classes, **heads}.items():
        if column not in manifest:
            raise FeatureError(f"{path} has the head {column!r}, which is no column of the manifest; correct it.")
        unknown = sorted(set(label_lists(manifest[column].astype(str), given).explode()) - set(names))
        if unknown:
            raise FeatureError(f"{path} has no class {unknown[0]!r} that the manifest uses; correct its classes.")
        if len(set(names)) < len(names):
            raise FeatureError(f"{path} names a class twice; correct its classes.")
    described = {"name": name, "class_list": str(given.get("class_list", name)), "classes": classes}
    described |= {"heads": heads} if heads else {"multilabel": True} if given.get("multilabel") else {}
    return described | {name: given[name] for name in _ABOUT if name in given}


def _decode_flags(settings: Settings, task: Task) -> Decoded:
    """As `decode`, but of each array only that it is there, and a digest of them all."""
    made, digest = decode(settings, task), hashlib.sha256()
    for array in (array for view in made.views for array in view if array is not None):
        digest.update(array)
    empty = (View(*(None if array is None else np.empty(0) for array in view)) for view in made.views)
    return made._replace(views=tuple(empty), digest=digest.hexdigest())


def _decode_all(
    manifest: pd.DataFrame, root: Path, settings: Settings, cache: bool, workers: int | str, folder: Path
) -> pd.DataFrame:
    """Write the arrays of a manifest's rows; what is known of each view, and of each clip that is not used."""
    tasks, shapes = clip_tasks(manifest, root), settings.shapes if cache else {}
    rows = len(tasks) + (settings.clips * settings.crops - 1) * sum(task.all_views for task in tasks)
    need = rows * sum(math.prod(shape) * np.dtype(DTYPES[name]).itemsize for name, shape in shapes.items())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise FeatureError(f"The arrays need {need / 2**30:.1f} GiB, {free / 2**30:.1f} are free; free some disk.")
    call = functools.partial(decode if cache else _decode_flags, settings)
    facts, used = [], 0
    with contextlib.ExitStack() as stack:
        arrays = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in shapes}
        _write_headers(arrays, shapes, rows)  # so that the last ones have room
        for row, made in enumerate(run_all(call, tasks, workers, what="clips decoded")):
            for number, view in enumerate(made.views or [View(None, None)]):
                has = [array is not None for array in view]
                length = made.audio_frames[number] if has[0] else settings.shapes["log_mel"][0]
                facts.append((row, number, made.status, made.reason, *has, length, made.digest))
                for name, array in zip(arrays if made.views else (), view, strict=False):
                    arrays[name].write(np.zeros(shapes[name], DTYPES[name]) if array is None else array)
            used += len(made.views)
        _write_headers(arrays, shapes, used)
    columns = ["row", "view", "status", "reason", "has_audio", "has_video", "audio_frames", "digest"]
    facts = pd.DataFrame(facts, columns=columns)
    missing = settings.shapes["log_mel"][0] - facts.audio_frames
    return facts.assign(padded=missing > 0, too_short=missing * settings.hop_ms > 1000 * SHORT_S)


def _write_headers(arrays: dict[str, BinaryIO], shapes: dict[str, tuple[int, ...]], rows: int) -> None:
    """The headers of .npy files; numpy pads them so that any number of rows has room there."""
    for name, file in arrays.items():
        file.seek(0)
        about = {"descr": np.dtype(DTYPES[name]).str, "fortran_order": False, "shape": (rows, *shapes[name])}
        write_array_header_1_0(file, about)


def _write_tables(manifest: pd.DataFrame, facts: pd.DataFrame, settings: Settings, folder: Path) -> pd.DataFrame:
    """Write index.csv, which is returned, and skipped.csv."""
    used, skipped = facts[facts.status == "used"], facts[facts.status != "used"]
    columns = ["view"] if settings.clips * settings.crops > 1 else []
    columns += ["has_audio", "has_video"]
    columns += ["audio_frames"] if used.padded.any() else []
    index = manifest.iloc[used.row].assign(**{name: used[name].to_numpy() for name in columns})
    index.to_csv(folder / "index.csv", index=False, lineterminator="\n")
    reasons = {name: skipped[name].to_numpy() for name in ("status", "reason")}
    listed = manifest.iloc[skipped.row][["clip_id", "path", "split"]].assign(**reasons)
    listed.to_csv(folder / "skipped.csv", index=False, lineterminator="\n")
    return index


def _coverage(manifest: pd.DataFrame, facts: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Counts of clips by split; what only some views of a clip lack, the clip does not lack."""
    clips = facts.groupby("row").agg({"status": "first", "has_audio": "max", "has_video": "max", "too_short": "max"})
    is_used = clips.status == "used"
    counts = {"listed": True} | {status: clips.status == status for status in ("used", "missing", "broken")}
    counts |= {"silent": is_used & ~clips.has_audio, "blind": is_used & ~clips.has_video, "too_short": clips.too_short}
    by_split = pd.DataFrame(counts).groupby(manifest.split.iloc[clips.index].to_numpy()).sum()
    return by_split.reindex(SPLITS, fill_value=0).to_dict("index")


Sums = list[tuple[int, np.ndarray, np.ndarray]]  # of log-mel values and of each colour: count, sum, sum of squares


def _sums_by_fold(views: Iterable[View], filled: pd.Series, folds: pd.Series) -> dict[Any, Sums]:
    """What mean and deviation follow from, in double precision, of the views of each fold; padding does not count."""
    found: dict[Any, Sums] = {}
    for view, length, fold in zip(views, filled, folds.fillna(0), strict=True):
        sums = found.setdefault(fold, [(0, np.zeros(1), np.zeros(1)), (0, np.zeros(3), np.zeros(3))])
        for place, array in enumerate((None if view.log_mel is None else view.log_mel[:length], view.frames)):
            if array is not None:
                count, total, square = sums[place]
                values = array.reshape(-1, len(total)).astype(np.float64)
                total, square = total + values.sum(axis=0), square + np.einsum("nc,nc->c", values, values)
                sums[place] = (count + len(values), total, square)
    return found


def _normalisation(parts: Iterable[Sums]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """mean and std of log-mel values and of each colour (RGB on a scale of 0..1); 0 and 1 of nothing.

    A constant's deviation is 1, so that it normalises to 0.
    """
    found = []
    for sums in zip(*parts, strict=True):  # of the log-mel, then of the frames
        count, total, square = (sum(values) for values in zip(*sums, strict=True))
        mean = total / max(count, 1)
        std = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0.0))
        found.append((mean, np.where(std < 1e-4, 1.0, std)))
    ((level,), (deviation,)), (colour, contrast) = ((mean.tolist(), std.tolist()) for mean, std in found)
    scaled = {"mean": [value / 255 for value in colour], "std": [value / 255 for value in contrast]}
    return {"mean": level, "std": deviation}, scaled


def _fingerprint(described: dict, folder: Path, digests: Iterable[str]) -> str:
    """sha256 over the description, the index and what the arrays hold, or would hold."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode() + "".join(digests).encode())
    for name in ("log_mel.npy", "frames.npy", "index.csv"):
        if (folder / name).exists():
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
