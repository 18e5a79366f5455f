"""The cost counter against arithmetic by hand, and that our models and their peers cost about the same."""

import pytest
import torch
from torch import nn

from mmtlib import config as params
from mmtlib.models import build_model
from mmtlib.models.fusion import transformer_block
from mmtlib.models.multiscale import MultiscaleAttention
from study.timing import count_macs, count_parameters


def macs(model: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """All multiply-accumulates, and those of attention."""
    found = count_macs(model, *inputs)
    return found, found - count_macs(model, *inputs, attention=False)


def test_a_linear_layer():
    assert count_macs(nn.Linear(7, 5), torch.randn(3, 7)) == 3 * 7 * 5


@pytest.mark.parametrize(("groups", "inner"), [(1, 6), (6, 1)])
def test_a_convolution(groups, inner):
    # 12 x 9 at stride 2 without padding gives 5 x 4 places for a window of 3 x 3
    conv = nn.Conv2d(6, 12, 3, stride=2, groups=groups)
    assert count_macs(conv, torch.randn(2, 6, 12, 9)) == 2 * 5 * 4 * 12 * inner * 3 * 3


def test_a_transformer_block_attention_products_included():
    tokens, dim, batch = 10, 16, 2
    projections = tokens * dim * (3 * dim + dim)  # q, k, v and the output
    products = 2 * tokens * tokens * dim  # q k' and the weights times v, over all heads
    mlp = 2 * tokens * dim * 4 * dim
    x = torch.randn(batch, tokens, dim)
    assert macs(transformer_block(dim, 4), x) == (batch * (projections + products + mlp), batch * products)


def test_a_layer_of_ast_whose_attention_is_fused():
    from transformers import ASTConfig
    from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import ASTLayer

    tokens, dim, batch = 10, 16, 2
    config = ASTConfig(hidden_size=dim, num_attention_heads=4, intermediate_size=4 * dim, attn_implementation="sdpa")
    products = 2 * tokens * tokens * dim
    found = macs(ASTLayer(config), torch.randn(batch, tokens, dim))
    assert found == (batch * (tokens * dim * dim * (4 + 8) + products), batch * products)


def test_attention_of_torchvision_whose_relative_positions_are_products_with_a_table():
    from torchvision.models.video.mvit import MultiscaleAttention as Theirs

    attention = Theirs([2, 4, 6], 8, 16, 2, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2], True, False, True)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, (2, 4, 6))[0]

    tokens, queries, keys, dim = 1 + 48, 1 + 2 * 2 * 3, 1 + 2 * 2 * 3, 16
    products = 2 * queries * keys * dim
    linear = tokens * 8 * 3 * dim + queries * dim * dim
    positions = (queries - 1) * dim * (2 + 2 + 3)
    pooling = 3 * (queries - 1) * dim * 27
    batched = 3 * (products + positions)
    assert macs(Wrapped(), torch.randn(3, tokens, 8)) == (batched + 3 * (linear + pooling), batched)


def test_a_multiscale_attention_layer():
    grid, dim_in, dim, heads = (8, 4), 6, 8, 2
    attention = MultiscaleAttention(
        dim_in, dim, heads, grid=grid, kernel=(3, 3), stride_q=(2, 1), stride_kv=(2, 2), num_prefix=0
    )

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, grid)[0]

    tokens, queries, keys, places = 32, 4 * 4, 4 * 2, 4 + 2  # 8 keys: a multiple of 4, so none is spare
    want = tokens * dim_in * 3 * dim  # q, k, v
    want += (queries + 2 * keys) * dim * 9  # pooling, one kernel of 3 x 3 for each channel
    # q R of both axes: all heads' channels, for each place.
    products = queries * dim * places
    # A head's channels twice, in q k' and in weights times v, and the positions that ride along in q and k.
    products += heads * queries * keys * (2 * dim // heads + places)
    want += products
    want += queries * dim * dim  # projection
    assert macs(Wrapped(), torch.randn(1, tokens, dim_in)) == (want, products)


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_and_torch_as_they_were(training):
    model = nn.Sequential(nn.BatchNorm1d(4), transformer_block(4, 2)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    count_macs(model, torch.randn(3, 4, 4))
    assert model.training == training
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        count_macs(model, torch.randn(3, 4, 5))
    assert model.training == training
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_training_and_evaluation_mode_count_the_same():
    model = build_model("mat_t", 5)
    x = torch.randn(1, 1, 198, 128)
    assert count_macs(model.train(), x) == count_macs(model.eval(), x)


def test_macs_grow_with_the_batch():
    model = build_model("ast_t", 5)
    one, two = (count_macs(model, torch.randn(n, 1, 198, 128)) for n in (1, 2))
    assert two == 2 * one


def test_only_trainable_parameters_count():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    model[0].bias.requires_grad_(False)
    assert count_parameters(model) == 3 * 4 + 4 * 2


@pytest.mark.parametrize(("name", "gmacs"), [("mvitv2_s", 64.0), ("mvitv2_b", 225.0)])
def test_published_video_models_cost_what_is_published(name, gmacs):
    """MViTv2's table gives 64 and 225 GFLOPs (multiply-adds) with 16 and 32 frames of 224 x 224.

    Ours are somewhat more: the relative positions ride along in the products.
    """
    frames = {"mvitv2_s": 16, "mvitv2_b": 32}[name]
    with torch.device("meta"):
        model, clip = build_model(name, 400), torch.empty(1, 3, frames, 224, 224)
    assert 1.0 < count_macs(model, clip) / 1e9 / gmacs < 1.15


def cost(run: params.Run) -> int:
    """MACs for one clip of the embedded data set."""
    given = params.load("params.yaml").features
    time = 1 + int((given.seconds * 1000 - given.window_ms) // given.hop_ms)
    audio = torch.randn(1, 1, time, given.mel_bins)
    video = torch.randn(1, 3, given.frames, given.size, given.size)
    both = run.model.startswith(("mmt", "mbt"))
    sizes = {"audio_size": tuple(audio.shape[2:])} | ({"video_size": tuple(video.shape[2:])} if both else {})
    return count_macs(build_model(run.model, 18, **sizes, **run.overrides), *((audio, video) if both else (audio,)))


@pytest.mark.parametrize(("ours", "peer"), [("pretrain_mat", "ast_t"), ("train_mmt", "mbt_t")])
def test_a_peer_costs_about_what_our_model_costs_and_no_less(ours, peer):
    """A comparison at equal cost: within 15 %, or a starved baseline would flatter us."""
    runs = params.load("params.yaml").runs
    assert cost(runs[peer]) == pytest.approx(cost(runs[ours]), rel=0.15)
    assert cost(runs[peer]) >= cost(runs[ours])
