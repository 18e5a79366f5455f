"""Test clips made harder on purpose: noise in one modality, a picture that stands still, sound out of step.

Batches come from the test split as it is stored. What is drawn depends on the condition and the place of a clip in the
split alone, so that every model meets the same corrupted clips.
"""

from collections.abc import Callable
from typing import Any

import torch

from mmtlib.data.dataset import Batch, epoch_generator
from mmtlib.data.decode import Settings
from mmtlib.data.spectrogram import LOG_OFFSET

SNRS = (20, 10, 0, -10)
"""dB: power of a clip's signal over that of the noise."""

SHIFTS = (0.25, 0.5, 1.0)
"""s by which the sound comes late; what is pushed out at the end returns at the beginning."""


def sound_noise(batch: Batch, snr: float | int, draws: torch.Generator, stats: dict[str, Any]) -> Batch:
    """White noise in the sound: its mel power is added to that of the clip (their cross term is left out)."""
    settings, norm = Settings(**stats["settings"]), stats["log_mel"]
    power = (batch.audio * norm["std"] + norm["mean"]).exp() - LOG_OFFSET
    noise = settings.log_mel()(torch.randn(len(power), settings.samples, generator=draws)).exp()[:, None].to(power)
    share = power.clamp(min=0).mean((1, 2, 3), keepdim=True) / noise.mean((1, 2, 3), keepdim=True)  # means of a clip
    audio = ((power + share * 10 ** (-snr / 10) * noise).clamp(min=0) + LOG_OFFSET).log()
    return batch._replace(audio=(audio - norm["mean"]) / norm["std"])


def picture_noise(batch: Batch, snr: float | int, draws: torch.Generator, stats: dict[str, Any]) -> Batch:
    """White noise in the picture; a clip's signal is the variance of its (normalised) values."""
    video = batch.video
    noise = torch.randn(video.shape, generator=draws).to(video)
    if stats["settings"].get("motion"):  # of the noise, too, what differs from its mean, and as strong
        noise = (noise - noise.mean(2, keepdim=True)) * (noise.shape[2] / (noise.shape[2] - 1)) ** 0.5
    return batch._replace(video=video + video.std((1, 2, 3, 4), keepdim=True) * 10 ** (-snr / 20) * noise)


def frozen(batch: Batch, level: float, draws: torch.Generator, stats: dict[str, Any]) -> Batch:
    """The frame in the middle, throughout; of the motion alone nothing is left."""
    middle, moves = batch.video.shape[2] // 2, stats["settings"].get("motion", False)
    return batch._replace(video=batch.video[:, :, middle : middle + 1].expand_as(batch.video) * (not moves))


def late_sound(batch: Batch, seconds: float | int, draws: torch.Generator, stats: dict[str, Any]) -> Batch:
    """The spectrogram moved along time, round its end."""
    hops = round(1000 * seconds / stats["settings"]["hop_ms"])
    return batch._replace(audio=batch.audio.roll(hops, dims=2))


CONDITIONS: dict[str, tuple[Callable[..., Batch], float | int]] = {
    **{f"sound noise {snr} dB": (sound_noise, snr) for snr in SNRS},
    **{f"picture noise {snr} dB": (picture_noise, snr) for snr in SNRS},
    "picture frozen": (frozen, 0.0),
    **{f"sound late {seconds} s": (late_sound, seconds) for seconds in SHIFTS},
}
"""Name -> how, and how much."""


def corrupt(batch: Batch, condition: str, number: int, stats: dict[str, Any]) -> Batch:
    """The `number`-th batch of a split in one of CONDITIONS; `stats` as in features.json."""
    change, level = CONDITIONS[condition]
    changed = change(batch, level, epoch_generator(0, number, condition), stats)
    return changed._replace(
        audio=changed.audio * changed.has_audio.view(-1, 1, 1, 1),  # what is absent stays absent
        video=changed.video * changed.has_video.view(-1, 1, 1, 1, 1),
    )
