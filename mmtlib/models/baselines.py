"""The peers: AST (the authors' architecture as `transformers` has it), MBT (bottleneck fusion of two ViTs), a ViT."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmtlib.models.base import OneModality
from mmtlib.models.fusion import transformer_block
from mmtlib.models.mmt import TwoStreams
from mmtlib.models.multiscale import PATCH_CONV, Grid, MultiscaleEncoder
from mmtlib.models.ops import Dropout

AST = {
    "ast_t": dict(dim=96, depth=2, num_heads=3, size=(198, 128)),
    "ast_b": dict(dim=768, depth=12, num_heads=12, size=(1024, 128)),
}
SMALL_INPUT = dict(audio_size=(198, 128), video_size=(16, 64, 64), patch=(4, 8, 8))
LARGE_INPUT = dict(audio_size=(800, 128), video_size=(32, 224, 224), patch=(2, 16, 16))
MBT_SIZES = {
    "mbt_t": dict(dim=96, depth=3, num_heads=3, fusion_layer=2, **SMALL_INPUT),
    "mbt_b": dict(dim=768, depth=12, num_heads=12, fusion_layer=8, **LARGE_INPUT),
}
AUDIO_PATCH = (16, 16)


# Plain ViTs (Dosovitskiy et al., ICLR 2021): the encoders of MBT, alone. They have the blocks that MBT takes over, so
# fewer than all of MBT's (our reading); a larger `depth` gives a whole ViT.
VIT = {
    name.replace("mbt", f"vit_{part}"): dict(
        dim=mbt["dim"],
        depth=mbt["fusion_layer"],
        num_heads=mbt["num_heads"],
        size=mbt[f"{part}_size"],
        patch=AUDIO_PATCH if part == "audio" else mbt["patch"],
    )
    for part in ("audio", "video")
    for name, mbt in MBT_SIZES.items()
}


def resize_positions(
    table: Float[Tensor, "1 tokens dim"], grid: Grid, new_grid: Grid
) -> Float[Tensor, "1 new_tokens dim"]:
    """Learned positions of `grid` for another grid, by linear interpolation along every axis at once.

    Rows before those of the grid belong to class tokens and stay.
    """
    if new_grid == grid:
        return table
    prefix, places = table.tensor_split([table.shape[1] - prod(grid)], dim=1)
    places = places.unflatten(1, grid).movedim(-1, 1)  # (1, dim, *grid)
    places = F.interpolate(places, new_grid, mode={2: "bilinear", 3: "trilinear"}[len(grid)])
    return torch.cat((prefix, places.flatten(2).transpose(1, 2)), dim=1)


class ASTClassifier(OneModality):
    """AST (Gong et al., 2021): forward(audio (B, 1, time, mel)) -> logits (B, K).

    `size` is the input size its positions are made for; any other one of at least a patch works too, with the
    positions interpolated over mel and time, as AST's authors do between data sets.
    """

    reads = "audio"
    POSITIONS = "embeddings.position_embeddings"
    patch_kernel, patch_padding = (16, 16), (0, 0)
    grid = MultiscaleEncoder.grid

    def __init__(
        self,
        num_classes: int,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        size: Sequence[int],
        patch_stride: int = 10,
        dropout: float = 0.0,
    ):
        super().__init__()
        from transformers import ASTConfig, ASTModel  # takes seconds, which no other model needs

        self.patch_stride = (patch_stride, patch_stride)
        self.positions_grid = self.grid(tuple(size))[::-1]  # mel first, as transformers lays the patches out
        config = dict(hidden_size=dim, num_hidden_layers=depth, num_attention_heads=num_heads, max_length=size[0])
        config |= dict(time_stride=patch_stride, frequency_stride=patch_stride, num_mel_bins=size[1])
        spread = 0.5 * dim**-0.5  # as in the multiscale core: 0.02 suits widths near 768
        self.encoder = ASTModel(ASTConfig(**config, intermediate_size=4 * dim, initializer_range=spread))
        nn.init.trunc_normal_(self.encoder.embeddings.position_embeddings, std=0.02)  # transformers leaves zeros
        nn.init.trunc_normal_(self.encoder.embeddings.cls_token, std=0.02)
        nn.init.trunc_normal_(self.encoder.embeddings.distillation_token, std=0.02)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(dim, num_classes)

    def features(self, x: Float[Tensor, "batch 1 time mel"]) -> Float[Tensor, "batch dim"]:
        table = self.encoder.get_parameter(self.POSITIONS)
        table = resize_positions(table, self.positions_grid, self.grid(tuple(x.shape[2:]))[::-1])
        return torch.func.functional_call(self.encoder, {self.POSITIONS: table}, (x[:, 0],)).pooler_output


class ViTStream(nn.Module):
    """Patch embedding, class token, learned positions and plain blocks: one modality of MBT before its fusion.

    (B, C, *size) -> tokens (B, 1 + N, dim), the class token first, and their grid. `size` is the input size the
    positions are made for; any other one of at least a patch works too, with the positions interpolated.
    """

    grid = MultiscaleEncoder.grid

    def __init__(
        self, in_channels: int, *, size: Sequence[int], patch: Sequence[int], dim: int, num_heads: int, depth: int
    ):
        super().__init__()
        self.dim = dim
        self.patch_kernel = self.patch_stride = tuple(patch)
        self.patch_padding = (0,) * len(patch)
        self.patch_embed = PATCH_CONV[len(size)](in_channels, dim, self.patch_kernel, self.patch_stride)
        self.positions_grid = self.grid(tuple(size))
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 1 + prod(self.positions_grid), dim) * 0.02)
        self.blocks = nn.ModuleList(transformer_block(dim, num_heads) for _ in range(depth))

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> tuple[Float[Tensor, "batch tokens dim"], Grid]:
        grid = self.grid(tuple(x.shape[2:]))
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + resize_positions(self.position, self.positions_grid, grid)
        for block in self.blocks:
            x = block(x)
        return x, grid

    def features(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """One vector for a clip: the class token."""
        return tokens[:, 0]


class MBT(TwoStreams):
    """Multimodal bottleneck Transformer (Nagrani et al., 2021): two ViTs that share bottleneck tokens late.

    Layers from `fusion_layer` on are fusion layers, by the same rule as MMT's; patches do not overlap, a class token
    reads each stream (as in its code). `audio_size` (time, mel) and `video_size` (T, H, W) are the input sizes the
    positions are made for; other ones work too. `options` are those of TwoStreams.
    """

    projects = False

    def __init__(
        self,
        num_classes: int,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        fusion_layer: int,
        audio_size: Sequence[int],
        video_size: Sequence[int],
        patch: Sequence[int],
        **options,
    ):
        width = dict(dim=dim, num_heads=num_heads, depth=fusion_layer)
        audio = ViTStream(1, size=audio_size, patch=AUDIO_PATCH, **width)
        video = ViTStream(3, size=video_size, patch=patch, **width)
        late = dict(num_heads=num_heads, fusion_layers=depth - fusion_layer)
        super().__init__(audio, video, num_classes, dim=dim, **late, **options)
