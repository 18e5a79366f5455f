"""MMT as a whole: what each output depends on, and clips that lack a modality."""

import pytest
import torch

from mmtlib.models import build_model, fusion
from mmtlib.models.mmt import FUSIONS

TINY = {
    "dim": 24,
    "num_heads": 2,
    "fusion_layers": 2,
    "audio": {
        "depths": (1, 1, 1, 1),
        "pooling": ("time", "time", "both", "both"),
        "dim": 8,
        "size": (64, 48),
        "patch_stride": 16,
        "drop_path": 0.0,
    },
    "video": {"depths": (1, 1), "dim": 8, "size": (4, 32, 32), "drop_path": 0.0},
}


def make(fusion: str = "bottleneck", **overrides):
    """A tiny MMT with weights large enough that a dependence shows."""
    model = build_model("mmt_t", 5, **TINY, fusion=fusion, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return model.eval()


def clips(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 1, 64, 48), torch.randn(n, 3, 4, 32, 32)


def close(a, b) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_logits_are_the_average_of_the_streams(fusion):
    out = make(fusion)(*clips())
    assert out.logits.shape == (4, 5)
    assert close(out.logits, (out.audio_logits + out.video_logits) / 2)
    assert not close(out.audio_logits, out.video_logits)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_embeddings_are_unit_norm_and_of_one_modality_alone(fusion):
    model = make(fusion)
    audio, video = clips()
    out = model(audio, video)
    for embedding in (out.audio_embedding, out.video_embedding):
        assert embedding.shape == (4, 128)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))
    changed = model(audio, torch.randn_like(video))
    assert torch.equal(changed.audio_embedding, out.audio_embedding)
    assert not close(changed.video_embedding, out.video_embedding)
    changed = model(torch.randn_like(audio), video)
    assert torch.equal(changed.video_embedding, out.video_embedding)
    assert not close(changed.audio_embedding, out.audio_embedding)


@pytest.mark.parametrize(("kind", "crosses"), [("bottleneck", True), ("concat", True), ("late", False)])
def test_the_audio_stream_hears_of_the_video_through_the_fusion_only(kind, crosses):
    model = make(kind)
    audio, video = clips()
    assert close(model(audio, video).audio_logits, model(audio, torch.randn_like(video)).audio_logits) != crosses
    assert close(model(audio, video).video_logits, model(torch.randn_like(audio), video).video_logits) != crosses


def test_with_the_bottleneck_cut_the_streams_are_apart(monkeypatch):
    model = make()
    audio, video = clips()
    original = fusion.attend_with
    monkeypatch.setattr(fusion, "attend_with", lambda block, x, shared: (original(block, x, shared)[0], shared))
    assert torch.equal(model(audio, video).audio_logits, model(audio, torch.randn_like(video)).audio_logits)
    assert torch.equal(model(audio, video).video_logits, model(torch.randn_like(audio), video).video_logits)


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_missing_modality_leaves_the_other_ones_outputs(kind):
    model = make(kind)
    audio, video = clips()
    out = model(None, video)
    assert out.audio_logits is None
    assert out.audio_embedding is None
    assert torch.equal(out.logits, out.video_logits)
    out = model(audio, None)
    assert out.video_logits is None
    assert out.video_embedding is None
    assert torch.equal(out.logits, out.audio_logits)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", FUSIONS)
def test_a_flagged_clip_is_classified_as_if_the_modality_were_none(kind, mode):
    """In every mode: without gradients torch's Transformer layers take another path."""
    model = make(kind)
    audio, video = clips()
    has_audio = torch.tensor([True, False, True, False])
    has_video = torch.tensor([True, True, False, True])
    with mode():
        out = model(audio, video, has_audio, has_video)
        whole, picture, sound = model(audio, video), model(None, video), model(audio, None)
        assert close(out.logits[0], whole.logits[0])
        assert close(out.logits[1], picture.logits[1])
        assert close(out.logits[2], sound.logits[2])
        assert close(out.logits[3], picture.logits[3])
        assert not close(whole.logits[1], picture.logits[1]), "or the flags would make no difference"
        other = audio.clone()
        other[~has_audio] = 7.0 * torch.randn_like(other[~has_audio])
        assert close(model(other, video, has_audio, has_video).logits, out.logits)


def test_no_gradient_comes_from_a_clip_that_is_not_there():
    model = make()
    audio, video = (x.requires_grad_() for x in clips(2))
    model(audio, video, torch.tensor([True, False]), torch.tensor([True, True])).logits.sum().backward()
    assert audio.grad[0].abs().sum() > 0
    assert audio.grad[1].abs().sum() == 0


def test_a_clip_with_neither_is_refused():
    audio, video = clips(2)
    with pytest.raises(ValueError, match=r"clip 1 .*neither"):
        make()(audio, video, torch.tensor([True, False]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match="both are None"):
        make()(None, None)


@pytest.mark.parametrize("kind", FUSIONS)
def test_clips_of_a_batch_do_not_see_each_other(kind):
    model = make(kind)
    audio, video = clips()
    out, alone = model(audio, video), model(audio[2:3], video[2:3])
    for whole, one in zip(out, alone, strict=True):
        assert close(whole[2:3], one)


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ValueError, match=r"'early' must be one of .*bottleneck.*concat.*late"):
        make("early")


def test_late_fusion_has_no_fusion_parameters():
    def size(kind: str) -> int:
        return sum(p.numel() for name, p in make(kind).named_parameters() if name.startswith("fusion"))

    assert size("late") == 0
    assert size("bottleneck") == pytest.approx(2 * size("concat"), rel=0.05)  # a block for each modality
