"""Corrupted test clips: as loud as stated, the same for every model, and nothing else is touched."""

import numpy as np
import pytest
import torch
from toy_features import SETTINGS, write_features

from mmtlib.data.corruption import CONDITIONS, SHIFTS, SNRS, corrupt
from mmtlib.data.dataset import FeatureDataset
from mmtlib.data.decode import Settings
from mmtlib.data.spectrogram import LOG_OFFSET


@pytest.fixture(scope="module")
def test_split(tmp_path_factory):
    # The third test clip has no sound, the fourth no picture.
    return FeatureDataset(write_features(tmp_path_factory.mktemp("toy"), silent=(46,), blind=(47,), noise=0.3), "test")


@pytest.fixture
def batch(test_split):
    return test_split.batch(range(len(test_split)))


def power(audio, stats):
    norm = stats["log_mel"]
    return (audio.double() * norm["std"] + norm["mean"]).exp() - LOG_OFFSET


@pytest.mark.parametrize("snr", SNRS)
def test_noise_in_the_sound_has_the_stated_power_and_leaves_the_picture(batch, test_split, snr):
    changed = corrupt(batch, f"sound noise {snr} dB", 0, test_split.stats)
    before, after = (power(one.audio, test_split.stats)[batch.has_audio] for one in (batch, changed))
    ratio = before.mean((1, 2, 3)) / (after - before).mean((1, 2, 3))
    np.testing.assert_allclose(10 * ratio.log10(), snr, atol=0.1)
    assert torch.equal(changed.video, batch.video)


def test_the_noise_is_that_of_a_noisy_waveform(test_split, batch):
    """Added to the waveform before the transform, it gives the same spectrogram on average over time."""
    settings = Settings(**SETTINGS)
    generator = torch.Generator().manual_seed(5)
    log_mel = settings.log_mel()
    noise = log_mel(torch.randn(200, settings.samples, generator=generator)).exp().mean((0, 1))
    flat = batch._replace(audio=torch.full_like(batch.audio, -1.0))  # the noise is ten times as strong
    changed = corrupt(flat, "sound noise -10 dB", 0, test_split.stats)
    found = power(changed.audio, test_split.stats)[batch.has_audio].mean((0, 1, 2))
    assert np.corrcoef(found, noise)[0, 1] > 0.9, "louder in the wider bands, as white noise is"


@pytest.mark.parametrize("snr", SNRS)
def test_noise_in_the_picture_has_the_stated_power_and_leaves_the_sound(batch, test_split, snr):
    changed = corrupt(batch, f"picture noise {snr} dB", 0, test_split.stats)
    seen = batch.has_video
    ratio = batch.video[seen].var((1, 2, 3, 4)) / (changed.video - batch.video)[seen].var((1, 2, 3, 4))
    np.testing.assert_allclose(10 * ratio.log10(), snr, atol=0.5)
    assert torch.equal(changed.audio, batch.audio)


def test_a_frozen_picture_is_its_middle_frame(batch, test_split):
    changed = corrupt(batch, "picture frozen", 0, test_split.stats)
    for frame in changed.video.unbind(2):
        assert torch.equal(frame, batch.video[:, :, 2])
    assert not corrupt(batch, "picture frozen", 0, of_motion(test_split.stats)).video.any()  # as nothing moves


def of_motion(stats):
    return stats | {"settings": stats["settings"] | {"motion": True}}


def test_noise_in_frames_of_motion_has_no_mean_either(batch, test_split):
    moving = batch._replace(video=batch.video - batch.video.mean(2, keepdim=True))
    changed = corrupt(moving, "picture noise 0 dB", 0, of_motion(test_split.stats)).video
    added = (changed - moving.video)[batch.has_video].var((1, 2, 3, 4))
    np.testing.assert_allclose(10 * (moving.video[batch.has_video].var((1, 2, 3, 4)) / added).log10(), 0, atol=0.5)
    torch.testing.assert_close(changed.mean(2), torch.zeros_like(changed.mean(2)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seconds", [shift for shift in SHIFTS if shift < SETTINGS["seconds"]])
def test_late_sound_is_the_same_sound_later(batch, test_split, seconds):
    changed = corrupt(batch, f"sound late {seconds} s", 0, test_split.stats)
    hops = round(seconds * 100)
    assert torch.equal(changed.audio[:, :, hops:], batch.audio[:, :, :-hops])
    assert torch.equal(changed.audio.sort(2).values, batch.audio.sort(2).values)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_is_the_same_again_and_what_is_absent_stays_absent(batch, test_split, condition):
    first, again = (corrupt(batch, condition, 3, test_split.stats) for _ in range(2))
    assert torch.equal(first.audio, again.audio)
    assert torch.equal(first.video, again.video)
    assert first.audio.isfinite().all()
    assert not first.audio[~batch.has_audio].any()
    assert not first.video[~batch.has_video].any()
    if "noise" in condition:
        other = corrupt(batch, condition, 4, test_split.stats)
        assert not (torch.equal(first.audio, other.audio) and torch.equal(first.video, other.video))
