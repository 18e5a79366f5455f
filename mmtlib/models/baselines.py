"""The peers: AST (the authors' architecture as `transformers` has it) and MBT (bottleneck fusion of two ViTs)."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmtlib.models.fusion import AVOutput, BottleneckFusion, StreamHeads, audio_shares, transformer_block
from mmtlib.models.mmt import ProjectionHead

AST = {
    "ast_t": dict(dim=96, depth=2, num_heads=3, size=(198, 128)),
    "ast_b": dict(dim=768, depth=12, num_heads=12, size=(1024, 128)),
}
MBT_SIZES = {
    "mbt_t": dict(
        dim=96,
        depth=3,
        num_heads=3,
        fusion_layer=2,
        audio_size=(198, 128),
        video_size=(16, 64, 64),
        patch=(4, 8, 8),
    ),
    "mbt_b": dict(
        dim=768,
        depth=12,
        num_heads=12,
        fusion_layer=8,
        audio_size=(800, 128),
        video_size=(32, 224, 224),
        patch=(2, 16, 16),
    ),
}


class ASTClassifier(nn.Module):
    """AST (Gong et al., 2021): forward(audio (B, 1, time, mel)) -> logits (B, K), for the one size it is built for."""

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

        self.encoder = ASTModel(
            ASTConfig(
                hidden_size=dim,
                num_hidden_layers=depth,
                num_attention_heads=num_heads,
                intermediate_size=4 * dim,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                time_stride=patch_stride,
                frequency_stride=patch_stride,
                max_length=size[0],
                num_mel_bins=size[1],
                initializer_range=0.5 * dim**-0.5,  # as in the multiscale core: 0.02 suits widths near 768
            )
        )
        nn.init.trunc_normal_(self.encoder.embeddings.position_embeddings, std=0.02)  # transformers leaves zeros
        nn.init.trunc_normal_(self.encoder.embeddings.cls_token, std=0.02)
        nn.init.trunc_normal_(self.encoder.embeddings.distillation_token, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes)
        self.size = tuple(size)

    def forward(self, audio: Float[Tensor, "batch 1 time mel"]) -> Float[Tensor, "batch classes"]:
        if tuple(audio.shape[2:]) != self.size:
            raise ValueError(f"this AST was built for sound of {self.size} (time, mel); got {tuple(audio.shape[2:])}")
        return self.head(self.dropout(self.encoder(audio[:, 0]).pooler_output))


class ViTStream(nn.Module):
    """Patch embedding, class token, learned positions and plain blocks: one modality of MBT before its fusion."""

    def __init__(self, in_channels: int, size: Sequence[int], patch: Sequence[int], dim: int, heads: int, depth: int):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
        self.patch_embed = conv(in_channels, dim, patch, patch)
        tokens = prod(n // p for n, p in zip(size, patch, strict=True))
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 1 + tokens, dim) * 0.02)
        self.blocks = nn.ModuleList(transformer_block(dim, heads) for _ in range(depth))
        self.size = tuple(size)

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"this MBT was built for an input of {self.size}; got {tuple(x.shape[2:])}")
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return x


class MBT(nn.Module):
    """Multimodal bottleneck Transformer (Nagrani et al., 2021): two ViTs that share bottleneck tokens late.

    forward(audio (B, 1, time, mel), video (B, 3, T, H, W)) -> AVOutput. Layers from `fusion_layer` on are fusion
    layers, by the same rule as MMT's; patches do not overlap, a class token reads each stream (as in its code).
    """

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
        num_bottleneck: int = 4,
        embedding_dim: int = 128,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.audio = ViTStream(1, tuple(audio_size), (16, 16), dim, num_heads, fusion_layer)
        self.video = ViTStream(3, tuple(video_size), tuple(patch), dim, num_heads, fusion_layer)
        self.fusion = BottleneckFusion(dim, num_heads, num_layers=depth - fusion_layer, num_bottleneck=num_bottleneck)
        self.heads = StreamHeads(dim, dim, num_classes, dropout)
        self.audio_embed = ProjectionHead(dim, embedding_dim)
        self.video_embed = ProjectionHead(dim, embedding_dim)

    def forward(
        self,
        audio: Float[Tensor, "batch 1 time mel"] | None,
        video: Float[Tensor, "batch 3 frames height width"] | None,
        has_audio: Bool[Tensor, " batch"] | None = None,
        has_video: Bool[Tensor, " batch"] | None = None,
    ) -> AVOutput:
        share = audio_shares(audio, video, has_audio, has_video)
        audio_embedding = video_embedding = None
        if audio is not None:
            audio = self.audio(audio)
            audio_embedding = self.audio_embed(audio[:, 0])
        if video is not None:
            video = self.video(video)
            video_embedding = self.video_embed(video[:, 0])
        audio, video = self.fusion(audio, video, share)
        audio = None if audio is None else audio[:, 0]
        video = None if video is None else video[:, 0]
        return AVOutput(*self.heads(audio, video, share), audio_embedding, video_embedding)
