"""The peers: AST is transformers' own, MBT shares bottleneck tokens late."""

import pytest
import torch
from transformers import ASTConfig, ASTModel

from mmtlib.models import build_model, fusion
from mmtlib.models.baselines import AST, MBT_SIZES

MBT_TINY = {
    "dim": 16,
    "depth": 4,
    "num_heads": 2,
    "fusion_layer": 2,
    "audio_size": (48, 32),
    "video_size": (4, 16, 24),
    "patch": (2, 8, 8),
}


def mbt(**overrides):
    model = build_model("mbt_t", 5, **MBT_TINY | overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return model.eval()


def clips(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 1, 48, 32), torch.randn(n, 3, 4, 16, 24)


def close(a, b) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_ast_is_transformers_ast_with_a_linear_head():
    model = build_model("ast_t", 5, dim=24, depth=2, num_heads=3, size=(60, 32), patch_stride=10).eval()
    config = ASTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        patch_size=16,
        time_stride=10,
        frequency_stride=10,
        max_length=60,
        num_mel_bins=32,
    )
    reference = ASTModel(config).eval()
    reference.load_state_dict(model.encoder.state_dict())
    audio = torch.randn(2, 1, 60, 32)
    want = reference(audio[:, 0]).pooler_output @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(audio), want, rtol=1e-4, atol=1e-5)
    # 2 positions of mel and 5 of time, with the class and the distillation token
    assert reference(audio[:, 0]).last_hidden_state.shape == (2, 2 * 5 + 2, 24)


def test_ast_b_is_the_published_size():
    assert AST["ast_b"] == {"dim": 768, "depth": 12, "num_heads": 12, "size": (1024, 128)}
    with torch.device("meta"):
        model = build_model("ast_b", 527)
    # 88.1 M in the authors' log; the class and distillation tokens and 1212 patches have positions
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(88.1e6, rel=0.02)
    assert model.encoder.embeddings.position_embeddings.shape == (1, 1212 + 2, 768)


@pytest.mark.parametrize("word", ["position", "token"])
def test_ast_starts_with_positions_and_tokens_that_differ(word):
    """transformers leaves them at zero, which a pretrained AST never has."""
    tables = [p for name, p in build_model("ast_t", 5).named_parameters() if word in name]
    assert tables
    assert all(0.005 < table.std().item() < 0.05 for table in tables)


def test_ast_refuses_another_input_size():
    with pytest.raises(ValueError, match=r"built for sound of \(198, 128\).*got \(100, 128\)"):
        build_model("ast_t", 5, size=(198, 128))(torch.randn(1, 1, 100, 128))


def test_mbt_fuses_in_its_last_layers_only():
    model = mbt()
    assert (len(model.audio.blocks), len(model.video.blocks)) == (2, 2)
    assert (len(model.fusion.audio_blocks), len(model.fusion.video_blocks)) == (2, 2)
    assert MBT_SIZES["mbt_b"]["depth"] == 12
    assert MBT_SIZES["mbt_b"]["fusion_layer"] == 8
    assert model.fusion.bottleneck.shape[1] == 4
    assert model.audio.position.shape[1] == 1 + 3 * 2
    assert model.video.position.shape[1] == 1 + 2 * 2 * 3


@torch.no_grad()
def test_mbt_outputs_and_what_they_depend_on(monkeypatch):
    model = mbt()
    audio, video = clips()
    out = model(audio, video)
    assert close(out.logits, (out.audio_logits + out.video_logits) / 2)
    torch.testing.assert_close(out.audio_embedding.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(out.video_embedding.norm(dim=1), torch.ones(3))
    other = model(audio, torch.randn_like(video))
    assert not close(other.audio_logits, out.audio_logits)
    assert torch.equal(other.audio_embedding, out.audio_embedding)
    original = fusion.attend_with
    monkeypatch.setattr(fusion, "attend_with", lambda block, x, shared: (original(block, x, shared)[0], shared))
    assert torch.equal(model(audio, video).audio_logits, model(audio, torch.randn_like(video)).audio_logits)


@torch.no_grad()
def test_mbt_classifies_a_clip_from_what_it_has():
    model = mbt()
    audio, video = clips()
    out = model(audio, video, torch.tensor([True, False, True]), torch.tensor([True, True, False]))
    assert close(out.logits[0], model(audio, video).logits[0])
    assert close(out.logits[1], model(None, video).logits[1])
    assert close(out.logits[2], model(audio, None).logits[2])
    assert model(None, video).audio_logits is None
    with pytest.raises(ValueError, match="neither"):
        model(audio, video, torch.tensor([False] * 3), torch.tensor([True, False, True]))


def test_mbt_refuses_another_input_size():
    audio, video = clips()
    with pytest.raises(ValueError, match=r"built for an input of \(4, 16, 24\).*got \(2, 16, 24\)"):
        mbt()(audio, video[:, :, :2])


@torch.no_grad()
def test_mbt_knows_where_a_patch_is():
    model = mbt()
    audio, _ = clips()
    assert not close(model(audio, None).logits, model(audio.flip(2), None).logits)
    model.audio.position.zero_()
    moved = torch.cat((audio[:, :, 16:], audio[:, :, :16]), dim=2)  # by whole patches
    assert close(model(audio, None).logits, model(moved, None).logits)
