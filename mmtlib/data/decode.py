"""Turn one clip into what a model reads: log-mel spectrograms and small frames.

The features stage does it once for all clips, or, where they are too many to keep, FeatureDataset does it again
and again for each batch: this is the code that both run, so both give the same numbers.
"""

import functools
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import model_validator

from mmtlib.config import ViewSettings
from mmtlib.data.container import MediaError, locate
from mmtlib.data.media import read_views
from mmtlib.data.spectrogram import LogMel

DTYPES = {"log_mel": np.float16, "frames": np.uint8}  # of the arrays
_log_mel = functools.cache(LogMel)  # made once in each process
_SILENCE = 0.5 / 2**15  # half a step of 16-bit audio: a window that stays below it is digital silence


class Settings(ViewSettings):
    """What the arrays depend on, and what follows from it."""

    @model_validator(mode="after")
    def _gives_a_spectrogram(self) -> "Settings":
        if not self.shapes["log_mel"][0]:
            raise ValueError(f"seconds {self.seconds} is shorter than window_ms {self.window_ms}; raise it")
        return self

    @property
    def samples(self) -> int:
        return round(self.seconds * self.sample_rate)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a view in each array."""
        sound = (self.log_mel().num_frames(self.samples), self.mel_bins)
        return {"log_mel": sound, "frames": (self.frames, self.size, self.size, 3)}

    def log_mel(self) -> LogMel:
        return _log_mel(self.sample_rate, self.mel_bins, self.window_ms, self.hop_ms)


class Task(NamedTuple):
    """What there is to decode: a clip's file and window."""

    path: Path
    start: float | None
    end: float | None
    all_views: bool  # those that a test clip has, not the central one alone


class View(NamedTuple):
    """A modality that the clip does not have in this view is None."""

    log_mel: np.ndarray | None  # float16 (time, mel)
    frames: np.ndarray | None  # uint8 (T, H, W, 3)


class Decoded(NamedTuple):
    """One clip as a worker hands it back."""

    status: str  # used, missing or broken
    reason: str = ""
    views: tuple[View, ...] = ()
    audio_frames: tuple[int, ...] = ()  # of each view's log-mel, those before its audio ends; digital silence follows
    digest: str = ""  # of what the views hold, where that is not kept


def clip_tasks(rows: pd.DataFrame, root: Path) -> list[Task]:
    """The tasks of some rows of a manifest, or of index.csv, whose media lie below `root`."""
    times = rows[["start", "end"]].astype(object).replace({np.nan: None})
    all_views = rows.split.eq("test") | ("fold" in rows)  # in a set of folds each clip is once in the test split
    rest = zip(rows.path, times.start, times.end, all_views, strict=True)
    return [Task(root / path, start, end, bool(views)) for path, start, end, views in rest]


def decode(settings: Settings, task: Task, modality: str = "av") -> Decoded:
    """What the arrays hold of a clip, or why it cannot be used; only what `modality` needs is decoded."""
    clips, crops = (settings.clips, settings.crops) if task.all_views else (1, 1)
    try:
        if locate(task.path) is None:
            return Decoded("missing", f"{task.path} does not exist; fetch it or drop its row.")
        view = {name: getattr(settings, name) for name in ("size", "sample_rate", "seconds", "region")}
        view |= {"num_frames": settings.frames, "clips": clips, "crops": crops, "modality": modality}
        found = read_views(task.path, task.start, task.end, **view)
    except (MediaError, OSError) as error:
        return Decoded("broken", str(error))
    heard = [_heard(settings, clip.waveform, task) for clip in found[::crops]]  # crops share their sound
    views = tuple(View(heard[number // crops][0], clip.frames) for number, clip in enumerate(found))
    lengths = tuple(heard[number // crops][1] for number in range(len(found)))
    return Decoded("used", "", views, lengths)


def _heard(settings: Settings, waveform: np.ndarray | None, task: Task) -> tuple[np.ndarray | None, int]:
    """The spectrogram of a view's audio, None of silence, and how many of its frames come before the audio ends.

    All of them do where no more than a hop is missing. Noise is always the same to the same clip: its seed is the
    file's name and the clip's beginning.
    """
    log_mel = settings.log_mel()
    if waveform is None:
        return None, log_mel.num_frames(settings.samples)
    if settings.snr is not None:
        seed = zlib.crc32(f"{task.path.name} {task.start}".encode())
        noise = np.random.default_rng(seed).standard_normal(len(waveform), dtype=np.float32)
        waveform = waveform + noise * np.float32(np.sqrt(np.mean(waveform**2)) * 10 ** (-settings.snr / 20))
    is_whole = len(waveform) >= settings.samples - log_mel.hop
    length = log_mel.num_frames(settings.samples if is_whole else len(waveform))
    if not (np.abs(waveform) >= _SILENCE).any():
        return None, length
    padded = np.zeros(settings.samples, np.float32)
    padded[: len(waveform)] = waveform[: len(padded)]
    with torch.inference_mode():
        return log_mel(torch.from_numpy(padded)).to(torch.float16).numpy(), length
