"""Bottleneck fusion against MBT's rule written out by hand, and what may cross between the modalities."""

import pytest
import torch
import torch.nn.functional as F

from mmtlib.models import fusion
from mmtlib.models.fusion import BottleneckFusion, ConcatFusion, StreamHeads, audio_shares, transformer_block

BOTH = torch.full((2,), 0.5)


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 5, 8), torch.randn(2, 7, 8)


def slow_block(block, x):
    """A pre-norm ViT block, head by head."""
    attention, heads = block.self_attn, block.self_attn.num_heads
    normed = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (normed @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
    outputs = []
    for one_q, one_k, one_v in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        outputs.append((one_q @ one_k.transpose(1, 2) / one_q.shape[-1] ** 0.5).softmax(-1) @ one_v)
    x = x + torch.cat(outputs, -1) @ attention.out_proj.weight.T + attention.out_proj.bias
    normed = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6)
    hidden = F.gelu(normed @ block.linear1.weight.T + block.linear1.bias)
    return x + hidden @ block.linear2.weight.T + block.linear2.bias


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3)
    return module


@pytest.mark.parametrize("num_layers", [1, 3])
def test_bottleneck_fusion_follows_mbts_rule(num_layers):
    layers = randomised(BottleneckFusion(8, 2, num_layers=num_layers, num_bottleneck=3))
    audio, video = tokens()
    want_audio, want_video, shared = audio, video, layers.bottleneck.expand(2, -1, -1)
    for audio_block, video_block in zip(layers.audio_blocks, layers.video_blocks, strict=True):
        a = slow_block(audio_block, torch.cat((want_audio, shared), 1))
        v = slow_block(video_block, torch.cat((want_video, shared), 1))
        want_audio, want_video, shared = a[:, :5], v[:, :7], (a[:, 5:] + v[:, 7:]) / 2
    got_audio, got_video = layers(audio, video, BOTH)
    torch.testing.assert_close(got_audio, want_audio, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got_video, want_video, rtol=1e-4, atol=1e-4)


def test_the_default_is_four_bottleneck_tokens_shared_by_both():
    assert BottleneckFusion(8, 2, num_layers=1).bottleneck.shape == (1, 4, 8)


def test_information_crosses_through_the_bottleneck_and_nowhere_else(monkeypatch):
    layers = randomised(BottleneckFusion(8, 2, num_layers=2))
    audio, video = tokens()
    other = torch.randn_like(video)
    assert not torch.allclose(layers(audio, video, BOTH)[0], layers(audio, other, BOTH)[0], atol=1e-3)
    original = fusion.attend_with
    # The exchange cut: each layer hands the bottleneck on as it came.
    monkeypatch.setattr(fusion, "attend_with", lambda block, x, shared: (original(block, x, shared)[0], shared))
    assert torch.equal(layers(audio, video, BOTH)[0], layers(audio, other, BOTH)[0])
    assert torch.equal(layers(audio, video, BOTH)[1], layers(torch.randn_like(audio), video, BOTH)[1])


def test_without_bottleneck_tokens_nothing_crosses():
    layers = randomised(BottleneckFusion(8, 2, num_layers=3, num_bottleneck=0))
    audio, video = tokens()
    assert torch.equal(layers(audio, video, BOTH)[0], layers(audio, torch.randn_like(video), BOTH)[0])


def test_one_layer_reads_only_the_learned_bottleneck():
    """What the other modality wrote is read a layer later."""
    layers = randomised(BottleneckFusion(8, 2, num_layers=1))
    audio, video = tokens()
    assert torch.equal(layers(audio, video, BOTH)[0], layers(audio, torch.randn_like(video), BOTH)[0])


def test_concat_fusion_is_full_attention_over_both():
    layers = randomised(ConcatFusion(8, 2, num_layers=2))
    audio, video = tokens()
    joint = torch.cat((audio + layers.modality[0], video + layers.modality[1]), 1)
    for block in layers.blocks:
        joint = slow_block(block, joint)
    got = layers(audio, video, BOTH)
    torch.testing.assert_close(got[0], joint[:, :5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], joint[:, 5:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", [BottleneckFusion, ConcatFusion])
def test_a_clip_without_a_modality_is_as_if_it_were_none(kind, grad):
    """Also without gradients, where torch takes a fused path."""
    layers = randomised(kind(8, 2, num_layers=2)).eval()
    audio, video = tokens()
    with torch.set_grad_enabled(grad):
        got_audio, got_video = layers(audio, video, torch.tensor([0.0, 1.0]))
        only_video = layers(None, video, torch.zeros(2))
        only_audio = layers(audio, None, torch.ones(2))
    assert only_video[0] is None
    assert only_audio[1] is None
    torch.testing.assert_close(got_video[0], only_video[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_audio[1], only_audio[0][1], rtol=1e-4, atol=1e-5)


def test_shares_are_halves_or_the_whole():
    x = torch.randn(3, 1)
    sound, picture = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    assert audio_shares(x, x, sound, picture).tolist() == [0.5, 1.0, 0.0]
    assert audio_shares(x, x, None, None).tolist() == [0.5] * 3
    assert audio_shares(x, x, None, picture).tolist() == [0.5, 1.0, 0.5]
    assert audio_shares(x, None, None, None).tolist() == [1.0] * 3
    assert audio_shares(None, x, None, None).tolist() == [0.0] * 3
    assert audio_shares(None, x, torch.tensor([True] * 3), torch.tensor([True] * 3)).tolist() == [0.0] * 3


def test_a_clip_with_neither_is_refused_by_its_place_in_the_batch():
    x = torch.randn(3, 1)
    with pytest.raises(ValueError, match=r"clip 1 .*neither audio nor video"):
        audio_shares(x, x, torch.tensor([True, False, False]), torch.tensor([True, False, True]))
    with pytest.raises(ValueError, match="clip 2 "):  # its sound is withheld, it has no picture
        audio_shares(None, x, None, torch.tensor([True, True, False]))
    with pytest.raises(ValueError, match="both are None"):
        audio_shares(None, None, None, None)


def test_heads_average_the_streams_that_are_there():
    heads = randomised(StreamHeads(4, 3, 0.0))
    audio, video = torch.randn(3, 4), torch.randn(3, 4)
    logits, a, v = heads(audio, video, torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(logits, torch.stack(((a[0] + v[0]) / 2, a[1], v[2])))
    normed = F.layer_norm(audio, (4,), heads.audio_norm.weight, heads.audio_norm.bias, 1e-6)
    torch.testing.assert_close(a, normed @ heads.audio_head.weight.T + heads.audio_head.bias)
    logits, a, v = heads(None, video, torch.zeros(3))
    assert a is None
    torch.testing.assert_close(logits, v)


def test_a_block_is_a_pre_norm_vit_block():
    block = randomised(transformer_block(8, 2))
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x), slow_block(block, x), rtol=1e-4, atol=1e-4)
