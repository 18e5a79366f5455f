"""Made-up clips and manifests; all of them go to tmp_path."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from freedoom_sounds.files import write_clip
from mmtlib.data.manifest import write_manifest


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey frames whose brightness is 20 + 6 times their number, so that a frame tells its own index."""
    levels = (20 + 6 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


@pytest.fixture
def frame_numbers():
    """frame_numbers(frames) -> the inverse of numbered_frames for any (T, H, W, 3), exact through h264."""
    return lambda frames: np.rint((frames.astype(float).mean(axis=(1, 2, 3)) - 20) / 6).astype(int).tolist()


def tone(seconds: float, sample_rate: int, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """int16 (samples, 1)."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return np.rint(32767 * level * np.sin(2 * np.pi * hz * time)).astype(np.int16)[:, None]


@pytest.fixture
def make_clip(tmp_path):
    """make_clip(name, seconds=2.0, picture=True, sound=True, hz=440.0) -> path of a new mp4 (16 fps)."""

    def make(name: str, seconds: float = 2.0, picture: bool = True, sound: bool = True, hz: float = 440.0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = numbered_frames(round(seconds * 16)) if picture else None
        write_clip(path, frames, 16, tone(seconds, 16000, hz) if sound else None, 16000)
        return path

    return make


@pytest.fixture
def make_manifest(tmp_path):
    """make_manifest([(path, label, split), ...]) -> path of a new manifest beside them, ids c0, c1, ..."""

    def make(rows: list[tuple[str, str, str]], **extra) -> Path:
        paths, labels, splits = zip(*rows, strict=True)
        ids = [f"c{index}" for index in range(len(rows))]
        table = {"clip_id": ids, "path": paths, "start": "", "end": "", "label": labels, "split": splits, **extra}
        write_manifest(pd.DataFrame(table), tmp_path / "manifest.csv")
        return tmp_path / "manifest.csv"

    return make
