"""How the multiscale core is computed quickly, on a CPU and on a GPU; none of it changes a result.

Tokens stay channels-last, (batch, tokens, heads * head_dim), so that pooling is a channels-last convolution on a view.
Relative positions become extra channels, q' = [q, q.R_time, q.R_mel] and k' = [scale k, onehot(time), onehot(mel)], so
that q'k' is the whole attention logit and needs no bias matrix. On a CPU, attention and MLP take a slice of the tokens
at a time, so that what is in between stays in the cache. What is cheap to compute can be computed again in the backward
pass instead of being kept.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtlib.distributed import rank, ranks

Grid = tuple[int, ...]  # tokens along each axis, time first
CONV = {2: F.conv2d, 3: F.conv3d}
SLICE = 2**24  # bytes of the largest intermediate result of a slice: 2**20 was slower, and so was no slicing


def in_slices(x: Tensor) -> bool:
    """Whether to work on slices: on a CPU, but not in a graph that is compiled or exported for any batch size."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def recomputed(function: Callable, *inputs, draws: bool = False):
    """function(*inputs), whose intermediate results are computed again in the backward pass; `draws`: at random."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=draws)


def cached(function: Callable) -> Callable:
    """lru_cache, but not in a graph that is compiled or exported: its tensors are no real ones."""
    kept = lru_cache(maxsize=256)(function)

    @wraps(function)
    def call(*args):
        return (function if torch.compiler.is_compiling() else kept)(*args)

    call.cache_clear = kept.cache_clear
    return call


class Dropout(nn.Dropout):
    """Drawn for the clips of all ranks, from one seed; each keeps its own, so that their number changes nothing."""

    whole = False  # every value by itself

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        if not (self.training and self.p):
            return x
        shape = [1] * (x.ndim - 1) if self.whole else x.shape[1:]
        return x * super().forward(x.new_ones(len(x) * ranks(), *shape)).chunk(ranks())[rank()]


class DropPath(Dropout):
    """Stochastic depth (Huang et al., ECCV 2016): a clip's branch is left out as a whole, with probability `p`."""

    whole = True


# Pooling.


def depthwise_conv(
    x: Float[Tensor, "batch channels *grid"], weight: Float[Tensor, "channels 1 *kernel"], stride: Grid, padding: Grid
) -> Float[Tensor, "batch channels *pooled"]:
    """Depth-wise convolution over 2 or 3 axes.

    On a CPU, where gradients are wanted, one over 3 axes is the sum of one over 2 axes for each step of its kernel in
    time, since only over 2 axes the gradients have a fast kernel there (6 to 9 times faster, measured); and a strided
    one leaves bf16, for the same reason.
    """
    channels = x.shape[1]
    if x.device.type != "cpu":
        return CONV[x.ndim - 2](x, weight, stride=stride, padding=padding, groups=channels)
    dtype = x.dtype
    x = x.float() if prod(stride) > 1 and dtype.itemsize < 4 else x
    with torch.autocast("cpu", enabled=False):
        weight = weight.to(x.dtype)
        if x.ndim == 4 or not torch.is_grad_enabled():
            return CONV[x.ndim - 2](x, weight, stride=stride, padding=padding, groups=channels).to(dtype)
        frames = x.movedim(1, 2).flatten(0, 1)  # (B * T, C, H, W)
        parts = []
        for step, plane in enumerate(weight.unbind(2)):
            part = F.conv2d(frames, plane, stride=stride[1:], padding=padding[1:], groups=channels)
            part = part.unflatten(0, (x.shape[0], x.shape[2]))  # (B, T, C, H', W')
            late = padding[0] - step  # this step's frames contribute so many frames later
            parts.append(F.pad(part, (0, 0, 0, 0, 0, 0, late, -late)) if late else part)
        return sum(parts[1:], parts[0])[:, :: stride[0]].movedim(1, 2).to(dtype)


# Position tables.


@cached
def relative_index(q_len: int, k_len: int, device: torch.device) -> Tensor:
    """Row of the relative-position table for each pair (query, key) along one axis, (q_len, k_len).

    When one side was pooled further, its steps are the longer ones (MViTv2, section 4.1). Whole numbers
    throughout: in floating point some rows would be off by one.
    """
    longer = max(q_len, k_len)
    with torch.inference_mode(False):  # a cached inference tensor could not serve a training step
        q, k = torch.arange(q_len)[:, None], torch.arange(k_len)[None, :]
        return (q * longer // q_len + (k_len - 1 - k) * longer // k_len).to(device)


@cached
def key_places(grid: Grid, num_prefix: int, spare: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For each key token its place along every axis, one-hot, (num_prefix + tokens + spare, sum(grid) + (spare > 0)).

    Prefixes have no place. Spare keys have a column of their own, which keeps every query from attending to them.
    """
    with torch.inference_mode(False):
        places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, len(grid))
        hot = torch.cat([F.one_hot(places[:, axis], n) for axis, n in enumerate(grid)], dim=1)
        hot = F.pad(hot, (0, int(spare > 0), num_prefix, spare)).to(device, dtype)
        if spare:
            hot[-spare:, -1] = -1e4  # a weight of exactly 0 after the softmax
        return hot


def resize_table(table: Float[Tensor, "rows width"], rows: int) -> Float[Tensor, "new_rows width"]:
    """A table of one axis for another input size, by linear interpolation (as in MViTv2's own code)."""
    if table.shape[0] == rows:
        return table
    return F.interpolate(table.T[None], size=rows, mode="linear")[0].T


def fit_tables(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of multiscale encoders trained at another input size, their position tables resized as in `own`.

    `own` is the state_dict that they shall go into. A table is what an encoder calls `rel_pos` or `positions`, (rows,
    width), interpolated if the rows alone differ. All else stays as it is, for `load_state_dict` to judge.
    """
    fitted = dict(tensors)
    for name in fitted.keys() & own.keys():
        like = own[name]
        if {"rel_pos", "positions"} & set(name.split(".")) and fitted[name].shape[1:] == like.shape[1:]:
            fitted[name] = resize_table(fitted[name], len(like))
    return fitted


# Attention and MLP.


def softmax_attention(
    q: Float[Tensor, "batch heads queries channels"],
    k: Float[Tensor, "batch heads keys channels"],
    v: Float[Tensor, "batch heads keys head_dim"],
    keep: Callable,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """softmax(q k') v. On a CPU by plain products, a slice of the queries at a time: faster there than fused ones."""
    if not in_slices(q):
        wide = F.pad(v, (0, q.shape[-1] - v.shape[-1]))  # fused kernels want q, k and v of one width
        return F.scaled_dot_product_attention(q, k, wide, scale=1.0)[..., : v.shape[-1]]
    rows = SLICE // (q.element_size() * q.shape[0] * q.shape[1] * k.shape[2])
    parts = [keep(_softmax_products, part, k, v) for part in q.split(max(rows, 1), dim=2)]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _softmax_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def normed_mlp(
    x: Float[Tensor, "batch tokens dim"], norm: nn.Module, mlp: nn.Sequential, keep: Callable
) -> Float[Tensor, "batch tokens dim"]:
    """mlp(norm(x)), `mlp` being linear, activation, linear.

    With `keep` = recomputed the hidden layer before its activation is what is kept for the backward pass.
    """
    widen, activate, narrow = mlp

    def normed(part: Tensor) -> Tensor:
        return widen(norm(part))

    def activated(hidden: Tensor) -> Tensor:
        return narrow(activate(hidden))

    tokens = x.flatten(0, 1)
    slices = tokens.split(max(SLICE // (4 * tokens[0].nbytes), 1)) if in_slices(x) else [tokens]
    parts = [keep(activated, keep(normed, part)) for part in slices]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).view(x.shape)
