"""Save and load a trained model: safetensors that carry how to build it and all that its use needs."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mmtlib.files import write_bytes
from mmtlib.models import build_model


class WeightsError(ValueError):
    """A weights file is missing, damaged or of another model; the message says what to do."""


def save_model(path: Path, model: nn.Module, *, name: str, num_classes: int, overrides: dict, **about: Any) -> None:
    """Write `model` to `path`, atomically.

    `name`, `num_classes` and `overrides` are what `build_model` was called with; `about` is kept beside them
    as JSON (classes, normalisation statistics, settings of the run).
    """
    header = about | {"name": name, "num_classes": num_classes, "overrides": overrides}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # One key holds everything: the order of several keys in a safetensors header is not stable from run to run.
    write_bytes(path, save(tensors, metadata={"mmtlib": json.dumps(header, sort_keys=True)}))


def load_weights(path: Path) -> tuple[dict, dict]:
    """The tensors and the header of a file that `save_model` wrote.

    Raises WeightsError if it is missing, damaged or not ours.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path} does not exist; train that model first (`dvc repro`)")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["mmtlib"])
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is not a weights file of this project or is damaged; train it again") from error


def load_model(path: Path) -> tuple[nn.Module, dict]:
    """Build the model that `path` describes, in evaluation mode with its weights, and return it with the header.

    Raises WeightsError if the file is missing, damaged or not of this project.
    """
    tensors, header = load_weights(path)
    try:
        model = build_model(header["name"], header["num_classes"], **header["overrides"])
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} was written by another version of the models; train it again") from error
    return model.eval(), header
