"""A saved model comes back whole, and a file that is not one is refused in a sentence."""

import json

import pytest
import torch
from safetensors.torch import load, save

from mmtlib.models import build_model, from_pretrained
from mmtlib.models.hub import WeightsError, load_model, load_weights, save_model
from mmtlib.models.ops import fit_tables

OVERRIDES = {"depths": [1, 1, 1, 1], "dim": 8, "audio_size": [64, 48], "pooling": ["time", "none", "both", "both"]}


REMOVED = object()


@pytest.fixture
def saved(tmp_path):
    model = build_model("mat_t", 4, **OVERRIDES).eval()
    path = tmp_path / "deep" / "model.safetensors"
    save_model(path, model, name="mat_t", num_classes=4, overrides=OVERRIDES, classes=["a", "b", "c", "d"], seed=3)
    return path, model


def test_a_round_trip_gives_the_same_model(saved):
    path, model = saved
    again, header = load_model(path)
    assert not again.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert header == {
        "name": "mat_t",
        "num_classes": 4,
        "overrides": OVERRIDES,
        "classes": ["a", "b", "c", "d"],
        "seed": 3,
    }
    x = torch.randn(2, 1, 64, 48)
    assert torch.equal(again(x), model(x))
    tensors, same_header = load_weights(path)
    assert set(tensors) == set(model.state_dict())
    assert same_header == header


@pytest.mark.parametrize("name", ["mmt_t", "mbt_t", "ast_t", "mvitv2_t", "resnet18_av"])
def test_every_kind_of_model_can_be_saved(tmp_path, name):
    model = build_model(name, 3)
    save_model(tmp_path / "m.safetensors", model, name=name, num_classes=3, overrides={})
    again, _ = load_model(tmp_path / "m.safetensors")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_weights_saved_in_half_precision_come_back_as_float32(saved, tmp_path):
    path, model = saved
    small = tmp_path / "half.safetensors"
    save_model(small, load_model(path)[0].half())
    assert small.stat().st_size < 0.6 * path.stat().st_size
    again, header = load_model(small)
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].half().float())
    assert header == load_model(path)[1]
    x = torch.randn(2, 1, 64, 48)
    torch.testing.assert_close(again(x), model(x), rtol=1e-2, atol=1e-2)


def test_a_file_is_loaded_by_its_path(saved):
    path, model = saved
    x = torch.randn(2, 1, 64, 48)
    assert torch.equal(from_pretrained(path)(x), model(x))
    assert torch.equal(from_pretrained(str(path))(x), model(x))
    assert from_pretrained(path).about["overrides"]["audio_size"] == [64, 48]
    assert from_pretrained(path).about["seed"] == 3


def test_a_hub_that_does_not_answer_is_said_with_the_file_to_fetch(tmp_path):
    """Without network: a cache that is empty, and the wish for no other."""
    where = dict(cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(WeightsError, match=r"fetch https://huggingface.co/some/model/resolve/main/model.safetensors"):
        from_pretrained("some/model", **where)
    with pytest.raises(WeightsError, match=r"no such name is no weights file"):
        from_pretrained("no such name", **where)
    with pytest.raises(WeightsError, match=r"model.safetensors does not exist"):
        from_pretrained(tmp_path)


def test_the_same_model_gives_the_same_bytes(saved, tmp_path):
    """Whatever the order of the words about it: DVC compares bytes."""
    path, model = saved
    other = tmp_path / "other.safetensors"
    save_model(
        other,
        model,
        seed=3,
        classes=["a", "b", "c", "d"],
        overrides=dict(reversed(OVERRIDES.items())),
        num_classes=4,
        name="mat_t",
    )
    assert other.read_bytes() == path.read_bytes()
    with torch.no_grad():
        model.head.bias[0] += 1.0
    save_model(other, model, name="mat_t", num_classes=4, overrides=OVERRIDES, classes=["a", "b", "c", "d"], seed=3)
    assert other.read_bytes() != path.read_bytes()


def test_saving_leaves_the_model_as_it_was(saved):
    path, model = saved
    model.train()
    save_model(path, model, name="mat_t", num_classes=4, overrides=OVERRIDES)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_missing_file_says_what_to_run(tmp_path):
    with pytest.raises(WeightsError, match=r"gone.safetensors does not exist.*mmt train --params FILE"):
        load_model(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not safetensors at all",
        lambda data: data[: len(data) // 2],
        lambda data: data[:4] + b"\xff" * 8 + data[12:],
        lambda data: save(load(data)),  # without our header
        lambda data: save(load(data), metadata={"mmtlib": "{"}),
    ],
    ids=["empty", "text", "cut", "garbled", "foreign", "bad header"],
)
def test_a_damaged_or_foreign_file_is_refused(saved, damage):
    path, _ = saved
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=path.name):
        load_model(path)


@pytest.mark.parametrize(
    "change",
    [
        {"overrides": OVERRIDES | {"dim": 16}},
        {"num_classes": 5},
        {"name": "mat_of_another_version"},
        {"overrides": OVERRIDES | {"no_such_setting": 1}},
        {"name": REMOVED},
    ],
    ids=["width", "classes", "name", "setting", "no name"],
)
def test_weights_of_another_version_of_the_code_are_refused(saved, change):
    path, _ = saved
    data = path.read_bytes()
    tensors, header = load_weights(path)
    header = {key: value for key, value in (header | change).items() if value is not REMOVED}
    path.write_bytes(save(tensors, metadata={"mmtlib": json.dumps(header)}))
    with pytest.raises(WeightsError, match=path.name):
        load_model(path)
    path.write_bytes(data)
    load_model(path)  # partner: unchanged it loads


def test_only_rows_of_position_tables_are_fitted():
    model, other = build_model("mat_t", 3, size=(64, 48)), build_model("mat_t", 3, size=(100, 48))
    own = other.state_dict()
    fitted = fit_tables(model.state_dict(), own)
    other.load_state_dict(fitted)
    changed = {name for name, value in model.state_dict().items() if value.shape != own[name].shape}
    assert changed
    for name, value in model.state_dict().items():
        if name in changed:
            assert "positions" in name or "rel_pos" in name
        else:
            assert torch.equal(fitted[name], value)
    wider = build_model("mat_t", 3, size=(100, 48), dim=32)
    with pytest.raises(RuntimeError, match="size mismatch"):
        wider.load_state_dict(fit_tables(model.state_dict(), wider.state_dict()))
