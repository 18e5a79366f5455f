"""Turn a manifest's clips into two arrays on disk: log-mel spectrograms and small frames.

Decoding is what makes audio-video training slow, so it is done once. Every clip that cannot be used is
counted and listed with its reason, and a clip without sound or picture carries a flag rather than zeros that
look real.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import tempfile
import time
import warnings
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
from numpy.lib.format import open_memmap, write_array_header_1_0
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import MelSpectrogram

from mmtlib.data.manifest import SPLITS, read_manifest
from mmtlib.data.media import MediaError, read_clip

LOG_OFFSET = 1e-6  # added to the power before the logarithm; its logarithm is the value of digital silence
LOW_HZ = 20.0  # lower edge of the lowest mel band
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchaudio warns of the empty bands that are looked for here
            while (melscale_fbanks(n_fft // 2 + 1, LOW_HZ, high, mel_bins, sample_rate).amax(dim=0) == 0).any():
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
    """Write the feature folder `out` of a manifest and return its coverage: split -> what -> count of clips.

    Per clip the central `seconds` of its window are read (media.read_clip): sound at `sample_rate` Hz as a
    log-mel of `mel_bins` bands (window_ms, hop_ms) and `frames` RGB frames of `size` x `size`. Coverage counts
    the clips that are listed, used, missing or broken, and of the used ones those that are silent (no sound),
    blind (no picture) or too_short: sound shorter by more than a hop, whose rest is digital silence. `workers`
    processes decode (0: one a core); the result does not depend on their number. The folder appears in one
    step, over an older one:

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

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        coverage = _extract(manifest, manifest_path.parent, dataset, settings, workers, new)
        if out.exists():
            os.replace(out, old)
        os.replace(new, out)
    return coverage


def _dataset(manifest_path: Path, manifest: pd.DataFrame) -> dict:
    """Name, class list's name and ordered classes of the data set."""
    labels = sorted(set(manifest.label))
    path = manifest_path.with_name("dataset.json")
    if not path.exists():
        return {"name": manifest_path.parent.resolve().name, "class_list": "labels found", "classes": labels}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        name, classes = str(given["name"]), [str(label) for label in given["classes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            f"{path} is not a JSON object with name and classes ({error}); run the download stage again."
        ) from error
    unknown = [label for label in labels if label not in classes]
    if unknown:
        raise FeatureError(f"{path} has no class {unknown[0]!r} that the manifest uses; correct its classes.")
    if len(set(classes)) < len(classes):
        raise FeatureError(f"{path} names a class twice; correct its classes.")
    return {"name": name, "class_list": str(given.get("class_list", name)), "classes": classes}


class _Features(NamedTuple):
    """One clip as a worker hands it back; a modality that it does not have is None."""

    status: str  # used, missing or broken
    reason: str = ""
    log_mel: np.ndarray | None = None  # float16 (time, mel)
    frames: np.ndarray | None = None  # uint8 (T, H, W, 3)
    too_short: bool = False


def _extract(manifest: pd.DataFrame, root: Path, dataset: dict, settings: Settings, workers: int, folder: Path) -> dict:
    times = manifest[["start", "end"]].replace({np.nan: None})
    tasks = list(zip([root / path for path in manifest.path], times.start, times.end, strict=True))
    sound_shape = (settings.log_mel().num_frames(settings.samples), settings.mel_bins)
    picture_shape = (settings.frames, settings.size, settings.size, 3)
    # Room for every clip listed; shortened to the used ones below.
    log_mel = _reserve(folder / "log_mel.npy", np.float16, (len(tasks), *sound_shape))
    frames = _reserve(folder / "frames.npy", np.uint8, (len(tasks), *picture_shape))
    facts = []
    used = 0
    for made in _reported(_run(tasks, settings, workers), len(tasks)):
        has_audio, has_video = made.log_mel is not None, made.frames is not None
        facts.append((made.status, made.reason, has_audio, has_video, made.too_short))
        if has_audio:
            log_mel[used] = made.log_mel
        if has_video:
            frames[used] = made.frames
        used += made.status == "used"
    found = pd.DataFrame(facts, columns=["status", "reason", "has_audio", "has_video", "too_short"])
    coverage = {split: _count(found[manifest.split == split]) for split in SPLITS}
    is_used = found.status == "used"
    if not coverage["train"]["used"]:
        reason = "the manifest has no row of it" if is_used.all() else found.reason[~is_used].iloc[0]
        raise FeatureError(f"No usable train clip below {root}; the first problem: {reason}")

    index = manifest[is_used].assign(has_audio=found.has_audio, has_video=found.has_video)
    index.to_csv(folder / "index.csv", index=False, lineterminator="\n")
    skipped = manifest[["clip_id", "path", "split"]].join(found[["status", "reason"]])[~is_used]
    skipped.to_csv(folder / "skipped.csv", index=False, lineterminator="\n")

    is_train = (index.split == "train").to_numpy()
    has_audio, has_video = index.has_audio.to_numpy(), index.has_video.to_numpy()
    (sound_mean,), (sound_std,) = _mean_and_std(log_mel[..., None], np.flatnonzero(is_train & has_audio))
    picture_mean, picture_std = _mean_and_std(frames, np.flatnonzero(is_train & has_video))
    log_mel[:used][~has_audio] = sound_mean
    frames[:used][~has_video] = np.rint(picture_mean)
    _shorten(log_mel, used)
    _shorten(frames, used)
    described = {
        **dataset,
        "settings": asdict(settings),
        "log_mel": {"shape": [used, *sound_shape], "mean": sound_mean, "std": sound_std},
        "frames": {
            "shape": [used, *picture_shape],
            "mean": [value / 255 for value in picture_mean],  # RGB on a scale of 0..1
            "std": [value / 255 for value in picture_std],
        },
        "coverage": coverage,
    }
    described["fingerprint"] = _fingerprint(described, folder)
    (folder / "features.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return coverage


def _count(found: pd.DataFrame) -> dict[str, int]:
    used = found[found.status == "used"]
    counts = {
        "listed": len(found),
        "used": len(used),
        "missing": (found.status == "missing").sum(),
        "broken": (found.status == "broken").sum(),
        "silent": (~used.has_audio).sum(),
        "blind": (~used.has_video).sum(),
        "too_short": used.too_short.sum(),
    }
    return {name: int(count) for name, count in counts.items()}


def _run(tasks: list, settings: Settings, workers: int) -> Iterator[_Features]:
    """The tasks' results in order, from `workers` fresh processes (one: from this process)."""
    make = functools.partial(_make, settings)
    workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count()))
    workers = min(workers, math.ceil(len(tasks) / _CHUNK))
    if workers == 1:
        yield from map(make, tasks)
        return
    # spawn, not fork: a forked copy of a process whose torch threads run can lock up. One thread: a process a core.
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            yield from pool.map(make, tasks, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise FeatureError(
                "A feature worker process died, of too little memory or of a file that crashes the decoder; "
                "set features.workers to 1 to see which."
            ) from error


_log_mel = functools.cache(Settings.log_mel)  # made once in each process


def _make(settings: Settings, task: tuple[Path, float | int | None, float | int | None]) -> _Features:
    path, start, end = task
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
    if clip.waveform is None:
        return _Features("used", frames=clip.frames)
    lacking = settings.samples - len(clip.waveform)
    log_mel = _log_mel(settings)
    with torch.inference_mode():
        spectrogram = log_mel(torch.from_numpy(np.pad(clip.waveform, (0, lacking))))
    return _Features("used", "", spectrogram.to(torch.float16).numpy(), clip.frames, lacking > log_mel.hop)


def _reported(results: Iterable[_Features], total: int) -> Iterator[_Features]:
    """Passes the results on and prints a line of progress now and then."""
    begin = last = time.monotonic()
    for count, made in enumerate(results, start=1):
        now = time.monotonic()
        if now - last >= _REPORT_S or count == total:
            last = now
            print(f"features: {count}/{total} clips, {count / max(now - begin, 1e-9):.0f} clips/s", flush=True)
        yield made


def _mean_and_std(array: np.ndarray, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel (the last axis) over some rows, in double precision.

    0 and 1 without a row. A constant channel's deviation is 1, so that it normalises to 0.
    """
    count, total, square = 0, np.zeros(array.shape[-1]), np.zeros(array.shape[-1])
    for row in rows:
        values = array[row].reshape(-1, array.shape[-1]).astype(np.float64)
        count += len(values)
        total += values.sum(axis=0)
        square += np.einsum("nc,nc->c", values, values)
    mean = total / max(count, 1)
    std = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0.0))
    return mean.tolist(), np.where(std < 1e-4, 1.0, std).tolist()


def _reserve(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file to write into. A full disk is met here: later, in a mapped file, it would kill the process."""
    array = open_memmap(path, "w+", dtype, shape)
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


def _fingerprint(described: dict, folder: Path) -> str:
    """sha256 over the description and the bytes of the arrays and the index."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in ("log_mel.npy", "frames.npy", "index.csv"):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
