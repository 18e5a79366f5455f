"""What all models have in common: one call with logits and embeddings, and a place on the Hugging Face hub."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmtlib.files import write_json
from mmtlib.models.ops import Dropout

HUB_FILE = "model.safetensors"  # the name of a model's weights in a folder or repository of its own
Audio = Float[Tensor, "batch 1 time mel"] | None  # None: not given
Video = Float[Tensor, "batch 3 frames height width"] | None
Flags = Bool[Tensor, " batch"] | None  # which clips have a modality; None: all that were given it


class AVOutput(NamedTuple):
    """What every model says of a batch, in training and evaluation alike.

    The embeddings of a model of both modalities have unit norm and are taken before the fusion; that of a model of one
    modality is what its head reads.
    """

    logits: Float[Tensor, "batch classes"]  # the average of the streams that are there
    audio_logits: Float[Tensor, "batch classes"] | None  # None: no audio was given
    video_logits: Float[Tensor, "batch classes"] | None
    audio_embedding: Float[Tensor, "batch embedding"] | None
    video_embedding: Float[Tensor, "batch embedding"] | None

    @property
    def embedding(self) -> Float[Tensor, "batch embeddings"]:
        """The embeddings that are there, side by side."""
        return torch.cat([z for z in (self.audio_embedding, self.video_embedding) if z is not None], dim=-1)


pytree._register_namedtuple(AVOutput, serialized_type_name="mmtlib.AVOutput")  # else torch.export cannot save it


class AVModel(nn.Module, ModelHubMixin, library_name="mmtlib", license="apache-2.0"):
    """The base of all models.

    `read` is the call that training and evaluation make. `about` is what a weights file says of the model: name,
    num_classes, all settings as overrides, and what training adds to that.
    """

    reads: str  # "audio", "video" or "av"
    about: dict[str, Any]

    def read(self, audio: Audio, video: Video, has_audio: Flags = None, has_video: Flags = None) -> AVOutput:
        """Logits and embeddings; a model ignores what it does not read. The flags say which clips have it."""
        return self(audio, video, has_audio, has_video)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options) -> "AVModel":
        """See `mmtlib.models.from_pretrained`; besides, WeightsError for a model of another class."""
        from mmtlib.models import hub  # which knows all models

        model = hub.from_pretrained(pretrained_model_name_or_path, **options)
        if not isinstance(model, cls):
            name, own = model.about["name"], type(model).__name__
            raise hub.WeightsError(f"{pretrained_model_name_or_path} is {name}; use {own}.from_pretrained for it")
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        from mmtlib.models.hub import save_model

        save_model(save_directory / HUB_FILE, self)
        write_json(save_directory / "config.json", self.about)

    def generate_model_card(self, **given) -> ModelCard:
        """The card of `save_pretrained` and `push_to_hub`, which take `given` as `model_card_kwargs`."""
        from mmtlib.models.card import model_card

        return model_card(self.about, parameters=sum(weight.numel() for weight in self.parameters()), **given)


class Reading(nn.Module):
    """`read` as a forward pass, for what calls nothing else: DistributedDataParallel."""

    def __init__(self, model: AVModel):
        super().__init__()
        self.model = model

    def forward(self, *inputs) -> AVOutput:
        return self.model.read(*inputs)


class OneModality(AVModel):
    """A classifier of audio or of video: forward(x) -> logits (B, K).

    A subclass sets `reads`, `dropout` and `head` and has `features(x)`, the vector (B, D) that the head reads.
    """

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.dropout(self.features(x)))

    def read(self, audio, video, has_audio=None, has_video=None) -> AVOutput:
        features = self.dropout(self.features(audio if self.reads == "audio" else video))
        logits = self.head(features)
        if self.reads == "audio":
            return AVOutput(logits, logits, None, features, None)
        return AVOutput(logits, None, logits, None, features)


class StreamClassifier(OneModality):
    """One encoder of a model of both modalities, by itself: its vector of a clip, a norm where one is given, a head.

    `encoder` is such as `mmt.TwoStreams` has; once trained it can start that model's.
    """

    def __init__(self, reads: str, encoder: nn.Module, num_classes: int, dropout: float, norm: nn.Module | None = None):
        super().__init__()
        self.reads, self.encoder, self.norm = reads, encoder, norm or nn.Identity()
        self.head, self.dropout = nn.Linear(encoder.dim, num_classes), Dropout(dropout)

    def features(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch dim"]:
        return self.norm(self.encoder.features(self.encoder(x)[0]))
