"""Turn one clip into what a model reads: log-mel spectrograms and small frames.

The features stage does it once for all clips, or, where they are too many to keep, FeatureDataset does it again
and again for each batch: this is the code that both run, so both give the same numbers.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import MelSpectrogram

from mmtlib.data.media import MediaError, locate, read_views

LOG_OFFSET = 1e-6  # added to the power before the logarithm; its logarithm is the value of digital silence
LOW_HZ = 20.0  # lower edge of the lowest mel band
DTYPES = {"log_mel": np.float16, "frames": np.uint8}  # of the arrays
_SILENCE = 0.5 / 2**15  # half a step of 16-bit sound: a window that stays below it is digital silence


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
    """What the arrays depend on."""

    sample_rate: int  # Hz
    mel_bins: int
    window_ms: float | int
    hop_ms: float | int
    frames: int  # RGB, in a view
    size: int  # pixels, height and width
    seconds: float | int  # of a view
    clips: int = 1  # windows of a test clip
    crops: int = 1  # of each of its windows, 1 or 3

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not value > 0 or not math.isfinite(value):
                raise FeatureError(f"features.{name} is {value}; give a number above 0.")
        if self.crops not in (1, 3):
            raise FeatureError(f"features.crops is {self.crops}; give 1 (the centre) or 3.")
        if self.log_mel().num_frames(self.samples) < 1:
            raise FeatureError(f"features.seconds: {self.seconds} s is shorter than window_ms; raise it.")

    @property
    def samples(self) -> int:
        return round(self.seconds * self.sample_rate)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a view in each array."""
        sound = (self.log_mel().num_frames(self.samples), self.mel_bins)
        return {"log_mel": sound, "frames": (self.frames, self.size, self.size, 3)}

    def log_mel(self) -> LogMel:
        return LogMel(self.sample_rate, self.mel_bins, self.window_ms, self.hop_ms)


class Task(NamedTuple):
    """What there is to decode: a clip's file and window; one of the test split is wanted in all its views."""

    path: Path
    start: float | None
    end: float | None
    split: str


class View(NamedTuple):
    """A modality that the clip does not have in this view is None."""

    log_mel: np.ndarray | None  # float16 (time, mel)
    frames: np.ndarray | None  # uint8 (T, H, W, 3)


class Decoded(NamedTuple):
    """One clip as a worker hands it back."""

    status: str  # used, missing or broken
    reason: str = ""
    views: tuple[View, ...] = ()
    too_short: bool = False
    digest: str = ""  # of what the views hold, where that is not kept


def clip_tasks(rows: pd.DataFrame, root: Path) -> list[Task]:
    """The tasks of some rows of a manifest, or of index.csv, whose media lie below `root`."""
    times = rows[["start", "end"]].astype(object).replace({np.nan: None})
    return [Task(root / path, *rest) for path, *rest in zip(rows.path, times.start, times.end, rows.split, strict=True)]


_log_mel = functools.cache(Settings.log_mel)  # made once in each process


def decode(settings: Settings, task: Task, modality: str = "av") -> Decoded:
    """What the arrays hold of a clip, or why it cannot be used; only what `modality` needs is decoded."""
    clips, crops = (settings.clips, settings.crops) if task.split == "test" else (1, 1)
    try:
        if locate(task.path) is None:
            return Decoded("missing", f"{task.path} does not exist; fetch it or drop its row.")
        found = read_views(
            task.path,
            task.start,
            task.end,
            num_frames=settings.frames,
            size=settings.size,
            sample_rate=settings.sample_rate,
            seconds=settings.seconds,
            clips=clips,
            crops=crops,
            modality=modality,
        )
    except (MediaError, OSError) as error:
        return Decoded("broken", str(error))
    sounds = [_spectrogram(settings, clip.waveform) for clip in found[::crops]]  # crops share their sound
    views = tuple(View(sounds[number // crops], clip.frames) for number, clip in enumerate(found))
    hop = _log_mel(settings).hop
    lengths = [len(clip.waveform) for clip, view in zip(found, views, strict=True) if view.log_mel is not None]
    return Decoded("used", "", views, any(settings.samples - length > hop for length in lengths))


def _spectrogram(settings: Settings, waveform: np.ndarray | None) -> np.ndarray | None:
    if waveform is None or not (np.abs(waveform) >= _SILENCE).any():
        return None
    padded = np.zeros(settings.samples, np.float32)
    padded[: len(waveform)] = waveform[: len(padded)]
    with torch.inference_mode():
        return _log_mel(settings)(torch.from_numpy(padded)).to(torch.float16).numpy()


def share_of_cores() -> int:
    """Cores for this process, one of those that torchrun started on this machine or the only one."""
    cores = len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count()))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def decoders(workers: int) -> ProcessPoolExecutor:
    """Fresh processes that decode with one thread each, and end with this one."""
    # spawn, not fork: a forked copy of a process whose torch threads run can lock up.
    return ProcessPoolExecutor(workers, get_context("spawn"), _start_decoder)


def _start_decoder() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others

    def follow():
        parent_process().join()  # even if it was killed
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
