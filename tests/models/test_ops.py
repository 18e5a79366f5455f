"""The quick ways against the plain ones that they stand for."""

from fractions import Fraction
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from mmtlib.models import ops

CPU = torch.device("cpu")


def table_row(q: int, k: int, q_len: int, k_len: int) -> int:
    """Row of the table for query q and key k, in exact arithmetic (MViTv2's code, which truncates)."""
    q_step, k_step = max(Fraction(k_len, q_len), 1), max(Fraction(q_len, k_len), 1)
    return int(q * q_step - k * k_step + (k_len - 1) * k_step)


def test_relative_index_is_exact_for_every_pair_of_lengths():
    for q_len, k_len in product(range(1, 25), repeat=2):
        want = torch.tensor([[table_row(q, k, q_len, k_len) for k in range(k_len)] for q in range(q_len)])
        got = ops.relative_index(q_len, k_len, CPU)
        assert torch.equal(got, want), f"{q_len} queries, {k_len} keys: {got} instead of {want}"


def test_tables_made_while_predicting_serve_training():
    """They are cached, and an inference tensor cannot take part in a backward pass."""
    ops.relative_index.cache_clear()
    ops.key_places.cache_clear()
    with torch.inference_mode():
        index, hot = ops.relative_index(3, 5, CPU), ops.key_places((2, 3), 1, 1, torch.float32, CPU)
    assert not index.is_inference()
    assert not hot.is_inference()
    assert ops.relative_index(3, 5, CPU) is index


def test_a_key_has_its_place_along_every_axis_and_a_spare_one_none():
    hot = ops.key_places((2, 3), 1, 2, torch.float32, CPU)
    assert hot.shape == (1 + 6 + 2, 2 + 3 + 1)
    assert hot[0].tolist() == [0.0] * 6, "a class token has no place"
    for token, (row, column) in enumerate(product(range(2), range(3)), start=1):
        want = torch.zeros(6)
        want[row] = want[2 + column] = 1
        assert torch.equal(hot[token], want)
    weights = (hot @ torch.ones(6)).softmax(0)
    assert weights[-2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 1, 2)])
def test_depthwise_convolution_is_torchs(stride, grad):
    x, weight = torch.randn(2, 3, 5, 6, 7, requires_grad=grad), torch.randn(3, 1, 3, 3, 3, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        got = ops.depthwise_conv(x, weight, stride, (1, 1, 1))
        want = F.conv3d(x, weight, stride=stride, padding=1, groups=3)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if grad:
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), [x, weight]) for y in (got, want)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_strided_convolution_of_bf16_comes_back_in_bf16():
    x, weight = torch.randn(1, 2, 8, 8), torch.randn(2, 1, 3, 3)
    got = ops.depthwise_conv(x.bfloat16(), weight, (2, 2), (1, 1))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), F.conv2d(x, weight, stride=2, padding=1, groups=2), rtol=0.1, atol=0.1)


def plainly(function, *inputs):
    return function(*inputs)


@pytest.mark.parametrize("keep", [plainly, ops.recomputed])
@pytest.mark.parametrize("size", [64, 2**24])
def test_slices_make_no_difference(monkeypatch, size, keep):
    monkeypatch.setattr(ops, "SLICE", size)
    q, k, v = (torch.randn(2, 3, n, width, requires_grad=True) for n, width in ((7, 5), (4, 5), (4, 2)))
    torch.testing.assert_close(ops.softmax_attention(q, k, v, keep), (q @ k.transpose(2, 3)).softmax(-1) @ v)
    norm, mlp = nn.LayerNorm(5), nn.Sequential(nn.Linear(5, 20), nn.GELU(), nn.Linear(20, 5))
    x = torch.randn(2, 7, 5, requires_grad=True)
    torch.testing.assert_close(ops.normed_mlp(x, norm, mlp, keep), mlp(norm(x)))


def test_a_table_of_another_length_is_interpolated_between_row_centres():
    table = torch.tensor([[0.0, 4.0], [2.0, 0.0]])
    assert ops.resize_table(table, 2) is table
    assert ops.resize_table(table, 4).tolist() == [[0.0, 4.0], [0.5, 3.0], [1.5, 1.0], [2.0, 0.0]]


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropped_paths_are_those_of_torchvision(p):
    x = torch.randn(50, 3, 2)
    found, want = ops.DropPath(p), StochasticDepth(p, "row")
    for _ in range(2):  # the second draw is another one
        state = torch.get_rng_state()
        got = found(x)
        torch.set_rng_state(state)
        torch.testing.assert_close(got, want(x), rtol=0, atol=0)
    assert found.eval()(x) is x
    assert ops.DropPath(0.0)(x) is x


def test_dropout_is_that_of_torch():
    x = torch.randn(50, 4)
    torch.manual_seed(0)
    got = ops.Dropout(0.3)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(got, torch.nn.Dropout(0.3)(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", [ops.DropPath, ops.Dropout])
def test_ranks_drop_what_one_process_would(monkeypatch, make):
    drop, whole = make(0.5), torch.randn(12, 5, 4)
    torch.manual_seed(0)
    want = drop(whole)
    monkeypatch.setattr(ops, "ranks", lambda: 3)
    for number, own in enumerate(whole.chunk(3)):
        monkeypatch.setattr(ops, "rank", lambda number=number: number)
        torch.manual_seed(0)
        torch.testing.assert_close(drop(own), want.chunk(3)[number], rtol=0, atol=0)
