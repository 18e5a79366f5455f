"""MAT, the multiscale audio Transformer: the multiscale core on a log-mel spectrogram (time x mel).

A 16 x 16 convolution at stride 10 makes the patches (AST's grid). A stage pools over time only (1-D), over time
and frequency (2-D), or not at all, as `pooling` says for each stage. The paper states that both kinds occur but
not where: time first, then both, is our reading, and an ablation. `mat_b` has the trunk of MViTv2-B, whose
51 M parameters are the paper's "42 % fewer than AST". `mat_t`, for small sets, has a stem and pools both axes
throughout (ours): that did better on validation of the public sets.
"""

from collections.abc import Sequence

from mmtlib.models.multiscale import MultiscaleEncoder, Stage

POOLED_AXES = {"none": (), "time": (0,), "both": (0, 1)}  # of (time, mel)
LARGE = dict(dim=96, size=(1024, 128), pooling=("time", "time", "both", "both"), recompute=True)
MAT = {
    "mat_t": dict(depths=(1, 1, 1), dim=48, size=(198, 128), drop_path=0.1, pooling=("both", "both", "both"), stem=3),
    "mat_s": dict(depths=(1, 2, 11, 2), drop_path=0.2, **LARGE),
    "mat_b": dict(depths=(2, 3, 16, 3), drop_path=0.3, **LARGE),
}


def mat_encoder(
    *, depths: Sequence[int], dim: int, pooling: Sequence[str], patch_stride: int = 10, stem: int = 0, **options
) -> MultiscaleEncoder:
    """The encoder of MAT; width and heads double at each stage. `options` are those of MultiscaleEncoder.

    `stem`: convolutions of stride 2 that make the patches; 0: one of 16 x 16.
    Raises ValueError for a `pooling` that is not one of none, time, both for every stage.
    """
    if len(pooling) != len(depths) or any(name not in POOLED_AXES for name in pooling):
        raise ValueError(f"pooling {tuple(pooling)} needs one of {list(POOLED_AXES)} for each of {len(depths)} stages")
    stages = []
    for index, (depth, name) in enumerate(zip(depths, pooling, strict=True)):
        axes = POOLED_AXES[name]
        stride_q = tuple(2 if index > 0 and axis in axes else 1 for axis in (0, 1))
        kernel = tuple(3 if axis in axes else 1 for axis in (0, 1))
        stages.append(Stage(depth, dim * 2**index, 2**index, stride_q, kernel))
    return MultiscaleEncoder(
        in_channels=1,
        patch_kernel=(16, 16),
        patch_stride=(patch_stride, patch_stride),
        patch_padding=(0, 0),
        stages=stages,
        stem=((2, 2),) * stem,
        **dict(stride_kv=(4, 4), class_token=False, absolute_positions=True) | options,
    )
