"""Save and load a trained model: safetensors that carry how to build it and all that its use needs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mmtlib.files import write_bytes
from mmtlib.models import build_model
from mmtlib.models.baselines import resize_positions
from mmtlib.models.mvit import fit_tables


class WeightsError(ValueError):
    """A weights file is missing, damaged or of another model; the message says what to do."""


def save_model(path: Path, model: nn.Module, *, name: str, num_classes: int, overrides: dict, **about: Any) -> None:
    """Write `model` to `path`, atomically.

    `name`, `num_classes` and `overrides` are what `build_model` was called with; `about` is kept beside them
    as JSON (classes, normalisation statistics, settings of the run).
    """
    overrides = dict(sorted(overrides.items()))
    header = dict(sorted((about | {"name": name, "num_classes": num_classes, "overrides": overrides}).items()))
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # One key holds everything: the order of several keys in a safetensors header is not stable from run to run.
    # What lies deeper keeps its order: that of several heads is the order of their logits.
    write_bytes(path, save(tensors, metadata={"mmtlib": json.dumps(header)}))


def load_weights(path: Path) -> tuple[dict, dict]:
    """The tensors and the header of a file that `save_model` wrote.

    Raises WeightsError if it is missing, damaged or not ours.
    """
    return _open(path, lambda file, header: ({key: file.get_tensor(key) for key in file.keys()}, header))  # noqa: SIM118


def _open(path: Path, read: Callable[[Any, dict], Any]) -> Any:
    if not Path(path).is_file():
        raise WeightsError(f"{path} does not exist; train that model first (`dvc repro`)")
    try:
        with safe_open(path, framework="pt") as file:
            return read(file, json.loads((file.metadata() or {})["mmtlib"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is not a weights file of this project or is damaged; train it again") from error


def read_header(path: Path) -> dict:
    """The header alone of a file that `save_model` wrote. Raises WeightsError as `load_weights` does."""
    return _open(path, lambda file, header: header)


def load_model(
    path: Path, *, audio_size: Sequence[int] | None = None, video_size: Sequence[int] | None = None
) -> tuple[nn.Module, dict]:
    """Build the model that `path` describes, in evaluation mode with its weights, and return it with the header.

    `audio_size` (time, mel) and `video_size` (T, H, W) build it for inputs of another size, with its position tables
    interpolated once, here, rather than whenever it is called.
    Raises WeightsError if the file is missing, damaged or not of this project, ValueError for a size too small.
    """
    tensors, header = load_weights(path)
    try:
        model = build_model(header["name"], header["num_classes"], **header["overrides"])
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} was written by another version of the models; train it again") from error
    sizes = {"audio_size": audio_size, "video_size": video_size}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if sizes:
        trained, model = model, build_model(header["name"], header["num_classes"], **header["overrides"] | sizes)
        tensors = fit_tables(tensors, model.state_dict())
        for (prefix, module), new in zip(trained.named_modules(), model.modules(), strict=True):
            for table in getattr(module, "position_tables", ()):  # of the baselines: one for the whole grid
                name = f"{prefix}.{table}".removeprefix(".")
                tensors[name] = resize_positions(tensors[name], module.positions_grid, new.positions_grid)
        model.load_state_dict(tensors)
    return model.eval(), header
