"""Turn a manifest's clips into two arrays on disk: log-mel spectrograms and small frames.

Decoding is what makes audio-video training slow, so it is done once. Every clip that cannot be used is
counted and listed with its reason, and a clip without sound or picture carries a flag rather than zeros that
look real.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import MelSpectrogram

from mmtlib.data.manifest import SPLITS, read_manifest
from mmtlib.data.media import MediaError, read_clip

LOG_OFFSET = 1e-6  # added to the power before the logarithm; its logarithm is the value of digital silence
LOW_HZ = 20.0  # lower edge of the lowest mel band
COUNTS = ("listed", "used", "missing", "broken", "silent", "blind", "too_short")
_CHUNK = 8  # clips per task of a worker: few enough to balance, enough to hide the cost of a task
_REPORT_S = 10.0


class FeatureError(ValueError):
    """Settings or a data set from which no features can be made; one sentence with the remedy."""


class LogMel(nn.Module):
    """Log-mel spectrogram, time first: natural log of (HTK mel power + 1e-6), Hann window, no edge padding.

    The FFT is the shortest power of two, at least the window, that leaves no mel band without a bin: at 128
    bands and 25 ms a 512-point FFT would leave the lowest ones constant. The number of frames depends on the
    window only: 1 + (samples - window) // hop. Raises FeatureError for settings that give no spectrogram. Our
    reading: the papers give neither window nor mel scale.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        mel_bins: int = 128,
        window_ms: float | int = 25,
        hop_ms: float | int = 10,
    ):
        super().__init__()
        self.window = round(sample_rate * window_ms / 1000)
        self.hop = round(sample_rate * hop_ms / 1000)
        if self.window < 2 or self.hop < 1 or mel_bins < 1:
            raise FeatureError(
                f"features: window_ms {window_ms}, hop_ms {hop_ms} and mel_bins {mel_bins} give no "
                f"spectrogram at {sample_rate} Hz; raise the one that is too small."
            )
        high = sample_rate / 2
        n_fft = 1 << (self.window - 1).bit_length()
        while self._has_empty_band(n_fft, high, mel_bins, sample_rate):
            n_fft *= 2
            if n_fft > 32 * self.window:
                raise FeatureError(
                    f"features.mel_bins: {mel_bins} bands are too narrow for a window of {window_ms} ms; use fewer."
                )
        self.mel = MelSpectrogram(
            sample_rate, n_fft, self.window, self.hop, LOW_HZ, high, n_mels=mel_bins, center=False
        )
        # The transform centres the window in the FFT; this much of its input on each side has no weight.
        self.margin = ((n_fft - self.window) // 2, n_fft - self.window - (n_fft - self.window) // 2)

    @staticmethod
    def _has_empty_band(n_fft: int, high: float | int, mel_bins: int, sample_rate: int) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchaudio warns of the very thing that is asked here
            bank = melscale_fbanks(n_fft // 2 + 1, LOW_HZ, high, mel_bins, sample_rate)
        return bool((bank.amax(dim=0) == 0).any())

    def num_frames(self, samples: int) -> int:
        """Frames that so many samples give."""
        return max(0, 1 + (samples - self.window) // self.hop)

    def forward(self, waveform: Float[Tensor, "*batch samples"]) -> Float[Tensor, "*batch time mel"]:
        power = self.mel(nn.functional.pad(waveform, self.margin))
        return (power + LOG_OFFSET).log().transpose(-1, -2)


@dataclass(frozen=True)
class Settings:
    """What the arrays depend on; see extract_features for the units."""

    sample_rate: int
    mel_bins: int
    window_ms: float | int
    hop_ms: float | int
    frames: int
    size: int
    seconds: float | int

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not value > 0 or not math.isfinite(value):
                raise FeatureError(f"features.{name} is {value}; give a number above 0.")
        if self.log_mel().num_frames(self.samples) < 1:
            raise FeatureError(f"features.seconds: {self.seconds} s is shorter than window_ms; raise it.")

    @property
    def samples(self) -> int:
        return round(self.seconds * self.sample_rate)

    def log_mel(self) -> LogMel:
        return LogMel(self.sample_rate, self.mel_bins, self.window_ms, self.hop_ms)


class _Features(NamedTuple):
    """One clip as a worker hands it back."""

    status: str  # used, missing or broken
    reason: str = ""
    log_mel: np.ndarray | None = None  # float16 (time, mel)
    frames: np.ndarray | None = None  # uint8 (T, H, W, 3)
    too_short: bool = False


def extract_features(
    manifest_path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    sample_rate: int,
    mel_bins: int,
    window_ms: float | int,
    hop_ms: float | int,
    frames: int,
    size: int,
    seconds: float | int,
    workers: int = 0,
) -> dict[str, dict[str, int]]:
    """Write the feature folder `out` of a manifest and return its coverage: split -> count of each of COUNTS.

    Per clip the central `seconds` of its window are read (media.read_clip): sound at `sample_rate` Hz as a
    log-mel of `mel_bins` bands (window_ms, hop_ms) and `frames` RGB frames of `size` x `size`. Sound that is
    shorter by more than a hop is counted as too_short; its rest is digital silence. `workers` processes
    decode (0: one a core); the result does not depend on their number. The folder appears in one step, over
    an older one:

    log_mel.npy float16 (N, time, mel), frames.npy uint8 (N, T, size, size, 3), index.csv (the manifest's rows
    used, in the arrays' order, with has_audio and has_video), skipped.csv (the rest, with reasons) and
    features.json (settings, classes, statistics of the train split, coverage, fingerprint). Rows of a missing
    modality hold the train mean; their flag is what counts. Class order and names come from dataset.json
    beside the manifest, where there is one, else from the sorted labels. Raises ManifestError, and
    FeatureError where nothing can be made.
    """
    settings = Settings(sample_rate, mel_bins, window_ms, hop_ms, frames, size, seconds)
    manifest_path, out = Path(manifest_path), Path(out)
    if workers < 0:
        raise FeatureError(f"features.workers is {workers}; give a count, or 0 for one process a core.")
    if out.exists() and any(out.iterdir()) and not (out / "features.json").exists():
        raise FeatureError(f"{out} holds other files than features; choose another folder for the features.")
    manifest = read_manifest(manifest_path)
    dataset = _dataset(manifest_path, manifest)

    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        coverage = _extract(manifest, manifest_path.parent, dataset, settings, workers, part)
        if out.exists():
            old = out.with_name(f".{out.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out, old)
            os.replace(part, out)
            shutil.rmtree(old)
        else:
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return coverage


def _dataset(manifest_path: Path, manifest: pd.DataFrame) -> dict:
    """Name, class list's name and ordered classes of the data set."""
    labels = sorted(set(manifest.label))
    path = manifest_path.with_name("dataset.json")
    if not path.exists():
        return {"name": manifest_path.parent.resolve().name, "class_list": "labels found", "classes": labels}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        dataset = {"name": str(given["name"]), "class_list": str(given.get("class_list", given["name"]))}
        dataset["classes"] = [str(name) for name in given["classes"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatureError(
            f"{path} is not a JSON object with name and classes ({error}); run the download stage again."
        ) from error
    unknown = [label for label in labels if label not in dataset["classes"]]
    if unknown or len(set(dataset["classes"])) < len(dataset["classes"]):
        what = f"has no class {unknown[0]!r} that the manifest uses" if unknown else "names a class twice"
        raise FeatureError(f"{path} {what}; correct its classes.")
    return dataset


def _extract(manifest: pd.DataFrame, root: Path, dataset: dict, settings: Settings, workers: int, folder: Path) -> dict:
    rows = list(manifest[["path", "start", "end", "split"]].itertuples(index=False))
    tasks = [(root / row.path, _or_none(row.start), _or_none(row.end)) for row in rows]
    coverage = {split: Counter(dict.fromkeys(COUNTS, 0)) for split in SPLITS}
    kept, flags, skipped = [], [], []
    time_bins = settings.log_mel().num_frames(settings.samples)
    sound = _Moments(1)
    picture = _Moments(3)
    side = settings.size
    with (
        _ArrayWriter(folder / "log_mel.npy", (time_bins, settings.mel_bins), np.float16) as log_mel_file,
        _ArrayWriter(folder / "frames.npy", (settings.frames, side, side, 3), np.uint8) as frames_file,
    ):
        for index, made in enumerate(_reported(_run(tasks, settings, workers), len(tasks))):
            split = rows[index].split
            coverage[split]["listed"] += 1
            coverage[split][made.status] += 1
            if made.status != "used":
                skipped.append((index, made.status, made.reason))
                continue
            has_audio, has_video = made.log_mel is not None, made.frames is not None
            coverage[split]["silent"] += not has_audio
            coverage[split]["blind"] += not has_video
            coverage[split]["too_short"] += made.too_short
            kept.append(index)
            flags.append((has_audio, has_video))
            if split == "train":
                if has_audio:
                    sound.add(made.log_mel[..., None])
                if has_video:
                    picture.add(made.frames)
            log_mel_file.append(made.log_mel)
            frames_file.append(made.frames)
    if not coverage["train"]["used"]:
        reason = skipped[0][2] if skipped else "the manifest has no row of it"
        raise FeatureError(f"No usable train clip below {root}; the first problem: {reason}")

    index = manifest.iloc[kept].copy()
    index["has_audio"], index["has_video"] = np.array(flags, dtype=bool).T
    index.to_csv(folder / "index.csv", index=False, lineterminator="\n")
    with (folder / "skipped.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("clip_id", "path", "split", "status", "reason"))
        for row, status, reason in skipped:
            table.writerow((*manifest.loc[row, ["clip_id", "path", "split"]], status, reason))

    (sound_mean,), (sound_std,) = sound.mean_and_std()
    picture_mean, picture_std = picture.mean_and_std()
    _fill(folder / "log_mel.npy", ~index["has_audio"].to_numpy(), sound_mean)
    _fill(folder / "frames.npy", ~index["has_video"].to_numpy(), np.rint(picture_mean))
    coverage = {split: dict(counts) for split, counts in coverage.items()}
    described = {
        **dataset,
        "settings": asdict(settings),
        "log_mel": {"shape": [len(kept), time_bins, settings.mel_bins], "mean": sound_mean, "std": sound_std},
        "frames": {
            "shape": [len(kept), settings.frames, side, side, 3],
            "mean": [value / 255 for value in picture_mean],  # RGB on a scale of 0..1
            "std": [value / 255 for value in picture_std],
        },
        "coverage": coverage,
    }
    described["fingerprint"] = _fingerprint(described, folder)
    (folder / "features.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return coverage


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# Work on one clip; the functions below run in worker processes.

_worker: tuple[Settings, LogMel] | None = None


def _start_worker(settings: Settings) -> None:
    global _worker
    torch.set_num_threads(1)  # one process a core already
    _worker = (settings, settings.log_mel())


def _make_chunk(tasks: list[tuple[Path, float | None, float | None]]) -> list[_Features]:
    settings, log_mel = _worker
    return [_make(settings, log_mel, *task) for task in tasks]


def _make(
    settings: Settings, log_mel: LogMel, path: Path, start: float | int | None, end: float | int | None
) -> _Features:
    if not path.is_file():
        return _Features("missing", f"{path} does not exist; fetch it or drop its row.")
    try:
        clip = read_clip(
            path,
            start,
            end,
            num_frames=settings.frames,
            size=settings.size,
            sample_rate=settings.sample_rate,
            seconds=settings.seconds,
        )
    except (MediaError, OSError) as error:
        return _Features("broken", str(error))
    spectrogram, lacking = None, 0
    if clip.waveform is not None:
        lacking = settings.samples - len(clip.waveform)
        waveform = torch.from_numpy(np.pad(clip.waveform, (0, lacking)))
        with torch.inference_mode():
            spectrogram = log_mel(waveform).to(torch.float16).numpy()
    return _Features("used", "", spectrogram, clip.frames, lacking > log_mel.hop)


def _run(tasks: list, settings: Settings, workers: int) -> Iterator[_Features]:
    """The tasks' results in order, from `workers` fresh processes (one: from this process)."""
    workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count()))
    chunks = [tasks[first : first + _CHUNK] for first in range(0, len(tasks), _CHUNK)]
    if workers == 1 or len(chunks) == 1:
        log_mel = settings.log_mel()
        yield from (_make(settings, log_mel, *task) for task in tasks)
        return
    # spawn, not fork: a forked copy of a process whose torch threads run can lock up.
    with ProcessPoolExecutor(
        min(workers, len(chunks)), get_context("spawn"), initializer=_start_worker, initargs=(settings,)
    ) as pool:
        try:
            for made in pool.map(_make_chunk, chunks):
                yield from made
        except BrokenProcessPool as error:
            raise FeatureError(
                "A feature worker process died, of too little memory or of a file that crashes the decoder; "
                "set features.workers to 1 to see which."
            ) from error


def _reported(results: Iterable[_Features], total: int) -> Iterator[_Features]:
    """Passes the results on and prints a line of progress now and then."""
    begin = last = time.monotonic()
    for count, made in enumerate(results, start=1):
        now = time.monotonic()
        if now - last >= _REPORT_S or count == total:
            last = now
            print(f"features: {count}/{total} clips, {count / max(now - begin, 1e-9):.0f} clips/s", flush=True)
        yield made


# Arrays on disk.


class _ArrayWriter:
    """Appends rows to an .npy file whose length is known only at the end; a None row is zeros for now."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type):
        self._path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        self._count = 0

    def __enter__(self) -> _ArrayWriter:
        self._file = self._path.open("w+b")
        self._write_header()
        return self

    def __exit__(self, *_: object) -> None:
        # numpy pads the header so that the first axis can grow without moving the data.
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        shape = (self._count, *self._shape)
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, description)

    def append(self, row: np.ndarray | None) -> None:
        row = np.zeros(self._shape, self._dtype) if row is None else row
        if row.shape != self._shape or row.dtype != self._dtype:
            raise ValueError(f"{self._path.name}: row of {row.dtype} {row.shape}, not {self._dtype} {self._shape}")
        self._file.write(np.ascontiguousarray(row).data)
        self._count += 1


def _fill(path: Path, rows: np.ndarray, value: float | np.ndarray) -> None:
    if rows.any():
        array = np.load(path, mmap_mode="r+")
        for row in np.flatnonzero(rows):
            array[row] = value
        array.flush()


class _Moments:
    """Mean and standard deviation per channel (the last axis) over all arrays added, in double precision."""

    def __init__(self, channels: int):
        self._count, self._sum, self._square = 0, np.zeros(channels), np.zeros(channels)

    def add(self, array: np.ndarray) -> None:
        values = array.reshape(-1, array.shape[-1]).astype(np.float64)
        self._count += len(values)
        self._sum += values.sum(axis=0)
        self._square += np.einsum("nc,nc->c", values, values)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """0 and 1 if nothing was added. A constant channel's deviation is 1, so that it normalises to 0."""
        if not self._count:
            return [0.0] * len(self._sum), [1.0] * len(self._sum)
        mean = self._sum / self._count
        std = np.sqrt(np.maximum(self._square / self._count - mean**2, 0.0))
        return mean.tolist(), np.where(std < 1e-4, 1.0, std).tolist()


def _fingerprint(described: dict, folder: Path) -> str:
    """sha256 over the description and the bytes of the arrays and the index."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in ("log_mel.npy", "frames.npy", "index.csv"):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
