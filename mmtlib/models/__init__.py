"""The models, by name: `build_model("mmt_t", num_classes=18)`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmtlib.models.baselines import AST, MBT, MBT_SIZES, ASTClassifier
from mmtlib.models.fusion import AVOutput
from mmtlib.models.mat import MAT, build_mat
from mmtlib.models.mmt import MMT_SIZES, build_mmt
from mmtlib.models.mvit import MVIT, build_mvit, load_torchvision_mvit

__all__ = ["MODALITY", "AVOutput", "build_model", "load_torchvision_mvit", "resolved"]

MODALITY = dict.fromkeys(MAT | AST, "audio") | dict.fromkeys(MVIT, "video") | dict.fromkeys(MMT_SIZES | MBT_SIZES, "av")


def resolved(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model by its name, with `overrides` in their place. Raises ValueError for an unknown name."""
    for table in (MAT, AST, MVIT, MBT_SIZES):
        if name in table:
            return dict(table[name]) | dict(overrides)
    if name not in MMT_SIZES:
        raise ValueError(f"no model is called {name!r}; the names are {', '.join(MODALITY)}")
    settings = MMT_SIZES[name] | dict(overrides)
    for part, table in (("audio", MAT), ("video", MVIT)):
        settings[part] = table[MMT_SIZES[name][part]] | overrides.get(part, {})
    return settings


def build_model(
    name: str,
    num_classes: int,
    *,
    audio_size: Sequence[int] | None = None,
    video_size: Sequence[int] | None = None,
    **overrides,
) -> nn.Module:
    """A model by its name (a key of `MODALITY`), with freshly drawn weights.

    Audio models: forward(audio (B, 1, time, mel)) -> logits (B, K); video models: forward(video (B, 3, T, H, W))
    -> logits; models of both: forward(audio, video) -> AVOutput. `audio_size` (time, mel) and `video_size` (T, H, W)
    are the input sizes it is made for (one that it does not read is ignored); `overrides` replace other settings of
    that size of model. An input of any other size works too, if it holds a patch: positions are interpolated.
    Raises ValueError for an unknown name or setting, and for a size that is smaller than a patch.
    """
    audio = {} if audio_size is None else {"size": tuple(audio_size)}
    video = {} if video_size is None else {"size": tuple(video_size)}
    try:
        if name in MAT:
            return build_mat(name, num_classes, **overrides | audio)
        if name in AST:
            return ASTClassifier(num_classes, **AST[name] | overrides | audio)
        if name in MVIT:
            return build_mvit(name, num_classes, **overrides | video)
        if name in MMT_SIZES:
            parts = {"audio": overrides.pop("audio", {}) | audio, "video": overrides.pop("video", {}) | video}
            return build_mmt(name, num_classes, **parts, **overrides)
        if name in MBT_SIZES:
            sizes = {"audio_size": audio_size, "video_size": video_size}
            sizes = {key: value for key, value in sizes.items() if value is not None}
            return MBT(num_classes, **MBT_SIZES[name] | sizes | overrides)
    except TypeError as error:
        raise ValueError(f"model {name!r} cannot be built with {overrides}: {error}") from error
    raise ValueError(f"no model is called {name!r}; the names are {', '.join(MODALITY)}")
