"""Models that start from other data: weights of timm (ImageNet), torchvision (Kinetics-400), AST's authors (AudioSet).

With two axes and three channels our core is MViTv2 (Li et al., CVPR 2022). MAT and the video encoder take what has a
counterpart in them and keep what they drew of the rest: the class token and the tables of absolute positions. The peers
start as they were published: AST from a distilled DeiT, MBT from a ViT, and ResNet-18 from its own.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmtlib.files import digest, write_bytes
from mmtlib.models.base import HUB_FILE, AVModel
from mmtlib.models.baselines import AST, MBT, MBT_SIZES, VIT, ASTClassifier, resize_positions
from mmtlib.models.build import modality_of, resolved
from mmtlib.models.hub import WeightsError, load_encoder, load_weights, origin
from mmtlib.models.mat import MAT
from mmtlib.models.mmt import MMT_SIZES, TwoStreams
from mmtlib.models.multiscale import Grid, MultiscaleClassifier, MultiscaleEncoder
from mmtlib.models.mvit import MVIT, load_named, load_torchvision_mvit, our_name
from mmtlib.models.resnet import RESNET
from mmtlib.overlays import ROOT

# `init`: the models that start from it, the repository on the hub or torchvision's name, the settings they must have.
PUBLISHED = {
    "imagenet": [
        (MAT | MVIT, "timm/mvitv2_tiny.fb_in1k", {"dim": 96, "depths": [1, 2, 5, 2]}),
        (MAT | MVIT, "timm/mvitv2_small.fb_in1k", {"dim": 96, "depths": [1, 2, 11, 2]}),
        (MAT | MVIT, "timm/mvitv2_base.fb_in1k", {"dim": 96, "depths": [2, 3, 16, 3]}),
        (AST, "timm/deit_base_distilled_patch16_384.fb_in1k", {"dim": 768, "num_heads": 12}),
        (VIT | MBT_SIZES, "timm/vit_base_patch16_224.augreg_in21k", {"dim": 768, "num_heads": 12}),
        (RESNET, "timm/resnet18.tv_in1k", {}),
    ],
    "kinetics": [(MVIT, "mvit_v2_s", {"dim": 96, "depths": [1, 2, 11, 2]})],
    "audioset": [(AST, "MIT/ast-finetuned-audioset-10-10-0.4593", {"dim": 768, "depth": 12, "num_heads": 12})],
}
KINETICS = "https://download.pytorch.org/models/mvit_v2_s-ae3be167.pth"
WHOSE = "timm's mvitv2_tiny, mvitv2_small or mvitv2_base"
PEERS = "timm's distilled DeiT (for AST), ViT (for MBT and its encoders) or ResNet-18"
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
    words = {BLOCK: lambda found: f"blocks.{sum(depths[: int(found[1])]) + int(found[2])}."} | _OUR_WORDS
    words |= {"rel_pos_h": f"rel_pos.{axes - 2}", "rel_pos_w": f"rel_pos.{axes - 1}"}
    for key, value in state_dict.items():
        name, value = our_name(key, words), value.float()
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
    own, wide = encoder.depths, encoder.blocks[0].norm1.normalized_shape[0]
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


def load_timm_peer(model: AVModel, state_dict: Mapping[str, Tensor]) -> None:
    """Load timm's weights of a distilled DeiT into AST, of a ViT into MBT or its encoders, of ResNet-18, in place.

    As the authors of AST and MBT do it: a spectrogram is a grey picture, so kernels are summed over the colours; those
    of films are a picture's in the middle of their time; positions are interpolated, AST's cut from the middle along an
    axis that has fewer, and repeated over time; both streams of MBT take all blocks and the last norm. Heads and
    bottleneck tokens stay as they were built. Raises ValueError if the weights are of another model.
    """
    first = len(model.audio_encoder.blocks) if isinstance(model, MBT) else 0  # the block that the fusion begins with
    words = {r"^fusion\.(?:\w+_)?blocks\.(\d+)": lambda found: f"blocks.{first + int(found[1])}"} | _THEIR_WORDS
    tensors, is_ast = {}, isinstance(model, ASTClassifier)
    for name, like in model.state_dict().items():
        key = our_name(name, words).removeprefix("encoder.")
        if name.startswith(_LEFT) or key not in state_dict:
            continue
        value = state_dict[key]
        if third := re.search(r"\.([qkv])_proj", name):
            value = value.chunk(3)["qkv".index(third[1])]
        if value.ndim == 4:
            value = _as_ours(value.sum(1, keepdim=True) if like.shape[1] == 1 else value, like, patch=True)
        if key == "pos_embed":
            grid = (model if is_ast else getattr(model, name.split(".")[0])).positions_grid
            value = _positions(value, (math.isqrt(value.shape[1]),) * 2, grid, cut=is_ast)
        tensors[name] = key, value
    kinds = {key: re.sub(r"^blocks\.\d+", "blocks", key) for key in state_dict if not key.startswith(("head", "fc."))}
    known = {kinds[key] for key, _ in tensors.values()}  # of fewer blocks than there are the last ones are not needed
    tensors |= {key: (key, state_dict[key]) for key, kind in kinds.items() if kind not in known}
    load_named(model, tensors, PEERS, _LEFT)


_LEFT = ("head.", "heads.audio_head.", "heads.video_head.", "fusion.bottleneck", "audio_embed.", "video_embed.")
_THEIR_WORDS = {
    r"^(?:audio_|video_)?encoder\.(?:embeddings\.)?": "",
    r"^heads\.\w+_norm|^layernorm": "norm",
    r"^class_token": "cls_token",
    r"^distillation": "dist",
    r"^position(?:_embeddings)?$": "pos_embed",
    r"^patch_embed(?:dings\.projection)?": "patch_embed.proj",
    r"^layers": "blocks",
    r"\.layernorm_before": ".norm1",
    r"\.layernorm_after": ".norm2",
    r"\.attention\.[qkv]_proj": ".attn.qkv",
    r"\.self_attn\.in_proj_": ".attn.qkv.",
    r"\.(?:attention\.o|self_attn\.out)_proj": ".attn.proj",
    r"\.linear": ".mlp.fc",
}


def _positions(table: Float[Tensor, "1 rows dim"], own: Grid, grid: Grid, cut: bool) -> Float[Tensor, "1 new dim"]:
    """Positions of a picture of `own` patches on another grid, the same for each step in time."""
    prefix, places = table.tensor_split([table.shape[1] - math.prod(own)], dim=1)
    places = places.unflatten(1, own)
    for axis, (side, length) in enumerate(zip(own, grid[-2:], strict=True), start=1) if cut else ():
        if length < side:
            places = places.narrow(axis, side // 2 - length // 2, length)
    places = resize_positions(places.flatten(1, 2), tuple(places.shape[1:3]), grid[-2:])
    return torch.cat((prefix, *[places] * math.prod(grid[:-2])), dim=1)


def load_audioset_ast(model: ASTClassifier, state_dict: Mapping[str, Tensor]) -> None:
    """Load what AST's authors trained on AudioSet, as transformers names it in its files, into AST, in place.

    Their inputs had a spread of 1/2 where ours have 1, so the patch kernels are halved (our reading). Positions are cut
    or interpolated, as between the authors' sets; the head stays as it was built. Raises ValueError if the weights are
    of another model.
    """
    tensors = {}
    for key, value in state_dict.items():
        name = our_name(key, _AST_WORDS)
        if name.endswith("projection.weight"):
            value = value / 2
        if name.endswith("position_embeddings"):  # of 128 mel bands in steps of 10, after two class tokens
            value = _positions(value, (12, (value.shape[1] - 2) // 12), model.positions_grid, cut=True)
        if not key.startswith("classifier."):
            tensors[name] = key, value
    load_named(model, tensors, "transformers' ASTForAudioClassification")


_AST_WORDS = {
    r"^audio_spectrogram_transformer\.": "",
    r"^encoder\.layer\.": "layers.",
    r"\.attention\.attention\.(.)\w+": r".attention.\1_proj",
    r"\.attention\.output\.dense": ".attention.o_proj",
    r"\.intermediate\.dense": ".mlp.fc1",
    r"\.output\.dense": ".mlp.fc2",
}


def outside_files(name: str, init: str, overrides: Mapping[str, Any]) -> dict[str, Path]:
    """What a model reads -> the file of timm's weights that it starts from; most start from none.

    `init` is a path from the repository, or a key of PUBLISHED: the weights for the model's shape, in weights/, fetched
    there once. Raises ValueError for a model that cannot start so, WeightsError where there is no file.
    """
    if init in ("scratch", "pretrained"):
        return {}
    part = modality_of(name)
    if name in MMT_SIZES:
        raise ValueError(f"{name} cannot start from {init}, its encoders can; set its `init` to scratch or pretrained")
    path, fetch = ROOT / init, f"a safetensors file of {WHOSE if name in MAT | MVIT else PEERS} and put it there"
    if init in PUBLISHED:
        own = resolved(name, overrides)
        shapes = {theirs: shape for names, theirs, shape in PUBLISHED[init] if name in names}
        fits = [theirs for theirs, shape in shapes.items() if shape == {key: own[key] for key in shape}]
        if not fits:
            known = " or ".join(f"{shape} ({theirs})" for theirs, shape in shapes.items())
            remedy = f"set its overrides to {known}" if known else "set its `init` to scratch or imagenet"
            raise ValueError(f"no weights of {init} have the shape of {name}; {remedy}")
        path = ROOT / f"weights/{Path(fits[0]).stem}.safetensors"
        url = f"https://huggingface.co/{fits[0]}/resolve/main/{HUB_FILE}"
        fetch = f"{url}, which the hub did not give, and put it there"
        if init == "kinetics":
            fetch = f"{KINETICS}, which torch did not get, to {torch.hub.get_dir()}/checkpoints"
        if not path.is_file():
            try:
                write_bytes(path, _published(init, fits[0]))
            except (OSError, ValueError, RuntimeError) as error:  # no connection, half a file, a full disk
                fetch += f" ({' '.join(str(error).split())})"
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; fetch {fetch}")
    return {part: path}


def _published(init: str, theirs: str) -> bytes:
    """Published weights as safetensors: those of the hub are, torchvision's are read as tensors and nothing else."""
    if init == "kinetics":
        return save(torch.hub.load_state_dict_from_url(KINETICS, check_hash=True, weights_only=True))
    return Path(hf_hub_download(theirs, HUB_FILE)).read_bytes()


def start(model: AVModel, part: str, path: Path) -> dict[str, Any]:
    """Start an encoder of a model from a file, in place; returns what it is, as hub.origin does.

    The `part` (audio, video) of a model of both starts from weights of ours; all that a model reads from those of
    others, whose head is left out. Raises ValueError for a file that is damaged, neither or does not fit.
    """
    if isinstance(model, TwoStreams) and part != "av":
        load_encoder(getattr(model, f"{part}_encoder"), load_weights(path)[0])
        return origin(path)
    name = model.about["name"]
    try:
        tensors = {key: x for key, x in load_file(path).items() if not key.startswith("head.")}
        load = load_timm_mvit if isinstance(model, MultiscaleClassifier) else load_timm_peer
        if name in MVIT and "conv_proj.weight" in tensors:
            load = load_torchvision_mvit
        elif name in AST and "classifier.dense.weight" in tensors:
            load = load_audioset_ast
        load(model, tensors)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{name} cannot start from {path}: {error}; else set its `init` to scratch") from error
    return {"name": f"weights of others ({path.name})", "key": digest(path.read_bytes()), "stats": {}}
