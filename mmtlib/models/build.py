"""The models, by name: `build_model("mmt_t", num_classes=18)`."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmtlib.models.base import AVModel
from mmtlib.models.baselines import AST, MBT, MBT_SIZES, VIT, ASTClassifier, build_vit
from mmtlib.models.mat import MAT, build_mat
from mmtlib.models.mmt import MMT_SIZES, build_mmt
from mmtlib.models.mvit import MVIT, build_mvit
from mmtlib.models.resnet import RESNET, build_resnet

MODALITY = dict.fromkeys(MAT | AST, "audio") | dict.fromkeys(MVIT, "video") | dict.fromkeys(MMT_SIZES | MBT_SIZES, "av")
MODALITY |= {name: name.split("_")[1] for name in VIT | RESNET}


def resolved(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model by its name, with `overrides` in their place. Raises ValueError for an unknown name."""
    _known(name)
    settings = (MAT | AST | MVIT | VIT | RESNET | MBT_SIZES | MMT_SIZES)[name] | dict(overrides)
    if name in MMT_SIZES:
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
) -> AVModel:
    """A model by its name (a key of `MODALITY`), with freshly drawn weights.

    Audio models: forward(audio (B, 1, time, mel)) -> logits (B, K); video models: forward(video (B, 3, T, H, W))
    -> logits; models of both: forward(audio, video) -> AVOutput. `audio_size` (time, mel) and `video_size` (T, H, W)
    are the input sizes it is made for (one that it does not read is ignored); `overrides` replace other settings of
    that size of model. An input of any other size works too, if it holds a patch: positions are interpolated. ResNet is
    made for no size and takes any.
    Raises ValueError for an unknown name or setting, and for a size that is smaller than a patch.
    """
    _known(name)
    sizes = {"audio": audio_size, "video": video_size}
    sizes = {part: tuple(size) for part, size in sizes.items() if size is not None}
    audio, video = ({"size": sizes[part]} if part in sizes else {} for part in ("audio", "video"))
    try:
        if name in MAT:
            model = build_mat(name, num_classes, **overrides | audio)
        elif name in AST:
            model = ASTClassifier(num_classes, **AST[name] | overrides | audio)
        elif name in MVIT:
            model = build_mvit(name, num_classes, **overrides | video)
        elif name in VIT:
            model = build_vit(name, num_classes, **overrides | (audio if MODALITY[name] == "audio" else video))
        elif name in RESNET:
            model = build_resnet(name, num_classes, **overrides)
        elif name in MMT_SIZES:
            parts = {"audio": overrides.get("audio", {}) | audio, "video": overrides.get("video", {}) | video}
            model = build_mmt(name, num_classes, **overrides | parts)
        else:
            given = {f"{part}_size": size for part, size in sizes.items()}
            model = MBT(num_classes, **MBT_SIZES[name] | overrides | given)
    except TypeError as error:
        raise ValueError(f"model {name!r} cannot be built with {overrides}: {error}") from error
    given = {f"{part}_size": list(size) for part, size in sizes.items()}
    model.about = {"name": name, "num_classes": num_classes, "overrides": given | overrides}
    return model


def _known(name: str) -> None:
    if name not in MODALITY:
        raise ValueError(f"no model is called {name!r}; the names are {', '.join(MODALITY)}")
