"""The video encoder, MViTv2: the multiscale core on frames (time x height x width).

`mvitv2_s` is torchvision's `mvit_v2_s` and takes its weights; `mvitv2_b` is MViTv2-B 32x3 (Li et al., 2022).
Time is never pooled after the patch embedding, as in MViTv2.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmtlib.models.multiscale import MultiscaleClassifier, MultiscaleEncoder, Stage, resize_table

CUBE = dict(patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4), recompute=True)
MVIT = {
    "mvitv2_t": dict(
        depths=(1, 1, 1),
        dim=64,
        size=(16, 64, 64),
        stride_kv=(1, 2, 2),
        drop_path=0.1,
        class_token=False,
        absolute_positions=True,
        patch_kernel=(5, 9, 9),
        patch_stride=(4, 8, 8),
    ),
    "mvitv2_s": dict(depths=(1, 2, 11, 2), dim=96, size=(16, 224, 224), stride_kv=(1, 8, 8), drop_path=0.2, **CUBE),
    "mvitv2_b": dict(depths=(2, 3, 16, 3), dim=96, size=(32, 224, 224), stride_kv=(1, 8, 8), drop_path=0.3, **CUBE),
}


def mvit_encoder(
    *,
    depths: Sequence[int],
    dim: int,
    size: Sequence[int],
    stride_kv: Sequence[int],
    drop_path: float,
    patch_kernel: Sequence[int],
    patch_stride: Sequence[int],
    class_token: bool = True,
    absolute_positions: bool = False,
    recompute: bool = False,
) -> MultiscaleEncoder:
    """The encoder of MViTv2 for clips of `size` (frames, height, width); width and heads double at each stage."""
    stages = tuple(
        Stage(depth, dim * 2**index, 2**index, (1, 2, 2) if index else (1, 1, 1), (3, 3, 3))
        for index, depth in enumerate(depths)
    )
    return MultiscaleEncoder(
        in_channels=3,
        size=tuple(size),
        patch_kernel=tuple(patch_kernel),
        patch_stride=tuple(patch_stride),
        patch_padding=tuple(k // 2 for k in patch_kernel),
        stages=stages,
        stride_kv=tuple(stride_kv),
        class_token=class_token,
        absolute_positions=absolute_positions,
        drop_path=drop_path,
        recompute=recompute,
    )


def build_mvit(name: str, num_classes: int, *, dropout: float = 0.0, **overrides) -> MultiscaleClassifier:
    """MViTv2 by its name: forward(video (B, 3, T, H, W)) -> logits (B, K)."""
    return MultiscaleClassifier(mvit_encoder(**MVIT[name] | overrides), num_classes, dropout)


def fit_tables(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of multiscale encoders trained at another input size, their position tables resized as in `own`.

    `own` is the state_dict that they shall go into. A table is what an encoder calls `rel_pos` or `positions`, (rows,
    width), interpolated if the rows alone differ. All else stays as it is, for `load_state_dict` to judge.
    """
    fitted = dict(tensors)
    for name in fitted.keys() & own.keys():
        like = own[name]
        if {"rel_pos", "positions"} & set(name.split(".")) and fitted[name].shape[1:] == like.shape[1:]:
            fitted[name] = resize_table(fitted[name], len(like))
    return fitted


def load_torchvision_mvit(model: MultiscaleClassifier, state_dict: Mapping[str, Tensor]) -> None:
    """Load the weights of torchvision's `mvit_v2_s` into `mvitv2_s`, in place.

    Relative-position tables of another input size are interpolated. A head of another number of classes is left
    as it was built. Raises ValueError if the weights are not of that model.
    """
    own = model.state_dict()
    fitted = fit_tables({_our_name(key): value for key, value in state_dict.items()}, own)
    loaded = {}
    for key in state_dict:
        name = _our_name(key)
        if name not in own:
            raise ValueError(f"{key!r} has no place in this model; give the state_dict of torchvision's mvit_v2_s")
        value = fitted[name]
        if name.startswith("head.") and value.shape != own[name].shape:
            continue
        value = value.reshape(own[name].shape) if value.numel() == own[name].numel() else value
        if value.shape != own[name].shape:
            raise ValueError(f"{key!r} has shape {tuple(value.shape)} where this model has {tuple(own[name].shape)}")
        loaded[name] = value
    missing = [name for name in own if name not in loaded and not name.startswith("head.")]
    if missing:
        raise ValueError(f"the state_dict lacks {missing[0]!r} and {len(missing) - 1} more; give that of mvit_v2_s")
    model.load_state_dict(loaded, strict=False)


def _our_name(key: str) -> str:
    if key.startswith("head.1."):
        return key.replace("head.1.", "head.")
    for theirs, ours in (
        ("conv_proj.", "patch_embed."),
        ("pos_encoding.class_token", "class_token"),
        (".attn.project.0.", ".attention.project."),
        (".attn.", ".attention."),
        (".pool.weight", ".weight"),
        (".norm_act.0.", ".norm."),
        (".rel_pos_t", ".rel_pos.0"),
        (".rel_pos_h", ".rel_pos.1"),
        (".rel_pos_w", ".rel_pos.2"),
        (".mlp.3.", ".mlp.2."),
    ):
        key = key.replace(theirs, ours)
    return "encoder." + key
