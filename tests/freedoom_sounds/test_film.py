"""Clips that are written; what they hold is read back in tests/data/test_media.py."""

import numpy as np
import pytest

from freedoom_sounds.files import write_clip


def test_writing_twice_gives_the_same_bytes_and_no_leftovers(tmp_path):
    rng = np.random.default_rng(0)
    frames, pcm = rng.integers(0, 255, (8, 32, 48, 3), dtype=np.uint8), rng.integers(-999, 999, (16000, 2), np.int16)
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, frames, 8, pcm, 16000)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with pytest.raises(ValueError, match="float64"):
        write_clip(tmp_path / "c.mp4", frames.astype(float), 8, pcm, 16000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
