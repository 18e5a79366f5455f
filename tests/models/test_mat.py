"""MAT: which axis is pooled where, and the size the paper's claim fits."""

import pytest
import torch

from mmtlib.models import build_model
from mmtlib.models.mat import MAT
from mmtlib.models.multiscale import pooled_grid
from study.timing import count_parameters

FOUR = ("time", "time", "both", "both")
SMALL = {
    "depths": (1, 1, 2, 1),
    "dim": 8,
    "size": (198, 128),
    "stride_kv": (4, 4),
    "stem": 0,
    "patch_stride": 10,
    "drop_path": 0.0,
}


def stage_grids(model, size=(198, 128)) -> list[tuple[int, int]]:
    """The token grid after each stage: the distinct ones in order, as the blocks report them."""
    grids = []
    hooks = [block.register_forward_hook(lambda _, __, out: grids.append(out[1])) for block in model.encoder.blocks]
    with torch.no_grad():
        model(torch.randn(1, 1, *size))
    for hook in hooks:
        hook.remove()
    assert grids[2] == grids[3], "a grid changes only where a stage begins"
    return [grids[index] for index in (0, 1, 2, 4)]


# 198 x 128 in patches of 16 at stride 10: (198 - 16) // 10 + 1 = 19 by (128 - 16) // 10 + 1 = 12.
# A pooled axis is halved and rounded up; the first stage never shrinks the grid.
@pytest.mark.parametrize(
    ("pooling", "grids"),
    [
        (("time", "time", "both", "both"), [(19, 12), (10, 12), (5, 6), (3, 3)]),
        (("time",) * 4, [(19, 12), (10, 12), (5, 12), (3, 12)]),
        (("both",) * 4, [(19, 12), (10, 6), (5, 3), (3, 2)]),
        (("none",) * 4, [(19, 12)] * 4),
        (("both", "none", "time", "both"), [(19, 12), (19, 12), (10, 12), (5, 6)]),
    ],
)
def test_pooling_of_each_stage_gives_the_grids_counted_by_hand(pooling, grids):
    assert stage_grids(build_model("mat_t", 3, **SMALL, pooling=pooling)) == grids


def test_time_first_then_both_is_the_default_but_the_tiny_one_has_a_stem_and_pools_both():
    assert MAT["mat_s"]["pooling"] == MAT["mat_b"]["pooling"] == FOUR
    model = build_model("mat_t", 3, dim=8)  # three stages
    grids = []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda _, __, out: grids.append(out[1]))
    with torch.no_grad():
        model(torch.randn(1, 1, 198, 128))
    assert grids == [(25, 16), (13, 8), (7, 4)]  # the stem halves both axes three times


def bands_reached(pool, heads: int) -> list[int]:
    """Mel bands of the pooled grid that change with band 5 of a 19 x 12 grid."""
    tokens = torch.randn(1, 19, 12, heads, 8)
    other = tokens.clone()
    other[:, :, 5] += torch.randn(8)
    a, b = (pool(t.view(1, -1, heads, 8), (19, 12)) for t in (tokens, other))
    grid = pooled_grid((19, 12), pool.stride)
    change = (a - b).view(*grid, -1).abs().amax((0, 2))
    return (change > 1e-6).nonzero().flatten().tolist()


def test_time_pooling_never_mixes_mel_bands():
    model = build_model("mat_t", 3, **SMALL, pooling=("none", "time", "both", "both"))
    none, time, both = (model.encoder.blocks[i].attention for i in (0, 1, 2))
    assert none.pool_q is none.pool_k is none.pool_v is None
    assert bands_reached(time.pool_q, 2) == [5]
    assert bands_reached(time.pool_k, 2) == [5]
    assert bands_reached(both.pool_q, 4) == [2, 3]  # windows of 3 around every second band: 3..5 and 5..7


@pytest.mark.parametrize("pooling", [("time",), ("time", "time", "both", "all"), ("time",) * 5, ()])
def test_bad_pooling_is_refused_with_what_is_allowed(pooling):
    with pytest.raises(ValueError, match=r"none.*time.*both.*4 stages"):
        build_model("mat_t", 3, **SMALL, pooling=pooling)


def test_width_and_heads_double_at_each_stage():
    model = build_model("mat_t", 3, **SMALL, pooling=FOUR)
    blocks = model.encoder.blocks
    assert [block.norm2.weight.numel() for block in blocks] == [8, 16, 32, 32, 64]
    assert [block.attention.num_heads for block in blocks] == [1, 2, 4, 4, 8]
    assert model.head.in_features == 64


def test_dropout_is_on_the_features_only_while_training():
    model = build_model("mat_t", 3, **SMALL, pooling=FOUR, dropout=0.5)
    x = torch.randn(1, 1, 198, 128)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_mat_b_is_the_size_of_the_papers_claim():
    """42 % fewer parameters than AST; 51.1 M with AST's published 88.1 M."""
    with torch.device("meta"):
        mat, ast = (count_parameters(build_model(name, 309)) for name in ("mat_b", "ast_b"))
    assert mat == pytest.approx(51.1e6, rel=0.01)
    assert 85.5e6 < ast < 88.5e6
    assert mat < 0.6 * ast


def test_sizes_are_ordered_and_share_their_settings():
    assert set(MAT) == {"mat_t", "mat_s", "mat_b"}
    with torch.device("meta"):
        counts = [count_parameters(build_model(name, 5)) for name in MAT]
    assert counts == sorted(counts)
    assert counts[0] < 5e6


def test_order_in_time_matters():
    """Not a bag of patches: reversing a clip changes its logits."""
    model = build_model("mat_t", 3, **SMALL, pooling=FOUR).eval()
    with torch.no_grad():
        for table in (t for block in model.encoder.blocks for t in block.attention.rel_pos):
            table.normal_()
        x = torch.randn(1, 1, 198, 128)
        assert not torch.allclose(model(x), model(x.flip(2)), atol=1e-4)
