"""The multiscale core against a slow attention written from the paper, and against itself on other grids."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmtlib.models import ops
from mmtlib.models.multiscale import MultiscaleAttention, MultiscaleBlock, MultiscaleEncoder, Stage


def randomise(module: nn.Module, std: float = 0.4) -> nn.Module:
    """Draw every parameter, biases, norms and position tables too: a fresh model hides what they do."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std)
    return module


# The reference: one head and one pair of tokens at a time, channels first, with an explicit bias matrix.


def table_row(q: int, k: int, q_len: int, k_len: int) -> int:
    """Row of the table for query q and key k, in exact arithmetic (MViTv2's code, which truncates)."""
    q_step, k_step = max(Fraction(k_len, q_len), 1), max(Fraction(q_len, k_len), 1)
    return int(q * q_step - k * k_step + (k_len - 1) * k_step)


def interpolated(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Linear interpolation between row centres, written as a matrix so that gradients pass."""
    at = (np.arange(rows) + 0.5) * len(table) / rows - 0.5
    weights = np.stack([np.interp(at, np.arange(len(table)), unit) for unit in np.eye(len(table))], axis=1)
    return torch.tensor(weights, dtype=table.dtype) @ table


def reference_pool(x, pool, grid, stride, prefix):
    """One head, (B, N, d): the class token passes by, the grid is convolved channel by channel."""
    conv = {2: F.conv2d, 3: F.conv3d}[len(grid)]
    batch, _, width = x.shape
    picture = x[:, prefix:].transpose(1, 2).reshape(batch, width, *grid)
    planes = [
        conv(
            picture[:, c : c + 1],
            pool.weight[c : c + 1],
            stride=stride,
            padding=[k // 2 for k in pool.weight.shape[2:]],
        )
        for c in range(width)
    ]
    picture = torch.cat(planes, dim=1)
    tokens = torch.cat((x[:, :prefix], picture.flatten(2).transpose(1, 2)), dim=1)
    mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, unbiased=False)
    return (tokens - mean) / (variance + 1e-6).sqrt() * pool.norm.weight + pool.norm.bias, tuple(picture.shape[2:])


def reference_attention(attention, x, grid, heads, stride_q, stride_kv, prefix):
    dim = attention.project.weight.shape[0]
    width = dim // heads
    q_all, k_all, v_all = (x @ attention.qkv.weight.T + attention.qkv.bias).split(dim, dim=-1)
    outputs = []
    for head in range(heads):
        q, k, v = (t[..., head * width : (head + 1) * width] for t in (q_all, k_all, v_all))
        q_grid = k_grid = grid
        if attention.pool_q is not None:
            q, q_grid = reference_pool(q, attention.pool_q, grid, stride_q, prefix)
            k, k_grid = reference_pool(k, attention.pool_k, grid, stride_kv, prefix)
            v, _ = reference_pool(v, attention.pool_v, grid, stride_kv, prefix)
        tables = [
            interpolated(table, 2 * max(n, m) - 1) if len(table) != 2 * max(n, m) - 1 else table
            for table, n, m in zip(attention.rel_pos, q_grid, k_grid, strict=True)
        ]
        bias = []
        for i, place_q in enumerate(product(*map(range, q_grid))):
            rows = []
            for place_k in product(*map(range, k_grid)):
                vectors = [
                    table[table_row(a, b, n, m)]
                    for table, a, b, n, m in zip(tables, place_q, place_k, q_grid, k_grid, strict=True)
                ]
                rows.append(q[:, prefix + i] @ sum(vectors))
            bias.append(torch.stack(rows, dim=-1))
        bias = F.pad(torch.stack(bias, dim=1), (prefix, 0, prefix, 0))
        weights = (q @ k.transpose(1, 2) / width**0.5 + bias).softmax(dim=-1)
        residual = q.clone()
        residual[:, :prefix] = 0.0  # the class token gets none
        outputs.append(weights @ v + residual)
    return torch.cat(outputs, dim=-1) @ attention.project.weight.T + attention.project.bias, q_grid


CASES = {
    "2d": {"grid": (5, 7), "kernel": (3, 3), "stride_q": (1, 1), "stride_kv": (2, 2), "num_prefix": 0},
    "2d-time-only": {"grid": (7, 4), "kernel": (3, 1), "stride_q": (2, 1), "stride_kv": (4, 1), "num_prefix": 1},
    "2d-unpooled": {"grid": (3, 5), "kernel": (1, 1), "stride_q": (1, 1), "stride_kv": (1, 1), "num_prefix": 1},
    "2d-kv-per-axis": {"grid": (9, 4), "kernel": (3, 3), "stride_q": (1, 2), "stride_kv": (4, 1), "num_prefix": 0},
    "2d-odd-steps": {"grid": (16, 3), "kernel": (3, 3), "stride_q": (1, 1), "stride_kv": (3, 1), "num_prefix": 0},
    "3d": {"grid": (2, 5, 3), "kernel": (3, 3, 3), "stride_q": (1, 2, 2), "stride_kv": (1, 2, 1), "num_prefix": 1},
    "3d-kv-per-axis": {
        "grid": (3, 4, 6),
        "kernel": (3, 3, 3),
        "stride_q": (1, 1, 1),
        "stride_kv": (2, 4, 2),
        "num_prefix": 0,
    },
}


@pytest.fixture(params=["sliced", "one slice", "fused", "recomputed"])
def way(request, monkeypatch) -> str:
    """The ways to compute one result: in slices or not, fused as on a GPU, with the cheap parts recomputed."""
    if request.param in ("sliced", "recomputed"):
        monkeypatch.setattr(ops, "SLICE", 64)  # bytes: one query at a time
    if request.param == "fused":
        monkeypatch.setattr(ops, "in_slices", lambda x: False)
    return request.param


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_attention_equals_the_slow_reference_in_values_and_gradients(case, heads, way):
    settings = CASES[case]
    grid, prefix = settings["grid"], settings["num_prefix"]
    attention = randomise(MultiscaleAttention(6, 4 * heads, heads, **settings, recompute=way == "recomputed"))
    x = torch.randn(2, prefix + int(np.prod(grid)), 6, requires_grad=True)
    got, got_grid = attention(x, grid)
    want, want_grid = reference_attention(
        attention, x, grid, heads, settings["stride_q"], settings["stride_kv"], prefix
    )
    assert got_grid == want_grid
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    weigh = torch.randn_like(want)
    tensors = [x, *attention.parameters()]
    got_grads = torch.autograd.grad((got * weigh).sum(), tensors)
    want_grads = torch.autograd.grad((want * weigh).sum(), tensors, allow_unused=True)
    for (name, _), a, b in zip([("x", x), *attention.named_parameters()], got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("tokens", "device", "filled"), [(4, "cpu", 4), (5, "cpu", 8), (7, "cpu", 8), (5, "meta", 5)])
def test_keys_are_filled_up_to_a_multiple_of_four_on_a_cpu_alone(tokens, device, filled):
    settings = {"grid": (tokens,), "kernel": (1,), "stride_q": (1,), "stride_kv": (1,), "num_prefix": 0}
    attention = MultiscaleAttention(6, 6, 2, **settings).to(device)
    prefix, q = torch.empty(1, 0, 2, 3, device=device), torch.empty(1, tokens, 2, 3, device=device)
    *_, keys, values = attention.prepare(prefix, prefix, prefix, q, q, q, (tokens,), (tokens,))
    assert keys.shape[2] == values.shape[2] == filled


def test_a_block_is_the_same_in_every_way(way):
    """LayerNorm, attention, LayerNorm, MLP and both shortcuts, written out."""
    settings = {"grid": (5, 4), "stride_q": (1, 1), "stride_kv": (2, 2), "num_prefix": 1, "drop_path": 0.0}
    block = randomise(MultiscaleBlock(6, Stage(1, 6, 2, (1, 1), (3, 3)), **settings, recompute=way == "recomputed"))
    x = torch.randn(2, 21, 6, requires_grad=True)
    inner = x + block.attention(block.norm1(x), (5, 4))[0]
    want = inner + block.mlp(block.norm2(inner))
    got, _ = block(x, (5, 4))
    torch.testing.assert_close(got, want)
    tensors, weigh = [x, *block.parameters()], torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad((y * weigh).sum(), tensors) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_recomputing_keeps_less_for_the_backward_pass():
    kept = {}
    for recompute in (False, True, "blocks"):
        model, kept[recompute] = encoder(recompute=recompute), 0

        def pack(tensor, recompute=recompute):
            kept[recompute] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 1, 80, 48))
    assert kept[True] < 0.75 * kept[False]
    assert kept["blocks"] < 0.4 * kept[True]


@pytest.mark.parametrize("recompute", [True, "blocks"])
def test_recomputing_changes_no_gradient_even_where_blocks_are_dropped(recompute):
    plain, again = encoder(drop_path=0.5), encoder(drop_path=0.5, recompute=recompute)
    again.load_state_dict(plain.state_dict())
    x, found = torch.randn(8, 1, 80, 48), []
    for model in (plain, again):
        torch.manual_seed(0)
        model(x)[0].square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("word", ["all", ""])  # of other types the type checker tells
def test_another_word_for_recompute_is_refused(word):
    with pytest.raises(ValueError, match=f"recompute {word!r} must be true, false or blocks"):
        encoder(recompute=word)


@pytest.mark.parametrize("grid", [(9, 3), (3, 8)])
def test_attention_on_another_grid_interpolates_the_tables(grid):
    attention = randomise(
        MultiscaleAttention(6, 8, 2, grid=(5, 4), kernel=(3, 3), stride_q=(1, 1), stride_kv=(2, 2), num_prefix=0)
    )
    x = torch.randn(1, grid[0] * grid[1], 6)
    want, _ = reference_attention(attention, x, grid, 2, (1, 1), (2, 2), 0)
    torch.testing.assert_close(attention(x, grid)[0], want, rtol=1e-4, atol=1e-4)


def test_positions_are_relative_yet_tell_before_from_after():
    """A token sees a neighbour on its left and on its right through different rows."""
    attention = randomise(
        MultiscaleAttention(4, 4, 1, grid=(5, 1), kernel=(1, 1), stride_q=(1, 1), stride_kv=(1, 1), num_prefix=0)
    )
    q = torch.randn(1, 1, 1, 4).expand(1, 5, 1, 4)
    logits = attention.relative_logits(q, (5, 1), (5, 1))[0, :, 0, :5]  # the same query at every place
    for offset in range(-4, 5):
        diagonal = logits.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert (logits[2, 1] - logits[2, 3]).abs() > 1e-3


# One core, two grids.


def pair_of_encoders(prefix: bool) -> tuple[MultiscaleEncoder, MultiscaleEncoder]:
    """A 2-D encoder of (time, mel) and a 3-D one of (time, 1, mel) with the same function."""
    flat = MultiscaleEncoder(
        in_channels=1,
        size=(40, 24),
        patch_kernel=(4, 4),
        patch_stride=(4, 4),
        patch_padding=(0, 0),
        stages=(Stage(1, 8, 1, (1, 1), (3, 3)), Stage(2, 16, 2, (2, 2), (3, 3))),
        stride_kv=(4, 2),
        class_token=prefix,
        absolute_positions=True,
        drop_path=0.0,
    )
    deep = MultiscaleEncoder(
        in_channels=1,
        size=(40, 1, 24),
        patch_kernel=(4, 1, 4),
        patch_stride=(4, 1, 4),
        patch_padding=(0, 0, 0),
        stages=(Stage(1, 8, 1, (1, 1, 1), (3, 3, 3)), Stage(2, 16, 2, (2, 1, 2), (3, 3, 3))),
        stride_kv=(4, 1, 2),
        class_token=prefix,
        absolute_positions=True,
        drop_path=0.0,
    )
    randomise(flat, 0.2), randomise(deep, 0.2)
    weights = dict(flat.state_dict())
    for name, value in deep.state_dict().items():
        if ".rel_pos.2" in name:
            weights[name] = flat.state_dict()[name.replace(".rel_pos.2", ".rel_pos.1")]
        elif name.startswith("positions."):  # the mel table is the third; that of the unit axis adds one vector
            own = {"positions.0": "positions.0", "positions.2": "positions.1"}.get(name)
            weights[name] = torch.zeros_like(value) if own is None else flat.state_dict()[own]
        elif ".rel_pos.1" in name:  # one row, added to every key alike; the class token has no position
            weights[name] = torch.zeros_like(value) if prefix else value
        elif "patch_embed.weight" in name:
            weights[name] = flat.state_dict()[name][:, :, :, None, :]
        elif "pool_" in name and value.ndim == 5:
            weights[name] = torch.randn_like(value)  # the outer slices meet padding only
            weights[name][:, :, :, 1, :] = flat.state_dict()[name]
    deep.load_state_dict(weights)
    return flat.eval(), deep.eval()


@pytest.mark.parametrize("prefix", [False, True])
def test_a_2d_grid_equals_a_3d_grid_with_a_unit_axis(prefix):
    flat, deep = pair_of_encoders(prefix)
    x = torch.randn(2, 1, 40, 24)
    tokens, grid = flat(x)
    tokens_3d, grid_3d = deep(x[:, :, :, None])
    assert (grid, grid_3d) == ((5, 3), (5, 1, 3))
    torch.testing.assert_close(tokens, tokens_3d, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # partner: a mel table that differs must show
        deep.blocks[0].attention.rel_pos[2].add_(torch.randn_like(deep.blocks[0].attention.rel_pos[2]))
    assert (deep(x[:, :, :, None])[0] - tokens).abs().max() > 1e-3


def encoder(**changes) -> MultiscaleEncoder:
    settings = {
        "in_channels": 1,
        "size": (40, 24),
        "patch_kernel": (4, 4),
        "patch_stride": (4, 4),
        "patch_padding": (0, 0),
        "stages": (Stage(1, 8, 1, (1, 1), (3, 1)), Stage(2, 16, 2, (2, 1), (3, 1)), Stage(1, 32, 4, (2, 2), (3, 3))),
        "stride_kv": (4, 4),
        "class_token": False,
        "absolute_positions": False,
        "drop_path": 0.0,
    }
    return MultiscaleEncoder(**settings | changes)


def test_key_strides_shrink_by_the_query_strides_of_each_axis():
    strides = [block.attention.pool_k.stride for block in encoder().blocks]
    # An axis of kernel 1 is not pooled; time is halved once in stage 2 and again in stage 3, mel in stage 3.
    assert strides == [(4, 1), (2, 1), (2, 1), (1, 2)]
    assert [block.attention.pool_q.stride for block in encoder().blocks] == [(1, 1), (2, 1), (1, 1), (2, 2)]


def test_the_shortcut_is_max_pooled_on_the_grid():
    block = MultiscaleBlock(
        4, Stage(1, 4, 1, (2, 1), (3, 1)), grid=(5, 2), stride_q=(2, 1), stride_kv=(1, 1), num_prefix=1, drop_path=0.0
    )
    x = torch.randn(1, 11, 4)
    grid = x[0, 1:].view(5, 2, 4)
    rows = [grid[max(2 * i - 1, 0) : 2 * i + 2].amax(0) for i in range(3)]  # window of 3 around every second row
    want = torch.cat((x[0, :1], torch.stack(rows).view(6, 4)))
    torch.testing.assert_close(block.pool_skip(x, (5, 2))[0], want)


def test_dropped_paths_grow_with_depth_and_rest_in_evaluation():
    model = randomise(encoder(drop_path=0.6), 0.2)
    assert [round(block.drop_path.p, 6) for block in model.blocks] == [0.0, 0.2, 0.4, 0.6]
    x = torch.randn(4, 1, 40, 24)
    assert not torch.equal(model.train()(x)[0], model(x)[0])
    assert torch.equal(model.eval()(x)[0], model(x)[0])


@pytest.mark.parametrize("size", [(40, 24), (4, 4), (72, 8), (41, 27)])
@pytest.mark.parametrize("class_token", [False, True])
def test_other_input_sizes_work_without_a_change_of_weights(size, class_token):
    model = encoder(class_token=class_token).eval()
    tokens, grid = model(torch.randn(2, 1, *size))
    time, mel = size[0] // 4, size[1] // 4
    want = (-(-time // 4), -(-mel // 2))  # halved twice and once, rounded up
    assert grid == want
    assert tokens.shape == (2, class_token + want[0] * want[1], 32)
    assert tokens.isfinite().all()


def test_an_input_smaller_than_a_patch_is_refused_with_the_size_that_works():
    with pytest.raises(ValueError, match=r"\(40, 3\).*at least \(4, 4\)"):
        encoder()(torch.randn(1, 1, 40, 3))
    with pytest.raises(ValueError, match=r"at least \(2, 4\)"):  # padding makes a smaller one possible
        encoder(patch_padding=(1, 0))(torch.randn(1, 1, 1, 24))
    assert encoder(patch_padding=(1, 0))(torch.randn(1, 1, 2, 24))[1] == (1, 3)


@pytest.mark.parametrize("size", [(40, 24), (72, 8)])
@pytest.mark.parametrize("class_token", [False, True])
def test_absolute_positions_add_a_row_of_each_axis_to_every_patch(size, class_token):
    """Also on another grid, where the tables are interpolated; the class token has no place."""
    model = randomise(encoder(absolute_positions=True, class_token=class_token)).eval()
    grid = (size[0] // 4, size[1] // 4)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.randn(1, 1, *size)
    model(x)
    patches = model.patch_embed(x)[0]
    time, mel = (interpolated(table, n) for table, n in zip(model.positions, grid, strict=True))
    want = [patches[:, i, j] + time[i] + mel[j] for i, j in product(range(grid[0]), range(grid[1]))]
    torch.testing.assert_close(seen[0][0, int(class_token) :], torch.stack(want), rtol=1e-4, atol=1e-4)
    if class_token:
        torch.testing.assert_close(seen[0][0, 0], model.class_token[0, 0])


def test_without_absolute_positions_there_are_no_tables():
    assert not any(name.startswith("positions") for name, _ in encoder().named_parameters())


def test_features_are_the_class_token_or_the_mean():
    tokens = torch.randn(2, 7, 32)
    torch.testing.assert_close(encoder(class_token=True).features(tokens), tokens[:, 0])
    torch.testing.assert_close(encoder().features(tokens), tokens.sum(1) / 7)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_training_works_after_prediction_on_the_same_grid(mode):
    """Position indices are cached: those made while predicting must serve training too."""
    ops.relative_index.cache_clear()
    model = encoder()
    x = torch.randn(2, 1, 40, 24)
    with mode():
        model(x)
    model(x)[0].sum().backward()


def test_bfloat16_stays_close_to_fp32():
    model = encoder().eval()
    x = torch.randn(2, 1, 40, 24)
    want = model(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(x)[0]
    got.float().sum().backward()
    assert ((got.float() - want).norm() / want.norm()).item() < 0.03
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_fp64_is_computed_in_fp64():
    model = encoder().eval()
    x = torch.randn(1, 1, 40, 24)
    want = model(x)[0].double()
    got = model.double()(x.double())[0]
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [((2, 2),) * 3, ((2, 2), (2, 1)), ((1, 2, 2), (2, 2, 2))])
@pytest.mark.parametrize("length", [8, 17, 31])
def test_a_stem_of_convolutions_has_the_grid_that_the_encoder_says(strides, length):
    axes = len(strides[0])
    stages = (Stage(1, 8, 1, (1,) * axes, (3,) * axes),)
    model = encoder(in_channels=axes, size=(24,) * axes, stem=strides, stages=stages, stride_kv=(4,) * axes)
    x = torch.randn(1, axes, *(length,) * axes)
    assert tuple(model.patch_embed(x).shape[2:]) == model.grid((length,) * axes) == model(x)[1]


def test_a_patch_of_the_stem_sees_what_its_kernel_says():
    stages = (Stage(1, 8, 1, (1, 1), (3, 3)),)
    model = encoder(size=(48, 48), stem=((2, 2),) * 3, stages=stages)
    x = torch.randn(1, 1, 48, 48, requires_grad=True)
    y = x
    for convolution in model.patch_embed[0::3]:  # without the normalisation, which looks everywhere
        y = convolution(y)
    (seen,) = torch.autograd.grad(y[0, :, 3, 2].sum(), x)
    rows, columns = (seen[0, 0].abs().sum(axis).nonzero().flatten().tolist() for axis in (1, 0))
    assert model.patch_kernel == (15, 15)
    assert (rows, columns) == (list(range(24 - 7, 24 + 8)), list(range(16 - 7, 16 + 8)))
