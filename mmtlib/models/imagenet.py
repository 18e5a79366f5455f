"""Encoders that start from pictures: timm's MViTv2 (Li et al., CVPR 2022), trained on ImageNet.

With two axes and three channels our core is the same network. MAT and the video encoder take what has a counterpart in
them and keep what they drew of the rest: the class token and the tables of absolute positions.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmtlib.files import digest, write_bytes
from mmtlib.models.base import HUB_FILE, AVModel
from mmtlib.models.build import modality_of, resolved
from mmtlib.models.hub import WeightsError, load_encoder, load_weights, origin
from mmtlib.models.mat import MAT
from mmtlib.models.mmt import TwoStreams
from mmtlib.models.multiscale import MultiscaleClassifier, MultiscaleEncoder
from mmtlib.models.mvit import MVIT, load_named, our_name
from mmtlib.overlays import ROOT

# Blocks of each stage -> timm's name; all begin 96 wide.
SIZES = {(1, 2, 5, 2): "mvitv2_tiny", (1, 2, 11, 2): "mvitv2_small", (2, 3, 16, 3): "mvitv2_base"}
WHOSE = "timm's mvitv2_tiny, mvitv2_small or mvitv2_base"
PATCH, TABLE = "patch_embed.proj.weight", "stages.0.blocks.0.attn.rel_pos_h"
BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")


def load_timm_mvit(model: MultiscaleClassifier, state_dict: Mapping[str, Tensor]) -> None:
    """Load the weights of timm's `mvitv2_tiny`, `_small` or `_base` into a multiscale model of that shape, in place.

    A spectrogram's time lies along the height. MAT's patches take the mean of the colours, enlarged to 16 x 16 (our
    reading: as AST takes a ViT's; more pixels make up for fewer colours). Over an axis that a stage of MAT does not
    pool, a pooling kernel is summed. Frames are at first read one by one: a kernel stands in the middle of its time,
    all else being 0 (ViViT's inflation; Arnab et al., ICCV 2021), and so are the tables of time. A still film then
    gives what the picture does, at its ends, too, where kernels repeated over time (I3D's) would meet the padding.
    Relative positions are interpolated; a head of another number of classes stays as it was built.
    Raises ValueError if the weights are of another model, or the model is of another shape.
    """
    own, axes = model.state_dict(), len(model.encoder.patch_stride)
    depths, tensors = _checked_depths(model.encoder, state_dict), {}
    for key, value in state_dict.items():
        name, value = _our_name(key, depths, axes), value.float()
        like = own.get(name)
        tensors[name] = key, value if like is None or value.ndim != 4 else _as_ours(value, like, key == PATCH)
    if axes == 3:
        tensors |= {name: (name, torch.zeros_like(own[name])) for name in own if name.endswith(".rel_pos.0")}
    load_named(model, tensors, WHOSE, left=("head.", "encoder.class_token", "encoder.positions."))


def _checked_depths(encoder: MultiscaleEncoder, state_dict: Mapping[str, Tensor]) -> list[int]:
    """Blocks of each stage; ValueError unless the encoder has as many, as wide, all pooled, and patches."""
    if not {PATCH, TABLE} <= state_dict.keys() or state_dict[TABLE].shape[1] != len(state_dict[PATCH]):
        raise ValueError(f"these are no weights of {WHOSE}")
    stages = [int(stage) for stage, _ in {match.groups() for match in map(BLOCK.match, state_dict) if match}]
    depths, dim = [stages.count(stage) for stage in sorted(set(stages))], len(state_dict[PATCH])
    begins = [number for number, block in enumerate(encoder.blocks) if number == 0 or block.project is not None]
    own = [end - begin for begin, end in pairwise([*begins, len(encoder.blocks)])]
    wide = encoder.blocks[0].norm1.normalized_shape[0]
    lacks = " with a stem" * isinstance(encoder.patch_embed, nn.Sequential)
    lacks += " with stages without pooling" * any(block.attention.pool_q is None for block in encoder.blocks)
    if lacks or (own, wide) != (depths, dim):
        found = f"the weights have depths {depths} and dim {dim}, the encoder has depths {own} and dim {wide}{lacks}"
        more = f", stem: 0, pooling: [{', '.join(['both'] * len(depths))}]" if encoder.in_channels == 1 else ""
        raise ValueError(f"{found}; set its overrides depths: {depths}, dim: {dim}{more}")
    return depths


def _as_ours(kernel: Float[Tensor, "out colours height width"], like: Tensor, patch: bool) -> Tensor:
    """A picture's kernel as ours of two or three axes, as `load_timm_mvit` says."""
    if patch:
        kernel = kernel.mean(1, keepdim=True) if like.shape[1] == 1 else kernel
        kernel = F.interpolate(kernel, size=like.shape[-2:], mode="bilinear")
    for axis in (-2, -1):
        kernel = kernel.sum(axis, keepdim=True) if like.shape[axis] == 1 else kernel
    before = like.shape[2] // 2
    return kernel if like.ndim == 4 else F.pad(kernel[:, :, None], (0, 0, 0, 0, before, like.shape[2] - 1 - before))


_OUR_WORDS = {
    r"patch_embed\.proj": "patch_embed",
    r"cls_token": "class_token",
    r"\.attn\.proj": ".attention.project",
    r"\.attn\.norm_(.)": r".attention.pool_\1.norm",
    r"\.attn": ".attention",
    r"\.shortcut_proj_attn": ".project",
    r"\.fc1": ".0",
    r"\.fc2": ".2",
    r"head\.fc": "head",
}


def _our_name(key: str, depths: Sequence[int], axes: int) -> str:
    key = BLOCK.sub(lambda match: f"blocks.{sum(depths[: int(match[1])]) + int(match[2])}.", key)
    key = key.replace("rel_pos_h", f"rel_pos.{axes - 2}").replace("rel_pos_w", f"rel_pos.{axes - 1}")
    return our_name(key, _OUR_WORDS)


def outside_files(name: str, init: str, overrides: Mapping[str, Any]) -> dict[str, Path]:
    """part -> the file of timm's weights that a model of audio or video starts from; most start from none.

    `init` is a path from the repository, or "imagenet": the weights for the model's depths, in weights/, fetched there
    from the hub. Raises ValueError for a model that cannot start so, WeightsError where there is no file.
    """
    if init in ("scratch", "pretrained"):
        return {}
    if name not in MAT | MVIT:
        known = f"only MAT and MViTv2 can; set its `init` to scratch{' or pretrained' * (modality_of(name) == 'av')}"
        raise ValueError(f"{name} cannot start from {init}, {known}")
    depths, path, what = resolved(name, overrides)["depths"], ROOT / init, f"a safetensors file of {WHOSE}"
    if init == "imagenet":
        size = SIZES.get(tuple(depths))
        if size is None:
            known = " or ".join(f"{list(depths)} ({size})" for depths, size in SIZES.items())
            raise ValueError(f"no ImageNet weights have {name}'s depths; set its overrides dim: 96, depths: {known}")
        path, repository = ROOT / f"weights/{size}.safetensors", f"timm/{size}.fb_in1k"
        what = f"https://huggingface.co/{repository}/resolve/main/{HUB_FILE}, which the hub did not give,"
        with suppress(OSError, ValueError):  # no connection
            if not path.is_file():
                write_bytes(path, Path(hf_hub_download(repository, HUB_FILE)).read_bytes())
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; fetch {what} and put it there")
    return {modality_of(name): path}


def start(model: AVModel, part: str, path: Path) -> dict[str, Any]:
    """Start an encoder of a model from a file, in place; returns what it is, as hub.origin does.

    The `part` (audio, video) of a model of both starts from weights of ours, a model of that part alone from timm's,
    whose head is left out. Raises ValueError for a file that is damaged, neither or does not fit.
    """
    if isinstance(model, TwoStreams):
        load_encoder(getattr(model, f"{part}_encoder"), load_weights(path)[0])
        return origin(path)
    name = model.about["name"]
    if not isinstance(model, MultiscaleClassifier):
        raise ValueError(f"{name} has no encoders to start from; set its `init` to scratch")
    try:
        load_timm_mvit(model, {key: x for key, x in load_file(path).items() if not key.startswith("head.")})
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{name} cannot start from {path}: {error}; else set its `init` to scratch") from error
    return {"name": f"weights of timm ({path.name})", "key": digest(path.read_bytes()), "stats": {}}
