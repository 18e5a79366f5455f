import numpy as np
import pytest

from freedoom_sounds.files import write_clip
from mmtlib.data.decode import Settings, Task, decode

SETTINGS = Settings(sample_rate=16000, mel_bins=32, window_ms=25, hop_ms=10, frames=4, size=16, seconds=1.0)


@pytest.mark.parametrize(("level", "silent"), [(0, True), (1000, False)])
def test_digital_silence_is_no_sound(tmp_path, level, silent):
    sound = np.zeros((16000, 1), np.int16)
    sound[8000:9000] = level * (-1) ** np.arange(1000)[:, None]
    write_clip(tmp_path / "a.mp4", None, 16, sound, 16000)
    (view,) = decode(SETTINGS, Task(tmp_path / "a.mp4", None, None, "train")).views
    assert (view.log_mel is None) == silent
    (view,) = decode(SETTINGS, Task(tmp_path / "a.mp4", 0.0, 0.4, "train")).views
    assert view.log_mel is None  # its window is silent, whatever comes later


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_one_modality_alone_is_the_same_as_beside_the_other(make_clip, modality):
    task = Task(make_clip("a.mp4"), 0.3, None, "train")
    (both,), (alone,) = decode(SETTINGS, task).views, decode(SETTINGS, task, modality).views
    own, other = ("log_mel", "frames") if modality == "audio" else ("frames", "log_mel")
    np.testing.assert_array_equal(getattr(alone, own), getattr(both, own))
    assert getattr(alone, other) is None
