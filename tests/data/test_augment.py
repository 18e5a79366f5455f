import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_features import make_recipe

from mmtlib.config import ParamsError, SpecAugment
from mmtlib.data.augment import (
    Augmenter,
    Draws,
    mixup,
    modality_dropout,
    random_crop,
    random_flip,
    random_gain,
    random_noise,
    spec_augment,
)
from mmtlib.data.dataset import Batch

CLASSES = ["shot", "turn_left", "turn_right"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int = 0) -> Draws:
    return Draws(seeded(seed))


def make_batch(size: int = 6) -> Batch:
    generator = seeded(1)
    has_audio, has_video = torch.ones(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
    has_audio[1], has_video[2] = False, False
    audio = torch.randn(size, 1, 20, 8, generator=generator) * has_audio.view(-1, 1, 1, 1)
    video = torch.randn(size, 3, 2, 12, 16, generator=generator) * has_video.view(-1, 1, 1, 1, 1)
    return Batch(audio, video, torch.arange(size) % 3, has_audio, has_video)


def runs(mask: torch.Tensor) -> int:
    """Number of unbroken stretches of True."""
    return int(mask[0]) + int((mask[1:] & ~mask[:-1]).sum())


@settings(deadline=None)
@given(
    masks=st.integers(0, 3),
    width=st.integers(0, 30),
    mel_masks=st.integers(0, 3),
    mel_width=st.integers(0, 30),
    seed=st.integers(0, 2**31),
)
def test_masks_are_whole_frames_and_bands_no_wider_and_no_more_than_asked(masks, width, mel_masks, mel_width, seed):
    audio = torch.ones(4, 1, 20, 8)
    wanted = SpecAugment(time_masks=masks, time_width=width, freq_masks=mel_masks, freq_width=mel_width)
    hidden = spec_augment(audio, drawn(seed), wanted)[:, 0] == 0
    for clip in hidden:
        frames, bands = clip.all(dim=1), clip.all(dim=0)
        if not clip.all():
            assert torch.equal(clip, frames[:, None] | bands[None])
            assert frames.sum() <= masks * min(width, 20)
            assert bands.sum() <= mel_masks * min(mel_width, 8)
            assert runs(frames) <= masks
            assert runs(bands) <= mel_masks
    assert (audio == 1).all()


def test_mask_widths_cover_their_range_and_clips_differ():
    one = SpecAugment(time_masks=1, time_width=5, freq_masks=0, freq_width=0)
    hidden = spec_augment(torch.ones(3000, 1, 20, 8), drawn(), one)[:, 0, :, 0] == 0
    counts = torch.bincount(hidden.sum(dim=1), minlength=7)
    assert counts[6:].sum() == 0
    assert counts[:6].min() > 400  # 500 expected each
    assert hidden.float().mean(dim=0).min() > 0.01  # first and last frames get masked too


def test_gain_is_one_constant_per_clip_within_its_range():
    audio = torch.randn(500, 1, 20, 8, generator=seeded())
    shift = random_gain(audio, drawn(2), 0.5) - audio
    per_clip = shift.mean(dim=(1, 2, 3))
    assert (shift - per_clip.view(-1, 1, 1, 1)).abs().max() < 1e-5
    assert per_clip.abs().max() <= 0.5 + 1e-6
    assert per_clip.min() < -0.4
    assert per_clip.max() > 0.4


def test_noise_level_is_drawn_per_clip():
    added = random_noise(torch.zeros(300, 1, 40, 40), drawn(), 0.3).std(dim=(1, 2, 3))
    assert 0.28 < added.max() < 0.32
    assert added.min() < 0.02


def test_crop_shows_a_window_of_the_right_size_the_same_in_all_frames():
    height, width = 32, 48
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    ramp = torch.stack([x, y, x * 0])[None, :, None].expand(64, 3, 4, height, width)
    cropped = random_crop(ramp, drawn(), (0.25, 1.0))
    assert cropped.shape == ramp.shape
    assert torch.equal(cropped[:, :, 0], cropped[:, :, 3])
    # The ramp's slope tells the scale: it is the window's side as a share of the picture's.
    across = (cropped[:, 0, 0, 5, 30] - cropped[:, 0, 0, 5, 10]) / 20
    down = (cropped[:, 1, 0, 20, 5] - cropped[:, 1, 0, 10, 5]) / 10
    torch.testing.assert_close(across, down, atol=1e-3, rtol=0)
    area = across**2
    assert 0.25 - 1e-3 <= area.min() < 0.3
    assert 0.95 < area.max() <= 1 + 1e-3
    left = cropped[:, 0, 0, 5, 10] - across * 10.5
    assert left.min() > -1e-2
    assert (left + across * width).max() < width + 1e-2
    assert left.std() > 1


def test_crop_of_the_whole_is_the_identity_and_resizes_bilinearly():
    video = torch.randn(2, 3, 2, 12, 16, generator=seeded())
    torch.testing.assert_close(random_crop(video, drawn(), (1.0, 1.0)), video, atol=1e-5, rtol=0)
    quarter = random_crop(video, drawn(5), (0.25, 0.25))
    draws = torch.rand(2, 3, generator=seeded(5))
    left, top = draws[:, 1] * 8, draws[:, 2] * 6  # the window is 6 x 8; where it starts, pixels
    for clip in range(2):
        y, x = (torch.arange(12) + 0.5) / 2 + top[clip] - 0.5, (torch.arange(16) + 0.5) / 2 + left[clip] - 0.5
        y, x = y.clamp(0, 11), x.clamp(0, 15)
        y0, x0 = y.floor().long().clamp(max=10), x.floor().long().clamp(max=14)
        wy, wx = (y - y0)[:, None], (x - x0)[None]
        image = video[clip]
        expected = (1 - wy) * ((1 - wx) * image[..., y0[:, None], x0] + wx * image[..., y0[:, None], x0 + 1]) + wy * (
            (1 - wx) * image[..., y0[:, None] + 1, x0] + wx * image[..., y0[:, None] + 1, x0 + 1]
        )
        torch.testing.assert_close(quarter[clip], expected, atol=1e-4, rtol=0)


def test_flip_mirrors_half_of_the_clips_whose_class_allows_it():
    video = torch.randn(600, 1, 1, 2, 3, generator=seeded())
    labels = torch.arange(600) % 3
    flipped = random_flip(video, labels, drawn(), torch.tensor([True, False, True]))
    mirrored = (flipped == video.flip(-1)).flatten(1).all(1)
    kept = (flipped == video).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert kept[labels == 1].all()
    for label in (0, 2):
        assert 70 < mirrored[labels == label].sum() < 130


def test_mixup_uses_one_share_for_both_modalities_and_the_target():
    batch = make_batch()._replace(has_audio=torch.ones(6, dtype=torch.bool), labels=torch.arange(6))
    values = torch.eye(6)
    batch = batch._replace(audio=values.view(6, 1, 6, 1), video=values.view(6, 1, 6, 1, 1).expand(6, 3, 6, 1, 1))
    mixed, targets = mixup(batch, torch.eye(6), 0.5, drawn())
    torch.testing.assert_close(mixed.audio.view(6, 6), targets)
    torch.testing.assert_close(mixed.video[:, 0].reshape(6, 6), targets)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
    assert ((targets > 0) & (targets < 1)).any()
    same, plain = mixup(batch, torch.eye(6), 0.0, drawn())
    assert torch.equal(plain, torch.eye(6))
    assert torch.equal(same.audio, batch.audio)


def test_mixup_share_is_beta_distributed_and_flags_follow_both_clips():
    size, alpha = 4000, 0.4
    flags = torch.arange(size) % 2 == 0
    batch = Batch(None, None, torch.arange(size), flags, ~flags)
    mixed, targets = mixup(batch, torch.eye(size), alpha, drawn())
    share = targets.diagonal()
    own = share < 1 - 1e-6  # leaves out a clip mixed with itself
    assert float(share[own].mean()) == pytest.approx(0.5, abs=0.03)
    assert float(share[own].var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
    other = (targets - torch.diag(share)).argmax(dim=1)
    assert torch.equal(mixed.has_audio[own], (flags | flags[other])[own])
    assert mixed.audio is None


def recipe(**change) -> Augmenter:
    settings = {"spec_augment": {"time_masks": 1, "time_width": 8, "freq_masks": 1, "freq_width": 3}}
    settings |= {"gain": 0.3, "noise": 0.1, "crop_scale": 0.5}
    settings |= {"flip": True, "flip_except": ["turn_left", "turn_right"]}
    return Augmenter(CLASSES, make_recipe(**settings | change))


def test_augmenter_repeats_itself_from_the_same_generator_only():
    batch = make_batch()
    before = [batch.audio.clone(), batch.video.clone()]
    one, two, other = (recipe()(batch, drawn(seed)) for seed in (3, 3, 4))
    assert torch.equal(one.audio, two.audio)
    assert torch.equal(one.video, two.video)
    assert not torch.equal(one.audio, other.audio)
    assert not torch.equal(one.video, other.video)
    assert torch.equal(batch.audio, before[0])
    assert torch.equal(batch.video, before[1])
    assert torch.equal(one.labels, batch.labels)


def test_ranks_that_share_a_batch_draw_what_one_process_draws_for_it():
    batch = make_batch()
    whole = recipe()(batch, drawn(3))
    halves = [slice(0, 3), slice(3, 6)]
    for rank, rows in enumerate(halves):
        own = Batch(*(part[rows] for part in batch))
        made = recipe()(own, Draws(seeded(3), rank, 2))
        assert torch.equal(made.audio, whole.audio[rows])
        assert torch.equal(made.video, whole.video[rows])
    shares = [
        mixup(Batch(*(part[rows] for part in batch)), torch.eye(3), 0.4, Draws(seeded(3), rank, 2))[1]
        for rank, rows in enumerate(halves)
    ]
    assert not torch.equal(*shares)


def test_augmenter_leaves_a_missing_modality_at_zero():
    made = recipe()(make_batch(), drawn())
    assert made.audio[1].abs().max() == 0
    assert made.video[2].abs().max() == 0
    assert made.audio[0].abs().max() > 0
    assert recipe()(make_batch()._replace(audio=None), drawn()).audio is None


def test_augmenter_with_everything_off_changes_nothing():
    batch = make_batch()
    made = Augmenter(CLASSES, make_recipe())(batch, drawn())
    assert torch.equal(made.audio, batch.audio)
    assert torch.equal(made.video, batch.video)


def test_augmenter_never_mirrors_the_classes_left_out():
    batch = make_batch()._replace(labels=torch.ones(6, dtype=torch.int64))
    settings = {"crop_scale": 1.0}
    assert all(torch.equal(recipe(**settings)(batch, drawn(seed)).video, batch.video) for seed in range(5))
    free = batch._replace(labels=torch.zeros(6, dtype=torch.int64))
    assert not all(torch.equal(recipe(**settings)(free, drawn(seed)).video, batch.video) for seed in range(5))


def test_a_class_that_is_none_is_named():
    with pytest.raises(ParamsError, match="flip_except names 'turn_lft', which is no class here; use names of shot"):
        recipe(flip_except=["turn_lft"])


# Modality dropout.


def test_modality_dropout_takes_one_of_two_from_its_share_of_the_clips():
    n = 20_000
    flags = torch.ones(n, dtype=torch.bool)
    batch = Batch(None, None, torch.zeros(n, dtype=torch.int64), flags, flags)
    dropped = modality_dropout(batch, 0.3, Draws(torch.Generator().manual_seed(0)))
    lost_sound, lost_picture = ~dropped.has_audio, ~dropped.has_video
    assert not (lost_sound & lost_picture).any()
    for lost in (lost_sound, lost_picture):
        assert lost.float().mean().item() == pytest.approx(0.15, abs=0.01)


def test_modality_dropout_leaves_a_clip_its_only_modality():
    n = 1000
    has = torch.arange(n) % 2 == 0
    batch = Batch(None, None, torch.zeros(n, dtype=torch.int64), has, ~has)
    dropped = modality_dropout(batch, 0.9, Draws(torch.Generator().manual_seed(0)))
    assert torch.equal(dropped.has_audio, has)
    assert torch.equal(dropped.has_video, ~has)


def test_no_modality_dropout_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    batch = Batch(None, None, torch.zeros(2, dtype=torch.int64), *torch.ones(2, 2, dtype=torch.bool))
    assert modality_dropout(batch, 0.0, Draws(generator)) is batch
    assert torch.equal(generator.get_state(), before)
