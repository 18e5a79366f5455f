"""The peers: AST is transformers' own, MBT shares bottleneck tokens late, and its encoders can be trained alone."""

import pytest
import torch
from transformers import ASTConfig, ASTModel

from mmtlib.models import build_model, fusion
from mmtlib.models.baselines import AST, MBT_SIZES, VIT, resize_positions
from mmtlib.models.hub import load_encoder

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


def ast(**overrides):
    """A tiny AST with positions large enough that they show: 5 places of time by 2 of mel."""
    settings = {"dim": 24, "depth": 2, "num_heads": 3, "size": (60, 32), "patch_stride": 10} | overrides
    model = build_model("ast_t", 5, **settings)
    torch.nn.init.normal_(model.encoder.embeddings.position_embeddings)
    return model.eval()


@torch.no_grad()
def test_ast_at_its_size_is_exactly_the_plain_call():
    model, audio = ast(), torch.randn(2, 1, 60, 32)
    assert torch.equal(model(audio), model.head(model.encoder(audio[:, 0]).pooler_output))


def interpolation(n: int, m: int) -> torch.Tensor:
    """(m, n): the weights of n values in each of m, by the distance between their centres, ends held."""
    weights = torch.zeros(m, n)
    for row in range(m):
        place = min(max((row + 0.5) * n / m - 0.5, 0.0), n - 1.0)
        low = min(int(place), n - 1)
        weights[row, low] += 1 - (place - low)
        weights[row, min(low + 1, n - 1)] += place - low
    return weights


@torch.no_grad()
@pytest.mark.parametrize("size", [(100, 48), (40, 70), (16, 16)])
def test_ast_at_another_size_interpolates_its_positions_over_mel_and_time(size):
    model = ast()
    other = ast(size=size)
    time, mel = ((n - 16) // 10 + 1 for n in size)
    state = model.state_dict()
    table = state["encoder.embeddings.position_embeddings"]
    places = table[0, 2:].view(2, 5, 24)  # mel first, as transformers lays the patches out
    places = torch.einsum("mi, tj, ijd -> mtd", interpolation(2, mel), interpolation(5, time), places)
    table = torch.cat((table[:, :2], places.flatten(0, 1)[None]), dim=1)
    other.load_state_dict(state | {"encoder.embeddings.position_embeddings": table})
    audio = torch.randn(2, 1, *size)
    torch.testing.assert_close(model(audio), other(audio), rtol=1e-4, atol=1e-5)
    assert torch.equal(model.encoder.embeddings.position_embeddings, state["encoder.embeddings.position_embeddings"])


@torch.no_grad()
def test_positions_of_a_video_are_interpolated_over_three_axes_and_the_class_token_keeps_its_own():
    table = torch.randn(1, 1 + 2 * 3 * 4, 8)
    got = resize_positions(table, (2, 3, 4), (5, 2, 4))
    weights = [interpolation(n, m) for n, m in ((2, 5), (3, 2), (4, 4))]
    want = torch.einsum("ti, hj, wk, ijkd -> thwd", *weights, table[0, 1:].view(2, 3, 4, 8))
    assert torch.equal(got[:, 0], table[:, 0])
    torch.testing.assert_close(got[0, 1:].view(5, 2, 4, 8), want)
    assert resize_positions(table, (2, 3, 4), (2, 3, 4)) is table


def test_interpolated_positions_are_trained():
    """Clips of another size than the model was built for teach the table it has."""
    model = ast().train()
    model(torch.randn(1, 1, 90, 48)).sum().backward()
    assert (model.encoder.embeddings.position_embeddings.grad.abs().sum(-1) > 0).all()


def test_mbt_fuses_in_its_last_layers_only():
    model = mbt()
    assert (len(model.audio_encoder.blocks), len(model.video_encoder.blocks)) == (2, 2)
    assert (len(model.fusion.audio_blocks), len(model.fusion.video_blocks)) == (2, 2)
    assert MBT_SIZES["mbt_b"]["depth"] == 12
    assert MBT_SIZES["mbt_b"]["fusion_layer"] == 8
    assert model.fusion.bottleneck.shape[1] == 4
    assert model.audio_encoder.position.shape[1] == 1 + 3 * 2
    assert model.video_encoder.position.shape[1] == 1 + 2 * 2 * 3


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


@torch.no_grad()
@pytest.mark.parametrize(("audio_size", "video_size"), [((100, 40), (6, 32, 16)), ((16, 16), (2, 8, 8))])
def test_mbt_takes_other_sizes_and_interpolates_its_positions(audio_size, video_size):
    model = mbt()
    other = mbt(audio_size=audio_size, video_size=video_size)
    state = model.state_dict()
    for part, grid in (("audio", (3, 2)), ("video", (2, 2, 3))):
        name = f"{part}_encoder.position"
        state[name] = resize_positions(state[name], grid, getattr(other, f"{part}_encoder").positions_grid)
    other.load_state_dict(state)
    audio, video = torch.randn(2, 1, *audio_size), torch.randn(2, 3, *video_size)
    for got, want in zip(model(audio, video), other(audio, video), strict=True):
        assert torch.equal(got, want)


@torch.no_grad()
def test_mbt_knows_where_a_patch_is():
    model = mbt()
    audio, _ = clips()
    assert not close(model(audio, None).logits, model(audio.flip(2), None).logits)
    model.audio_encoder.position.zero_()
    moved = torch.cat((audio[:, :, 16:], audio[:, :, :16]), dim=2)  # by whole patches
    assert close(model(audio, None).logits, model(moved, None).logits)


VIT_TINY = {part: {"dim": 16, "depth": 2, "num_heads": 2} for part in ("audio", "video")}
VIT_TINY["audio"] |= {"size": (48, 32)}
VIT_TINY["video"] |= {"size": (4, 16, 24), "patch": (2, 8, 8)}


@pytest.mark.parametrize("size", ["t", "b"])
@pytest.mark.parametrize("part", ["audio", "video"])
def test_the_encoders_of_mbt_alone_are_of_its_sizes(part, size):
    mbt_size, vit = MBT_SIZES[f"mbt_{size}"], VIT[f"vit_{part}_{size}"]
    patch = mbt_size["patch"] if part == "video" else (16, 16)
    assert vit == {
        "dim": mbt_size["dim"],
        "depth": mbt_size["fusion_layer"],
        "num_heads": mbt_size["num_heads"],
        "size": mbt_size[f"{part}_size"],
        "patch": patch,
    }
    with torch.device("meta"):
        alone, both = build_model(f"vit_{part}_{size}", 5), build_model(f"mbt_{size}", 5)
    states = alone.encoder.state_dict(), getattr(both, f"{part}_encoder").state_dict()
    assert len({tuple((name, value.shape) for name, value in state.items()) for state in states}) == 1


@torch.no_grad()
@pytest.mark.parametrize("part", ["audio", "video"])
def test_a_vit_reads_its_class_token_normed(part):
    model, given = build_model(f"vit_{part}_t", 5, **VIT_TINY[part]).eval(), dict(zip(VIT_TINY, clips(), strict=True))
    tokens, _ = model.encoder(given[part])
    want = torch.nn.functional.layer_norm(tokens[:, 0], (16,), eps=1e-6) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(given[part]), want)
    assert tokens.shape[1] == 1 + {"audio": 3 * 2, "video": 2 * 2 * 3}[part]
    whole = build_model(f"vit_{part}_t", 5, **VIT_TINY[part] | {"depth": 4})
    assert len(whole.encoder.blocks) == 4


@torch.no_grad()
@pytest.mark.parametrize("part", ["audio", "video"])
def test_mbt_starts_from_a_trained_vit(part):
    alone, model, given = (
        build_model(f"vit_{part}_t", 4, **VIT_TINY[part]),
        mbt(),
        dict(zip(VIT_TINY, clips(), strict=True)),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_encoder(getattr(model, f"{part}_encoder"), alone.state_dict())
    for name, value in model.state_dict().items():
        own = name.startswith(f"{part}_encoder.")
        want = alone.state_dict()[name.replace(f"{part}_encoder", "encoder")] if own else before[name]
        assert torch.equal(value, want), name
    assert torch.equal(getattr(model, f"{part}_encoder")(given[part])[0], alone.eval().encoder(given[part])[0])


def test_mbt_takes_no_encoder_of_another_depth_or_input_size():
    model = mbt()
    for other in ({"depth": 4}, {"size": (64, 48)}):
        alone = build_model("vit_audio_t", 4, **VIT_TINY["audio"] | other)
        with pytest.raises(ValueError, match=r"that the run starts from does not fit"):
            load_encoder(model.audio_encoder, alone.state_dict())
