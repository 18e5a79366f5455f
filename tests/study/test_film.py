"""Clips that are written; what they hold is read back in tests/data/test_media.py."""

import numpy as np
import pytest

from mmtlib.data.container import MediaError
from study.film import write_clip


@pytest.mark.parametrize(
    ("frames", "pcm", "words"),
    [
        (None, None, "neither frames nor pcm"),
        (np.zeros((2, 48, 64, 3)), None, "frames are float64"),
        (np.zeros((2, 47, 64, 3), np.uint8), None, "even sides"),
        (np.zeros((0, 48, 64, 3), np.uint8), None, "T >= 1"),
        (None, np.zeros(100, np.int16), "pcm is int16 (100,)"),
    ],
)
def test_write_refuses_other_arrays_and_leaves_nothing(tmp_path, frames, pcm, words):
    with pytest.raises(MediaError) as error:
        write_clip(tmp_path / "a.mp4", frames, 16, pcm, 16000)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_writing_twice_gives_the_same_bytes_and_no_leftovers(tmp_path):
    rng = np.random.default_rng(0)
    frames, pcm = rng.integers(0, 255, (8, 32, 48, 3), dtype=np.uint8), rng.integers(-999, 999, (16000, 2), np.int16)
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, frames, 8, pcm, 16000)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
