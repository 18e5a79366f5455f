"""torch.compile and torch.export take the models whole and compute what eager execution does."""

import subprocess
import sys

import jaxtyping
import pytest
import torch

from mmtlib.models import AVOutput, build_model

AUDIO = {"depths": (1,), "dim": 16, "pooling": ("both",), "size": (64, 48)}
VIDEO = {"depths": (1, 1), "dim": 16, "size": (8, 32, 32)}
MODELS = {
    "mat_t": AUDIO,
    "mvitv2_t": VIDEO | {"class_token": True, "recompute": True},  # what mvitv2_s has
    "mmt_t": {"audio": AUDIO, "video": VIDEO | {"depths": (1,), "recompute": "blocks"}, "dim": 32, "fusion_layers": 1},
}


def make(name: str) -> torch.nn.Module:
    return build_model(name, 5, **MODELS[name]).eval()


def inputs(name: str, batch: int) -> tuple[torch.Tensor, ...]:
    audio, video = torch.randn(batch, 1, *AUDIO["size"]), torch.randn(batch, 3, *VIDEO["size"])
    return {"mat_t": (audio,), "mvitv2_t": (video,), "mmt_t": (audio, video)}[name]


def parts(out) -> list[torch.Tensor]:
    return list(out) if isinstance(out, AVOutput) else [out]


def values_and_gradients(call, model, given) -> list[torch.Tensor]:
    model.zero_grad()
    out = parts(call(*given))
    sum(part.square().sum() for part in out).backward()
    return [*out, *(p.grad.clone() for p in model.parameters())]


def check_compiled(name: str) -> None:
    """In one graph, but without the code generation, which needs a C++ compiler and minutes."""
    torch.compiler.reset()
    model, given = make(name), inputs(name, 2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got, want = (values_and_gradients(call, model, given) for call in (compiled, model))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    print(name, len(got))


def test_compiled_values_and_gradients_are_those_of_eager_execution():
    """In a process of its own: the shape checks, which tests alone put around every function, cannot be compiled."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = {name: len([*make(name).parameters()]) for name in MODELS}
    outputs = {"mat_t": 1, "mvitv2_t": 1, "mmt_t": len(AVOutput._fields)}
    assert done.stdout.split("\n")[:-1] == [f"{name} {counts[name] + outputs[name]}" for name in MODELS]


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_is_saved_loaded_and_run_at_any_batch_size(monkeypatch, tmp_path, name):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model, given = make(name), inputs(name, 2)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, given, dynamic_shapes=tuple({0: batch} for _ in given))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in (2, 1, 5):
        given = inputs(name, size)
        got, want = loaded(*given), model(*given)  # eager after exporting: no cached tensor is a traced one
        assert type(got) is type(want)
        for a, b in zip(parts(got), parts(want), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for each in MODELS:
        check_compiled(each)
