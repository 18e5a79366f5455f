"""Augmentation of whole batches, drawn from an explicit generator so that a resumed run repeats it exactly.

Inputs are normalised batches (dataset.Batch). Audio and video are never shifted in time against each other.
Every function leaves its input as it is and returns a new tensor. Random numbers are drawn on the CPU
whatever the device and however many processes share a batch, so that one seed means the same augmentation everywhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmtlib.config import ParamsError, Recipe, SpecAugment
from mmtlib.data.dataset import Batch
from mmtlib.files import Number

Audio = Float[Tensor, "B 1 time mel"]
Video = Float[Tensor, "B C T H W"]
Targets = Float[Tensor, "B K"]


class Draws(NamedTuple):
    """Random numbers for the clips of a batch; of one that ranks share equally, each draws all and keeps its own."""

    generator: torch.Generator
    rank: int = 0
    ranks: int = 1

    def own(self, drawn: Tensor) -> Tensor:
        """This rank's rows of what was drawn for the whole batch."""
        return drawn.chunk(self.ranks)[self.rank]

    def uniform(self, clips: int, *shape: int) -> Float[Tensor, "clips ..."]:
        """From 0 to 1, for so many clips of this rank."""
        return self.own(torch.rand(clips * self.ranks, *shape, generator=self.generator))


def spec_augment(audio: Audio, draws: Draws, masks: SpecAugment) -> Audio:
    """SpecAugment (Park et al. 2019), each clip with masks of its own: 0 (the train mean) in frames or bands.

    A mask is uniformly 0 to its width wide (frames, bands; a longer width than the axis counts as the axis)
    and lies wholly inside the spectrogram.
    """
    batch, _, time, mel = audio.shape
    over_time = _masks(batch, time, masks.time_masks, masks.time_width, draws)[:, None, :, None]
    over_mel = _masks(batch, mel, masks.freq_masks, masks.freq_width, draws)[:, None, None, :]
    return audio.masked_fill((over_time | over_mel).to(audio.device), 0.0)


def _masks(batch: int, length: int, count: int, width: int, draws: Draws) -> Bool[Tensor, "B L"]:
    wide, early = draws.uniform(batch, 2, count, 1).unbind(1)
    widths = (wide * (min(width, length) + 1)).long()
    starts = (early * (length - widths + 1)).long()
    position = torch.arange(length)
    return ((position >= starts) & (position < starts + widths)).any(dim=1)


def random_gain(audio: Audio, draws: Draws, gain: Number) -> Audio:
    """Loudness: adds to each clip a constant from -gain to +gain (standard deviations of the log-mel)."""
    shift = gain * (2 * draws.uniform(len(audio), 1, 1, 1) - 1)
    return audio + shift.to(audio.device)


def random_noise(audio: Audio, draws: Draws, noise: Number) -> Audio:
    """Adds white noise of a level drawn per clip from 0 to `noise` (standard deviations of the log-mel)."""
    level = noise * draws.uniform(len(audio), 1, 1, 1)
    white = draws.own(torch.randn(len(audio) * draws.ranks, *audio.shape[1:], generator=draws.generator))
    return audio + (level * white).to(audio.device)


def random_crop(video: Video, draws: Draws, scale: tuple[Number, Number]) -> Video:
    """Cuts from each clip one window, the same in all its frames, and resizes it back bilinearly.

    The window keeps the picture's shape; `scale` is the range of its area as a share of the picture (0 < low
    <= high <= 1).
    """
    batch, channels, frames, height, width = video.shape
    area, *centre = draws.uniform(batch, 3).unbind(1)
    side = (scale[0] + (scale[1] - scale[0]) * area).sqrt()
    # In affine_grid's coordinates the picture spans -1..1, so a window of this side moves by up to 1 - side.
    centre = (2 * torch.stack(centre) - 1) * (1 - side)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, 0, 2], theta[:, 1, 2] = centre[0], centre[1]
    # Frames and channels of a clip share the window, so all of them go through one 2-D sampling as channels.
    grid = F.affine_grid(theta.to(video.device), (batch, 1, height, width), align_corners=False)
    flat = video.reshape(batch, channels * frames, height, width)
    sampled = F.grid_sample(flat, grid.to(video.dtype), padding_mode="border", align_corners=False)
    return sampled.view(video.shape)


def random_flip(video: Video, labels: Int[Tensor, "B ..."], draws: Draws, allowed: Bool[Tensor, " K"]) -> Video:
    """Mirrors half of the clips left to right, but only those whose class (or each) is `allowed` to be mirrored."""
    chosen, allowed, labels = (x.to(video.device) for x in (draws.uniform(len(video)) < 0.5, allowed, labels))
    chosen &= allowed[labels] if labels.ndim == 1 else (allowed | (labels == 0)).all(1)
    video = video.clone()
    video[chosen] = video[chosen].flip(-1)
    return video


def mixup(batch: Batch, targets: Targets, alpha: Number, draws: Draws) -> tuple[Batch, Targets]:
    """Mixes each clip with another of the batch, and their targets likewise.

    Each clip keeps a share drawn from Beta(alpha, alpha), the same in both modalities and in its target.
    A mix has a modality if either of its clips has it. Of a batch that ranks share, each mixes its own clips. alpha 0:
    no mixing.
    """
    if alpha == 0:
        return batch, targets
    size, device = len(batch.labels), batch.labels.device
    other = draws.uniform(size).argsort().to(device)
    # torch draws Beta numbers from its global state only, so numpy draws them, seeded by the generator.
    seed = int(torch.randint(2**63 - 1, (), generator=draws.generator))
    share = np.random.default_rng(seed).beta(alpha, alpha, size * draws.ranks).astype(np.float32)
    share = draws.own(torch.from_numpy(share)).to(device)

    def mix(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return torch.lerp(values[other], values, share.view(-1, *[1] * (values.ndim - 1)))

    mixed = batch._replace(
        audio=mix(batch.audio),
        video=mix(batch.video),
        has_audio=batch.has_audio | batch.has_audio[other],
        has_video=batch.has_video | batch.has_video[other],
    )
    return mixed, mix(targets)


def modality_dropout(batch: Batch, probability: Number, draws: Draws) -> Batch:
    """Withholds audio or video, either as often, from that share of the clips that have both (our addition)."""
    if probability == 0:
        return batch
    chosen, which = draws.uniform(len(batch.labels), 2).to(batch.labels.device).unbind(1)
    lost = batch.has_audio & batch.has_video & (chosen < probability)
    has_audio, has_video = batch.has_audio & ~(lost & (which < 0.5)), batch.has_video & ~(lost & (which >= 0.5))
    return batch._replace(has_audio=has_audio, has_video=has_video)


class Augmenter:
    """The training recipe's augmentation of one batch: gain, noise, SpecAugment; crop, flip.

    `classes` are the class names in label order. Raises ParamsError where the recipe's `flip_except` names another.
    """

    def __init__(self, classes: Sequence[str], recipe: Recipe):
        if unknown := set(recipe.flip_except) - set(classes):
            known = ", ".join(classes)
            raise ParamsError(f"flip_except names {min(unknown)!r}, which is no class here; use names of {known}.")
        self.recipe = recipe
        self.allowed = torch.tensor([name not in recipe.flip_except for name in classes], dtype=torch.bool)

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        audio, video, recipe = batch.audio, batch.video, self.recipe
        if audio is not None:
            if recipe.gain:
                audio = random_gain(audio, draws, recipe.gain)
            if recipe.noise:
                audio = random_noise(audio, draws, recipe.noise)
            audio = spec_augment(audio, draws, recipe.spec_augment)
            # A clip without audio stays at exactly 0: augmentation must not give it a content.
            audio = audio * batch.has_audio.view(-1, 1, 1, 1)
        if video is not None:
            if recipe.crop_scale < 1:
                video = random_crop(video, draws, (recipe.crop_scale, 1.0))
            if recipe.flip:
                video = random_flip(video, batch.labels, draws, self.allowed)
        return batch._replace(audio=audio, video=video)
