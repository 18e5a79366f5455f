"""The video encoder, MViTv2: the multiscale core on frames (time x height x width).

`mvitv2_s` is torchvision's `mvit_v2_s` and takes its weights; `mvitv2_b` is MViTv2-B 32x3 (Li et al., 2022).
Time is never pooled after the patch embedding, as in MViTv2. `mvitv2_t`, for small sets, has `mat_t`'s stem.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmtlib.models.multiscale import MultiscaleClassifier, MultiscaleEncoder, Stage
from mmtlib.models.ops import fit_tables

STEM = ((1, 2, 2), (2, 2, 2), (2, 2, 2))  # in the place of the patches below, which an empty one brings back
SMALL = dict(stride_kv=(1, 2, 2), patch_kernel=(5, 9, 9), patch_stride=(4, 8, 8), class_token=False, stem=STEM)
LARGE = dict(dim=96, stride_kv=(1, 8, 8), patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4), recompute=True)
MVIT = {
    "mvitv2_t": dict(depths=(1, 1, 1), dim=48, size=(16, 64, 64), drop_path=0.1, absolute_positions=True, **SMALL),
    "mvitv2_s": dict(depths=(1, 2, 11, 2), size=(16, 224, 224), drop_path=0.2, **LARGE),
    "mvitv2_b": dict(depths=(2, 3, 16, 3), size=(32, 224, 224), drop_path=0.3, **LARGE | {"recompute": "blocks"}),
}


def mvit_encoder(*, depths: Sequence[int], dim: int, patch_kernel: Sequence[int], **options) -> MultiscaleEncoder:
    """The encoder of MViTv2; width and heads double at each stage. `options` are those of MultiscaleEncoder."""
    strides = [(1, 2, 2) if index else (1, 1, 1) for index in range(len(depths))]
    return MultiscaleEncoder(
        in_channels=3,
        patch_kernel=patch_kernel,
        patch_padding=tuple(k // 2 for k in patch_kernel),
        stages=[Stage(depths[i], dim * 2**i, 2**i, stride, (3, 3, 3)) for i, stride in enumerate(strides)],
        **dict(class_token=True, absolute_positions=False) | options,
    )


def load_torchvision_mvit(model: MultiscaleClassifier, state_dict: Mapping[str, Tensor]) -> None:
    """Load the weights of torchvision's `mvit_v2_s` into `mvitv2_s`, in place.

    Relative-position tables of another input size are interpolated. A head of another number of classes is left
    as it was built. Raises ValueError if the weights are not of that model.
    """
    tensors = {}
    for key, value in state_dict.items():
        value = value.view(1, 1, -1) if key == "pos_encoding.class_token" else value
        tensors[our_name(key, _OUR_WORDS)] = (key, value)
    load_named(model, tensors, "torchvision's mvit_v2_s")


def load_named(
    model: nn.Module, tensors: Mapping[str, tuple[str, Tensor]], whose: str, left: tuple[str, ...] = ("head.",)
) -> None:
    """Load weights that come from another library: our name -> its name and the tensor; all of them or none.

    Position tables of another input size are interpolated. A head of another number of classes stays as it was built,
    and so does what begins with one of `left` where it is not given. Raises ValueError for a tensor that has no place,
    has another shape or is not there.
    """
    own, loaded = model.state_dict(), {}
    for name, value in fit_tables({name: value for name, (_, value) in tensors.items()}, own).items():
        key = tensors[name][0]
        if name not in own:
            raise ValueError(f"{key!r} has no place in this model; give the state_dict of {whose}")
        if value.shape == own[name].shape:
            loaded[name] = value
        elif not name.startswith("head."):
            shapes = f"{tuple(value.shape)} where this model has {tuple(own[name].shape)}"
            raise ValueError(f"{key!r} has shape {shapes}; give the state_dict of {whose}")
    missing = [name for name in own if name not in loaded and not name.startswith(left)]
    if missing:
        raise ValueError(f"the state_dict lacks {missing[0]!r} and {len(missing) - 1} more; give that of {whose}")
    model.load_state_dict(loaded, strict=False)


_OUR_WORDS = {
    r"conv_proj\.": "patch_embed.",
    r"pos_encoding\.class_token": "class_token",
    r"\.attn\.project\.0\.": ".attention.project.",
    r"\.attn\.": ".attention.",
    r"\.pool\.weight": ".weight",
    r"\.norm_act\.0\.": ".norm.",
    r"\.rel_pos_t": ".rel_pos.0",
    r"\.rel_pos_h": ".rel_pos.1",
    r"\.rel_pos_w": ".rel_pos.2",
    r"\.mlp\.3\.": ".mlp.2.",
    r"head\.1\.": "head.",
}


def our_name(key: str, words: Mapping) -> str:
    """Another library's name of a weight as ours: `words` are patterns and what re.sub puts in their place."""
    for theirs, ours in words.items():
        key = re.sub(theirs, ours, key)
    return key if key.startswith("head.") else f"encoder.{key}"
