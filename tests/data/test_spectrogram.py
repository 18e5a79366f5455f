import math

import numpy as np
import pytest
import torch

from mmtlib.data.spectrogram import LogMel

FLOOR = math.log(1e-6)


def plain_log_mel(waveform: np.ndarray, rate: int, mel_bins: int, window: int, hop: int, n_fft: int) -> np.ndarray:
    """The definition, in loops: HTK triangles on the power spectrum of Hann-windowed slices."""
    to_mel, to_hz = (lambda f: 2595 * np.log10(1 + f / 700)), (lambda m: 700 * (10 ** (m / 2595) - 1))
    edges = to_hz(np.linspace(to_mel(20.0), to_mel(rate / 2), mel_bins + 2))
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    rows = []
    for first in range(0, len(waveform) - window + 1, hop):
        power = np.abs(np.fft.rfft(waveform[first : first + window] * hann, n_fft)) ** 2
        row = []
        for low, top, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
            weight = np.clip(np.minimum((bins - low) / (top - low), (high - bins) / (high - top)), 0, None)
            row.append(np.log(weight @ power + 1e-6))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("mel_bins", "n_fft"), [(32, 512), (128, 1024)])
def test_log_mel_equals_its_definition(mel_bins, n_fft):
    waveform = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 0.1
    ours = LogMel(mel_bins=mel_bins)(waveform)
    theirs = plain_log_mel(waveform.double().numpy(), 16000, mel_bins, 400, 160, n_fft)
    assert ours.shape == theirs.shape == (1 + (4000 - 400) // 160, mel_bins)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-3)


def test_log_mel_of_silence_is_the_floor_and_no_band_is_dead():
    log_mel = LogMel(16000, 128, 25, 10)
    assert log_mel(torch.zeros(32000)).unique().tolist() == pytest.approx([FLOOR])
    noise = log_mel(torch.randn(32000, generator=torch.Generator().manual_seed(0)))
    assert noise.shape == (198, 128)
    assert log_mel.num_frames(32000) == 198
    assert noise.std(dim=0).min() > 0.1


def test_log_mel_follows_pitch_and_batches():
    time = torch.arange(16000) / 16000
    waveforms = torch.stack([torch.sin(2 * math.pi * hz * time) for hz in (300.0, 1000.0, 4000.0)])
    peaks = LogMel(mel_bins=64)(waveforms).mean(dim=1).argmax(dim=1)
    assert peaks.tolist() == sorted(set(peaks.tolist()))
