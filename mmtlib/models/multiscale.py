"""The multiscale Transformer: one core for audio (time x mel) and for video (time x height x width).

It is MViTv2 (Li et al., "MViTv2: Improved Multiscale Vision Transformers", CVPR 2022) written for a grid of any number
of axes: attention whose q, k and v are pooled by a depth-wise convolution shared over the heads, relative positions
decomposed into one table per axis, residual pooling, and width and heads that grow where a stage begins. With three
axes it equals torchvision's `mvit_v2_s`; with two it is MAT. What makes it quick is in `ops`.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmtlib.models import ops
from mmtlib.models.base import StreamClassifier
from mmtlib.models.ops import Grid, resize_table

MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
PATCH_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
Pooled = tuple[Float[Tensor, "batch pooled dim"], Grid]  # tokens and their grid


class Stage(NamedTuple):
    """One scale: `depth` blocks of width `dim`; its first block pools the queries by `stride_q`.

    `kernel` is the window of the pooling; an axis with kernel 1 is not pooled in this stage at all. A stride is 1 or 2.
    """

    depth: int
    dim: int
    num_heads: int
    stride_q: Grid
    kernel: Grid


def pooled_grid(grid: Grid, stride: Grid) -> Grid:
    """The grid after pooling with an odd kernel and half of it as padding."""
    return tuple((n - 1) // s + 1 for n, s in zip(grid, stride, strict=True))


class Pool(nn.Module):
    """Depth-wise convolution over the grid with one kernel for all heads, then LayerNorm (MViTv2, section 3).

    Calling it convolves. The norm follows in `MultiscaleAttention.prepare`, where it can be recomputed.
    """

    def __init__(self, head_dim: int, kernel: Grid, stride: Grid):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_dim, 1, *kernel))
        self.norm = nn.LayerNorm(head_dim, eps=1e-6)
        self.stride, self.padding = stride, tuple(k // 2 for k in kernel)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # the default of torch's convolutions

    def forward(
        self, x: Float[Tensor, "batch tokens heads head_dim"], grid: Grid
    ) -> Float[Tensor, "batch pooled heads head_dim"]:
        heads = x.shape[2]
        weight = self.weight.repeat(heads, *(1,) * (self.weight.ndim - 1))
        x = x.flatten(2).unflatten(1, grid).movedim(-1, 1)  # (B, heads * head_dim, *grid), channels-last in memory
        x = ops.depthwise_conv(x, weight, self.stride, self.padding)
        return x.movedim(1, -1).flatten(1, -2).unflatten(-1, (heads, -1))


class MultiscaleAttention(nn.Module):
    """Multi-head attention over pooled q, k and v with decomposed relative positions and residual pooling."""

    def __init__(
        self,
        dim_in: int,
        dim: int,
        num_heads: int,
        *,
        grid: Grid,
        kernel: Grid,
        stride_q: Grid,
        stride_kv: Grid,
        num_prefix: int,
        recompute: bool = False,
    ):
        super().__init__()
        self.stride_q, self.stride_kv, self.recompute = stride_q, stride_kv, recompute
        self.num_heads, self.num_prefix, self.scale = num_heads, num_prefix, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim_in, 3 * dim)
        self.project = nn.Linear(dim, dim)
        head_dim = dim // num_heads
        pooled = prod(kernel) > 1
        self.pool_q = Pool(head_dim, kernel, stride_q) if pooled else None
        self.pool_k = Pool(head_dim, kernel, stride_kv) if pooled else None
        self.pool_v = Pool(head_dim, kernel, stride_kv) if pooled else None
        q_grid, k_grid = pooled_grid(grid, stride_q), pooled_grid(grid, stride_kv)
        self.rel_pos = nn.ParameterList(
            nn.init.trunc_normal_(torch.empty(2 * max(q, k) - 1, head_dim), std=0.02)
            for q, k in zip(q_grid, k_grid, strict=True)
        )

    def forward(self, x: Float[Tensor, "batch tokens dim_in"], grid: Grid) -> Pooled:
        q_grid, k_grid = pooled_grid(grid, self.stride_q), pooled_grid(grid, self.stride_kv)
        # Three products rather than one cut in three: each result is then contiguous, which the pooling wants.
        weights = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)) for weight, bias in weights)
        prefixes, tokens = zip(*(t.tensor_split([self.num_prefix], dim=1) for t in (q, k, v)), strict=True)
        if self.pool_q is not None:
            pools = (self.pool_q, self.pool_k, self.pool_v)
            tokens = tuple(pool(t, grid) for pool, t in zip(pools, tokens, strict=True))
        q, queries, prefix, k, v = self.keep(self.prepare, *prefixes, *tokens, q_grid, k_grid)
        # Residual pooling: the pooled query joins the output, class token apart (MViTv2, section 4.1).
        out = q + ops.softmax_attention(queries, k, v, self.keep).transpose(1, 2)
        if self.num_prefix:
            out = torch.cat((ops.softmax_attention(prefix, k, v, self.keep).transpose(1, 2), out), dim=1)
        return self.project(out.flatten(2)), q_grid

    def keep(self, function: Callable, *inputs):
        return ops.recomputed(function, *inputs) if self.recompute else function(*inputs)

    def prepare(
        self, q_prefix: Tensor, k_prefix: Tensor, v_prefix: Tensor, q: Tensor, k: Tensor, v: Tensor, *grids: Grid
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Norms and relative positions; all inputs are (B, tokens, heads, head_dim).

        Returns q (B, Nq, heads, head_dim) as it is added to the output; queries (B, heads, Nq, C), those of the prefix
        and keys (B, heads, Nk, C), with C = head_dim + the places of a key (+ 1 where there are spare keys), whose
        products are the attention logits; values (B, heads, Nk, head_dim).
        """
        # On a CPU products with an odd number of columns run slower: there the keys are filled up to a multiple of 4.
        spare = -(self.num_prefix + k.shape[1]) % 4 if ops.in_slices(q) else 0
        blank = k.new_zeros(k.shape[0], spare, *k.shape[2:])
        k, v = torch.cat((k_prefix, k, blank), dim=1), torch.cat((v_prefix, v, blank), dim=1)
        if self.pool_q is not None:
            q, q_prefix = self.pool_q.norm(q), self.pool_q.norm(q_prefix)
            k, v = self.pool_k.norm(k), self.pool_v.norm(v)
        extra = int(spare > 0)
        positions = F.pad(self.relative_logits(q, *grids).to(q.dtype), (0, extra), value=1.0)
        queries = torch.cat((q.transpose(1, 2), positions.transpose(1, 2)), dim=-1)
        prefix = F.pad(F.pad(q_prefix.transpose(1, 2), (0, sum(grids[1]))), (0, extra), value=1.0)
        hot = ops.key_places(grids[1], self.num_prefix, spare, k.dtype, k.device)
        keys = torch.cat(((k * self.scale).transpose(1, 2), hot.expand(k.shape[0], k.shape[2], -1, -1)), dim=-1)
        return q, queries, prefix, keys, v.transpose(1, 2)

    def relative_logits(
        self, q: Float[Tensor, "batch queries heads head_dim"], q_grid: Grid, k_grid: Grid
    ) -> Float[Tensor, "batch queries heads places"]:
        """q . R of every axis, side by side: one channel for each place that a key can have on that axis."""
        logits = []
        for axis, (table, q_len, k_len) in enumerate(zip(self.rel_pos, q_grid, k_grid, strict=True)):
            table = resize_table(table, 2 * max(q_len, k_len) - 1)
            table = table[ops.relative_index(q_len, k_len, q.device)].to(q.dtype)  # (q_len, k_len, head_dim)
            before, after = prod(q_grid[:axis]), prod(q_grid[axis + 1 :])
            if after * self.num_heads >= k_len:  # a copy of the table each costs less than one of q
                rows = q.reshape(q.shape[0] * before, q_len, after * self.num_heads, -1)
                logits.append((rows @ table.transpose(1, 2)).reshape(*q.shape[:3], k_len))
            else:
                rows = q.unflatten(1, (before, q_len, after))
                logits.append(torch.einsum("b p q s h d, q k d -> b p q s h k", rows, table).flatten(1, 3))
        return torch.cat(logits, dim=-1)


class MultiscaleBlock(nn.Module):
    """LayerNorm, attention, LayerNorm, MLP; a change of width or grid happens inside the attention."""

    def __init__(self, dim_in: int, stage: Stage, *, stride_q: Grid, num_prefix: int, drop_path: float, **options):
        super().__init__()
        self.stride_q, self.num_prefix = stride_q, num_prefix
        self.norm1, self.norm2 = nn.LayerNorm(dim_in, eps=1e-6), nn.LayerNorm(stage.dim, eps=1e-6)
        options |= dict(kernel=stage.kernel, stride_q=stride_q, num_prefix=num_prefix)
        self.attention = MultiscaleAttention(dim_in, stage.dim, stage.num_heads, **options)
        self.project = nn.Linear(dim_in, stage.dim) if dim_in != stage.dim else None
        self.mlp = nn.Sequential(nn.Linear(stage.dim, 4 * stage.dim), nn.GELU(), nn.Linear(4 * stage.dim, stage.dim))
        self.drop_path = ops.DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch tokens dim_in"], grid: Grid) -> Pooled:
        normed = self.norm1(x)
        attended, new_grid = self.attention(normed, grid)
        skip = self.pool_skip(x if self.project is None else self.project(normed), grid)
        x = skip + self.drop_path(attended)
        return x + self.drop_path(ops.normed_mlp(x, self.norm2, self.mlp, self.attention.keep)), new_grid

    def pool_skip(self, x: Tensor, grid: Grid) -> Tensor:
        """The shortcut on the pooled grid, by max pooling."""
        if prod(self.stride_q) == 1:
            return x
        prefix, x = x[:, : self.num_prefix], x[:, self.num_prefix :]
        kernel = tuple(s + 1 if s > 1 else 1 for s in self.stride_q)
        x = x.unflatten(1, grid).movedim(-1, 1)
        x = MAX_POOL[len(grid)](x, kernel, stride=self.stride_q, padding=tuple(k // 2 for k in kernel))
        return torch.cat((prefix, x.movedim(1, -1).flatten(1, -2)), dim=1)


def conv_stem(in_channels: int, dim: int, strides: Sequence[Sequence[int]]) -> nn.Sequential:
    """Patches by 3-wide convolutions, one for each stride, the width doubling up to `dim` (Xiao et al., NeurIPS 2021).

    "Early convolutions help Transformers see better", with one group of normalisation in the place of batches (our
    reading): a clip then does not depend on the others.
    """
    convolution, layers, width = PATCH_CONV[len(strides[0])], [], in_channels
    for number, stride in enumerate(strides, start=1):
        out = dim // 2 ** (len(strides) - number)
        layers += [convolution(width, out, 3, stride, 1, bias=False), nn.GroupNorm(1, out), nn.GELU()]
        width = out
    return nn.Sequential(*layers, convolution(dim, dim, 1))


class MultiscaleEncoder(nn.Module):
    """Patch embedding and stages of multiscale blocks: (B, C, *size) -> tokens (B, prefix + N, dim) and their grid.

    `size` is the input size the relative-position tables are made for; any other size whose grid is not empty
    works too, with the tables interpolated. `stride_kv` is the stride of k and v in the first stage; each axis
    of it shrinks by the query strides so far, so that the number of keys stays about the same (MViTv2, table 1).
    `class_token=False` has no prefix token; `features` is then the mean over the tokens. `absolute_positions` adds
    a learned table for each axis to the patches, as MViTv1 did, without which a mel band has no identity. Both
    are our reading. `stem`: the strides of a `conv_stem` in the place of patches, which are then not looked at.
    `recompute` keeps less for the backward pass: True computes again what is cheap, "blocks" whole blocks.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: Sequence[int],
        patch_kernel: Sequence[int],
        patch_stride: Sequence[int],
        patch_padding: Sequence[int],
        stages: Sequence[Stage],
        stride_kv: Sequence[int],
        class_token: bool,
        absolute_positions: bool,
        drop_path: float,
        stem: Sequence[Sequence[int]] = (),
        recompute: bool | str = False,
    ):
        super().__init__()
        dim, self.in_channels, self.whole_blocks = stages[0].dim, in_channels, recompute == "blocks"
        if not (self.whole_blocks or isinstance(recompute, bool)):
            raise ValueError(f"recompute {recompute!r} must be true, false or blocks")
        if stem:  # as a whole it has this stride, sees so much and pads so much
            patch_stride = tuple(map(prod, zip(*stem, strict=True)))
            patch_kernel = [2 * stride - 1 for stride in patch_stride]
            patch_padding = [stride - 1 for stride in patch_stride]
        patches = tuple(patch_kernel), tuple(patch_stride), tuple(patch_padding)
        self.patch_kernel, self.patch_stride, self.patch_padding = patches
        patch_conv = PATCH_CONV[len(size)]
        self.patch_embed = conv_stem(in_channels, dim, stem) if stem else patch_conv(in_channels, dim, *patches)
        self.num_prefix = int(class_token)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        grid = self.grid(tuple(size))
        self.positions = nn.ParameterList(torch.zeros(n, dim) for n in grid if absolute_positions)
        reduced = (1,) * len(grid)  # of the grid by the query strides so far
        self.depths, self.blocks = [stage.depth for stage in stages], nn.ModuleList()
        for stage in stages:
            reduced = tuple(r * s for r, s in zip(reduced, stage.stride_q, strict=True))
            kv = tuple(max(s // r, 1) if k > 1 else 1 for s, r, k in zip(stride_kv, reduced, stage.kernel, strict=True))
            for index in range(stage.depth):
                stride_q = stage.stride_q if index == 0 else (1,) * len(grid)
                # A block that shrinks the grid still reads keys of the old one: its kv stride is on the old grid.
                options = dict(grid=grid, stride_q=stride_q, stride_kv=kv, num_prefix=self.num_prefix)
                drop = drop_path * len(self.blocks) / max(sum(self.depths) - 1, 1)
                self.blocks.append(MultiscaleBlock(dim, stage, drop_path=drop, recompute=recompute is True, **options))
                grid, dim = pooled_grid(grid, stride_q), stage.dim
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.dim = dim
        self.apply(_init_weights)
        for parameter in (*self.positions, *([self.class_token] if class_token else [])):
            nn.init.trunc_normal_(parameter, std=0.02)

    def grid(self, size: Grid) -> Grid:
        """Tokens along each axis for an input of `size`; ValueError if there would be none."""
        spec = zip(size, self.patch_kernel, self.patch_stride, self.patch_padding, strict=True)
        grid = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in spec)
        if min(grid) < 1:
            least = tuple(k - 2 * p for k, p in zip(self.patch_kernel, self.patch_padding, strict=True))
            raise ValueError(f"size {tuple(size)} is smaller than one patch; give at least {least} along each axis")
        return grid

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> tuple[Float[Tensor, "batch tokens dim"], Grid]:
        grid = self.grid(tuple(x.shape[2:]))
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, N, dim)
        if self.positions:
            places, *others = [resize_table(table, n) for table, n in zip(self.positions, grid, strict=True)]
            for table in others:  # one vector for each place of the grid: the sum of its rows in the tables
                places = (places[:, None] + table[None]).flatten(0, 1)
            x = x + places.to(x.dtype)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(x.shape[0], -1, -1).to(x.dtype), x), dim=1)
        for block in self.blocks:  # what one drops, it drops again
            x, grid = ops.recomputed(block, x, grid, draws=True) if self.whole_blocks else block(x, grid)
        return self.norm(x), grid

    def features(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """One vector for a clip: the class token, or the mean over the tokens where there is none."""
        return tokens[:, 0] if self.num_prefix else tokens.mean(1)


class MultiscaleClassifier(StreamClassifier):
    """MAT and MViTv2: a multiscale encoder with a linear head, (B, C, *size) -> logits (B, K)."""

    def __init__(self, encoder: MultiscaleEncoder, num_classes: int, dropout: float):
        super().__init__({1: "audio", 3: "video"}[encoder.in_channels], encoder, num_classes, dropout)
        _init_weights(self.head)


def _init_weights(module: nn.Module) -> None:
    """MViTv2 draws all weights with a deviation of 0.02; this is that at a width of 625, and more for narrow ones."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.5 * module.in_features**-0.5)
        nn.init.zeros_(module.bias)
