"""Audio-video bottleneck fusion (AVBottleneck) and full attention over concatenated tokens.

A fusion layer lets each modality attend over its own tokens and a few shared bottleneck tokens; the two
updates of the bottleneck are averaged (MBT, Nagrani et al., NeurIPS 2021; 4 tokens by default). What crosses
from one modality to the other must pass through those tokens. Where the paper is silent (how many layers, after
the encoders or inside them) this is our reading: a few layers after the encoders.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmtlib.models.base import Flags
from mmtlib.models.ops import Dropout

Tokens = Float[Tensor, "batch _ dim"] | None  # of a modality; None: it was not given
Share = Float[Tensor, " batch"]  # of audio in an average: 0.5 where both are there, else 1 or 0


def transformer_block(dim: int, num_heads: int) -> nn.TransformerEncoderLayer:
    """A plain pre-norm Transformer block (ViT)."""
    plain = dict(activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6)
    return nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, dropout=0.0, **plain)


class BottleneckFusion(nn.Module):
    """Layers in which audio and video exchange information through `num_bottleneck` shared tokens only.

    A modality that is absent for a clip takes no part: the bottleneck's update is then the other one's.
    """

    def __init__(self, dim: int, num_heads: int, *, num_layers: int, num_bottleneck: int = 4):
        super().__init__()
        self.bottleneck = nn.Parameter(torch.randn(1, num_bottleneck, dim) * 0.02)
        self.audio_blocks = nn.ModuleList(transformer_block(dim, num_heads) for _ in range(num_layers))
        self.video_blocks = nn.ModuleList(transformer_block(dim, num_heads) for _ in range(num_layers))

    def forward(self, audio: Tokens, video: Tokens, audio_share: Share) -> tuple[Tokens, Tokens]:
        """The tokens of both after the exchange; the audio's update of the bottleneck has the weight `audio_share`."""
        bottleneck = self.bottleneck.expand(audio_share.shape[0], -1, -1)
        share = audio_share[:, None, None]
        for audio_block, video_block in zip(self.audio_blocks, self.video_blocks, strict=True):
            update = 0.0
            if audio is not None:
                audio, by_audio = attend_with(audio_block, audio, bottleneck)
                update = update + share * by_audio
            if video is not None:
                video, by_video = attend_with(video_block, video, bottleneck)
                update = update + (1 - share) * by_video
            bottleneck = update
        return audio, video


def attend_with(block: nn.Module, tokens: Tensor, bottleneck: Tensor) -> tuple[Tensor, Tensor]:
    """One block over [tokens; bottleneck]; returns both parts."""
    joint = block(torch.cat((tokens, bottleneck), dim=1))
    return joint[:, : tokens.shape[1]], joint[:, tokens.shape[1] :]


class ConcatFusion(nn.Module):
    """The costlier alternative: full attention over the tokens of both modalities, side by side."""

    def __init__(self, dim: int, num_heads: int, *, num_layers: int):
        super().__init__()
        self.blocks = nn.ModuleList(transformer_block(dim, num_heads) for _ in range(num_layers))
        self.modality = nn.Parameter(torch.randn(2, 1, 1, dim) * 0.02)

    def forward(self, audio: Tokens, video: Tokens, audio_share: Share) -> tuple[Tokens, Tokens]:
        given = zip((audio, video), self.modality, (audio_share == 0, audio_share == 1), strict=True)
        parts = [(tokens + marker, absent) for tokens, marker, absent in given if tokens is not None]
        joint = torch.cat([tokens for tokens, _ in parts], dim=1)
        hidden = torch.cat([absent[:, None].expand(tokens.shape[:2]) for tokens, absent in parts], dim=1)
        hidden = hidden if hidden.any() else None  # a clip's absent modality is not attended to
        for block in self.blocks:
            joint = block(joint, src_key_padding_mask=hidden)
        if audio is None or video is None:
            return (None, joint) if audio is None else (joint, None)
        return joint[:, : audio.shape[1]], joint[:, audio.shape[1] :]


def audio_shares(audio: Tensor | None, video: Tensor | None, has_audio: Flags, has_video: Flags) -> Share:
    """How much of an average of the two modalities is audio's, for each clip; ValueError for one that has neither."""
    given = audio if audio is not None else video
    if given is None:
        raise ValueError("give audio, video or both; both are None")

    def present(tokens: Tensor | None, flags: Tensor | None) -> Tensor:
        flags = torch.ones(given.shape[0], device=given.device) if flags is None else flags.to(given.device).float()
        return flags if tokens is not None else torch.zeros_like(flags)

    audio_there, video_there = present(audio, has_audio), present(video, has_video)
    both = audio_there + video_there
    if (has_audio is not None or has_video is not None) and len(neither := (both == 0).nonzero()):
        raise ValueError(f"clip {int(neither[0])} of the batch has neither audio nor video; leave it out")
    return audio_there / both


class StreamHeads(nn.Module):
    """One classifier per modality, logits averaged over the modalities that a clip has (MBT's rule)."""

    def __init__(self, dim: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.audio_norm, self.video_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.audio_head, self.video_head = nn.Linear(dim, num_classes), nn.Linear(dim, num_classes)

    def forward(self, audio: Tensor | None, video: Tensor | None, audio_share: Share) -> tuple[Tensor | None, ...]:
        """Pooled features (B, D) of each stream -> logits, audio logits, video logits, each (B, K)."""
        audio = None if audio is None else self.audio_head(self.dropout(self.audio_norm(audio)))
        video = None if video is None else self.video_head(self.dropout(self.video_norm(video)))
        share = audio_share[:, None]
        parts = [weight * part for weight, part in ((share, audio), (1 - share, video)) if part is not None]
        return sum(parts), audio, video
