"""The video encoder against torchvision's mvit_v2_s and the published sizes."""

import pytest
import torch
from torchvision.models.video import mvit, mvit_v1_b, mvit_v2_s

from mmtlib.models import build_model, load_torchvision_mvit
from study.timing import count_parameters


def random_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn: norms, biases and position tables of a fresh model would hide a mix-up."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif "rel_pos" in name:
                parameter.normal_(0.0, 0.3)
            elif "conv_proj" in name or ".pool." in name:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.normal_(0.0, 0.05)
    return model.eval()


def torchvision_for(monkeypatch, size: tuple[int, int, int], num_classes: int = 11) -> torch.nn.Module:
    """torchvision's own mvit_v2_s for a smaller input, which its public function does not offer."""
    original = mvit._mvit

    def smaller(**kwargs):
        kwargs |= {"spatial_size": size[1:], "temporal_size": size[0]}
        return original(**kwargs)

    monkeypatch.setattr(mvit, "_mvit", smaller)
    model = mvit_v2_s(weights=None, num_classes=num_classes)
    monkeypatch.undo()
    return random_weights(model)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(1)
    return random_weights(mvit_v2_s(weights=None))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 64, 64), (6, 96, 64)])
def test_equals_torchvision_at_the_size_it_is_built_for(monkeypatch, size):
    reference = torchvision_for(monkeypatch, size)
    model = build_model("mvitv2_s", 11, size=size).eval()
    x = torch.randn(1, 3, *size)
    want = reference(x)
    assert relative_error(model(x), want) > 0.1, "before the weights are loaded the two must differ"
    load_torchvision_mvit(model, reference.state_dict())
    assert relative_error(model(x), want) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 64, 96), (2, 224, 224)])
def test_equals_torchvision_with_interpolated_tables(theirs, size):
    """The weights of 16 x 224 x 224 on a smaller picture, and on fewer frames."""
    model = build_model("mvitv2_s", 400).eval()
    load_torchvision_mvit(model, theirs.state_dict())
    x = torch.randn(1, 3, *size)
    encoding = theirs.pos_encoding
    before = encoding.temporal_size, encoding.spatial_size
    encoding.temporal_size, encoding.spatial_size = size[0] // 2, (size[1] // 4, size[2] // 4)  # tokens
    try:
        want = theirs(x)
    finally:
        encoding.temporal_size, encoding.spatial_size = before
    assert relative_error(model(x), want) < 1e-4


def test_tables_are_interpolated_when_the_model_is_built_for_another_size(theirs):
    model = build_model("mvitv2_s", 400, size=(8, 64, 64))
    load_torchvision_mvit(model, theirs.state_dict())
    table = theirs.blocks[0].attn.rel_pos_t
    want = torch.nn.functional.interpolate(table.T[None], size=2 * 4 - 1, mode="linear")[0].T
    torch.testing.assert_close(model.encoder.blocks[0].attention.rel_pos[0], want)


def test_a_head_of_another_number_of_classes_stays_as_built(theirs):
    model = build_model("mvitv2_s", 7)
    head = model.head.weight.clone()
    load_torchvision_mvit(model, theirs.state_dict())
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.encoder.norm.weight, theirs.norm.weight)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w | {"blocks.99.norm1.weight": torch.ones(96)}, "blocks.99.norm1.weight.* has no place"),
        (lambda w: {k: v for k, v in w.items() if k != "norm.bias"}, "lacks 'encoder.norm.bias'"),
        (lambda w: w | {"norm.bias": torch.zeros(5)}, r"'norm.bias' has shape \(5,\).*\(768,\)"),
        (lambda w: {}, "lacks"),
        (lambda w: mvit_v1_b(weights=None).state_dict(), "mvit_v2_s"),
    ],
)
def test_other_weights_are_refused_in_a_sentence_and_nothing_is_loaded(theirs, change, sentence):
    model = build_model("mvitv2_s", 400)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=sentence):
        load_torchvision_mvit(model, change(dict(theirs.state_dict())))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_s_do_not_go_into_b(theirs):
    with torch.device("meta"):
        model = build_model("mvitv2_b", 400)
    with pytest.raises(ValueError, match=r"mvit_v2_s|shape"):
        load_torchvision_mvit(model, theirs.state_dict())


@pytest.mark.parametrize(("name", "published"), [("mvitv2_s", 34.5e6), ("mvitv2_b", 51.2e6)])
def test_parameter_counts_are_the_published_ones(name, published):
    with torch.device("meta"):
        assert count_parameters(build_model(name, 400)) == pytest.approx(published, rel=0.01)


def test_mvitv2_s_has_exactly_torchvisions_parameters(theirs):
    assert count_parameters(build_model("mvitv2_s", 400)) == count_parameters(theirs)


@torch.no_grad()
def test_time_is_never_pooled_after_the_patch_embedding():
    model = build_model("mvitv2_t", 3).eval()
    grids = []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda _, __, out: grids.append(out[1]))
    model(torch.randn(1, 3, 16, 64, 64))
    assert {grid[0] for grid in grids} == {model.encoder.grid((16, 64, 64))[0]}
    assert grids[-1][1] < grids[0][1]


@torch.no_grad()
def test_other_clip_sizes_work():
    model = build_model("mvitv2_t", 3).eval()
    for size in [(8, 64, 64), (16, 48, 80), (1, 16, 16)]:
        assert model(torch.randn(2, 3, *size)).shape == (2, 3)


def test_the_tiny_model_sees_every_frame():
    """Its patches once left out the last one."""
    video = torch.randn(1, 3, 16, 64, 64, requires_grad=True)
    build_model("mvitv2_t", 3).eval()(video).sum().backward()
    assert (video.grad.abs().sum((0, 1, 3, 4)) > 0).all()
