"""The models, by name: `build_model("mmt_t", num_classes=18)`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmtlib.models.base import AVModel, StreamClassifier
from mmtlib.models.baselines import AST, MBT, MBT_SIZES, VIT, ASTClassifier, ViTStream
from mmtlib.models.mat import MAT, mat_encoder
from mmtlib.models.mmt import MMT, MMT_SIZES
from mmtlib.models.multiscale import MultiscaleClassifier
from mmtlib.models.mvit import MVIT, mvit_encoder
from mmtlib.models.resnet import RESNET, FrameStream, ResNetAV, ResNetStream

Size = Sequence[int] | None  # of an input: (time, mel) or (T, H, W)
MODALITY = dict.fromkeys(MAT | AST, "audio") | dict.fromkeys(MVIT, "video") | dict.fromkeys(MMT_SIZES | MBT_SIZES, "av")
MODALITY |= {name: name.split("_")[1] for name in VIT | RESNET}


def modality_of(name: str) -> str:
    """What a model reads, "audio", "video" or "av". Raises ValueError for an unknown name."""
    if name not in MODALITY:
        raise ValueError(f"no model is called {name!r}; the names are {', '.join(MODALITY)}")
    return MODALITY[name]


def resolved(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a model by its name, with `overrides` in their place, as JSON has them.

    The size of the input is none of them, unless `overrides` give it. Raises ValueError for an unknown name.
    """
    modality_of(name)
    table = (MAT | AST | MVIT | VIT | RESNET | MBT_SIZES | MMT_SIZES)[name]
    whole = {key: value for key, value in table.items() if not key.endswith("size")} | dict(overrides)
    if name in MMT_SIZES:
        whole |= {part: resolved(table[part], overrides.get(part, {})) for part in ("audio", "video")}
    return json.loads(json.dumps(whole))


def build_model(
    name: str, num_classes: int, *, audio_size: Size = None, video_size: Size = None, **overrides
) -> AVModel:
    """A model by its name (a key of `MODALITY`), with freshly drawn weights.

    Audio models: forward(audio (B, 1, time, mel)) -> logits (B, K); video models: forward(video (B, 3, T, H, W))
    -> logits; models of both: forward(audio, video) -> AVOutput. `audio_size` (time, mel) and `video_size` (T, H, W)
    are the input sizes it is made for (one that it does not read is ignored); `overrides` replace other settings of
    that size of model. An input of any other size works too, if it holds a patch: positions are interpolated. ResNet is
    made for no size and takes any.
    Raises ValueError for an unknown name or setting, and for a size that is smaller than a patch.
    """
    reads, given = modality_of(name), {"audio": audio_size, "video": video_size}
    sizes = {part: {"size": tuple(size)} for part, size in given.items() if size is not None}
    given = {f"{part}_size": list(size["size"]) for part, size in sizes.items()}
    settings = overrides | ({} if name in RESNET else sizes.get(reads, {}))
    dropout = settings.pop("dropout", 0.0)
    try:
        if name in MAT:
            model = MultiscaleClassifier(mat_encoder(**MAT[name] | settings), num_classes, dropout)
        elif name in MVIT:
            model = MultiscaleClassifier(mvit_encoder(**MVIT[name] | settings), num_classes, dropout)
        elif name in AST:
            model = ASTClassifier(num_classes, **AST[name] | settings, dropout=dropout)
        elif name in VIT:
            encoder = ViTStream({"audio": 1, "video": 3}[reads], **VIT[name] | settings)
            model = StreamClassifier(reads, encoder, num_classes, dropout, nn.LayerNorm(encoder.dim, eps=1e-6))
        elif name == "resnet18_av":
            model = ResNetAV(num_classes, **RESNET[name] | overrides)
        elif name in RESNET:
            encoder = ResNetStream(1, **settings) if reads == "audio" else FrameStream(**RESNET[name] | settings)
            model = StreamClassifier(reads, encoder, num_classes, dropout)
        elif name in MMT_SIZES:
            own = {part: overrides.get(part, {}) | sizes.get(part, {}) for part in ("audio", "video")}
            audio = mat_encoder(**MAT[MMT_SIZES[name]["audio"]] | own["audio"])
            video = mvit_encoder(**MVIT[MMT_SIZES[name]["video"]] | own["video"])
            config = {key: value for key, value in (MMT_SIZES[name] | overrides).items() if key not in own}
            model = MMT(audio, video, num_classes, **config)
        else:
            model = MBT(num_classes, **MBT_SIZES[name] | overrides | given)
    except TypeError as error:
        raise ValueError(f"model {name!r} cannot be built with {overrides}: {error}") from error
    model.about = {"name": name, "num_classes": num_classes, "overrides": resolved(name, overrides) | given}
    return model
