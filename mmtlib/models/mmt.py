"""MMT: a multiscale audio Transformer, a multiscale video Transformer and audio-video bottleneck fusion."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmtlib.models.base import Audio, AVModel, AVOutput, Flags, Video
from mmtlib.models.fusion import BottleneckFusion, ConcatFusion, StreamHeads, audio_shares

MMT_SIZES = {
    "mmt_t": dict(audio="mat_t", video="mvitv2_t", dim=128, num_heads=4, fusion_layers=2),
    "mmt_s": dict(audio="mat_s", video="mvitv2_s", dim=384, num_heads=6, fusion_layers=4),
    "mmt_b": dict(audio="mat_b", video="mvitv2_b", dim=768, num_heads=12, fusion_layers=4),
}
FUSIONS = ("bottleneck", "concat", "late")


class ProjectionHead(nn.Sequential):
    """Features (B, D) -> unit-norm embeddings (B, 128) for the contrastive losses (SupCon's two-layer head)."""

    def __init__(self, dim: int, embedding_dim: int):
        super().__init__(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, embedding_dim))

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch embedding"]:
        return F.normalize(super().forward(features).float(), dim=-1)


class TwoStreams(AVModel):
    """forward(audio (B, 1, time, mel), video (B, 3, T, H, W)) -> AVOutput, for MMT and its peers alike.

    Either may be None, and `has_audio`, `has_video` may say per clip that a modality is absent: such a clip is
    classified from the other one. The embeddings are taken before the fusion, so that each is of one modality
    alone (our reading).

    An encoder gives (tokens (B, N, width), their grid) and has `dim`, its width, and `features(tokens)`, the vector
    (B, width) of a clip. `fusion`: "bottleneck" (the method), "concat" (full attention over both modalities' tokens) or
    "late" (none: the average of the logits), in layers of the width `dim`.
    """

    reads = "av"
    projects = True  # tokens to the width of the fusion; False: they have it

    def __init__(
        self,
        audio_encoder: nn.Module,
        video_encoder: nn.Module,
        num_classes: int,
        *,
        dim: int,
        num_heads: int = 1,
        fusion: str = "bottleneck",
        fusion_layers: int = 2,
        num_bottleneck: int = 4,
        embedding_dim: int = 128,
        dropout: float = 0.0,
    ):
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion {fusion!r} must be one of {FUSIONS}")
        self.audio_encoder, self.video_encoder = audio_encoder, video_encoder
        self.audio_project = nn.Linear(audio_encoder.dim, dim) if self.projects else nn.Identity()
        self.video_project = nn.Linear(video_encoder.dim, dim) if self.projects else nn.Identity()
        self.fusion = None
        if fusion == "bottleneck":
            self.fusion = BottleneckFusion(dim, num_heads, num_layers=fusion_layers, num_bottleneck=num_bottleneck)
        elif fusion == "concat":
            self.fusion = ConcatFusion(dim, num_heads, num_layers=fusion_layers)
        self.heads = StreamHeads(dim, num_classes, dropout)
        self.audio_embed = ProjectionHead(audio_encoder.dim, embedding_dim)
        self.video_embed = ProjectionHead(video_encoder.dim, embedding_dim)

    def forward(self, audio: Audio, video: Video, has_audio: Flags = None, has_video: Flags = None) -> AVOutput:
        share = audio_shares(audio, video, has_audio, has_video)
        audio_embedding = video_embedding = None
        if audio is not None:
            audio, _ = self.audio_encoder(audio)  # (B, Na, Da)
            audio_embedding = self.audio_embed(self.audio_encoder.features(audio))
            audio = self.audio_project(audio)
        if video is not None:
            video, _ = self.video_encoder(video)  # (B, Nv, Dv)
            video_embedding = self.video_embed(self.video_encoder.features(video))
            video = self.video_project(video)
        if self.fusion is not None:
            audio, video = self.fusion(audio, video, share)
        pooled_audio = None if audio is None else self.audio_encoder.features(audio)
        pooled_video = None if video is None else self.video_encoder.features(video)
        return AVOutput(*self.heads(pooled_audio, pooled_video, share), audio_embedding, video_embedding)


class MMT(TwoStreams):
    """The multiscale audio-video Transformer, of two multiscale encoders."""
