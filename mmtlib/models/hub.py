"""Weights: safetensors that carry how to build the model and all that its use needs. Nothing is unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmtlib.files import digest, write_bytes
from mmtlib.models.base import HUB_FILE, AVModel
from mmtlib.models.build import build_model
from mmtlib.models.ops import fit_tables


class WeightsError(ValueError):
    """Weights are missing, damaged or of another model; the message says what to do."""


def save_model(path: Path, model: AVModel, **about: Any) -> None:
    """Write `model` to `path`, atomically.

    What the model says of itself, and `about` (classes, normalisation statistics, settings of the run), is kept beside
    the weights as JSON. `model.half()` makes the file half as large.
    """
    header = model.about | about
    header = dict(sorted((header | {"overrides": dict(sorted(header["overrides"].items()))}).items()))
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # One key holds everything: the order of several keys in a safetensors header is not stable from run to run.
    # What lies deeper keeps its order: that of several heads is the order of their logits.
    write_bytes(path, save(tensors, metadata={"mmtlib": json.dumps(header)}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors (those in half precision as float32) and the header of a file that `save_model` wrote.

    Raises WeightsError if it is missing, damaged or not ours.
    """
    header = read_header(path)
    return {key: x.float() if x.dtype == torch.float16 else x for key, x in load_file(path).items()}, header


def read_header(path: Path) -> dict:
    """The header alone of a file that `save_model` wrote. Raises WeightsError as `load_weights` does."""
    if not Path(path).is_file():
        raise WeightsError(f"{path} does not exist; train that model: mmt train --params FILE, the study's")
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["mmtlib"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is not a weights file of this project or is damaged; train it again") from error


def load_model(path: Path) -> tuple[AVModel, dict]:
    """Build the model that `path` describes, in evaluation mode with its weights, and return it with the header.

    Raises WeightsError if the file is missing, damaged or not of this project.
    """
    tensors, header = load_weights(path)
    try:
        model = build_model(header["name"], header["num_classes"], **header["overrides"])
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} was written by another version of the models; train it again") from error
    model.about = header
    return model.eval(), header


def from_pretrained(source: str | Path, **download: Any) -> AVModel:
    """A trained model, in evaluation mode; what its weights say of it is in its `about`.

    `source` is a weights file, a folder that `save_pretrained` wrote, or the name of a repository (owner/name) on the
    Hugging Face hub; `download` goes to huggingface_hub.hf_hub_download (revision, cache_dir, local_files_only, ...).
    Raises WeightsError.
    """
    path = Path(source)
    if path.is_dir():
        path = path / HUB_FILE
    elif not path.is_file() and path.suffix != ".safetensors":
        try:
            path = Path(hf_hub_download(str(source), HUB_FILE, **download))
        except (OSError, ValueError) as error:  # no connection, no such repository, no name of one
            raise WeightsError(
                f"{source} is no weights file, and the hub did not give it ({type(error).__name__}); fetch "
                f"https://huggingface.co/{source}/resolve/main/{HUB_FILE}, put it into a folder weights/{path.name} "
                "and give that folder"
            ) from error
    return load_model(path)[0]


def origin(weights: Path) -> dict[str, Any]:
    """What weights are: name of the model and of what it came from, key (where there is none a hash), data."""
    header = read_header(weights)
    names = [header["name"], *(own["name"] for own in header.get("encoders", {}).values())]
    data = {name: header.get("stats", {}).get(name) for name in ("name", "fingerprint")}
    return {"name": " from ".join(names), "key": header.get("key") or digest(weights.read_bytes()), "stats": data}


def load_encoder(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Start an encoder of a model of both from a trained one of audio or video: its `encoder.` weights, head left out.

    A multiscale one that was trained at another input size has its position tables interpolated. Raises ValueError for
    one of another shape.
    """
    own = {key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")}
    try:
        encoder.load_state_dict(fit_tables(own, encoder.state_dict()))
    except RuntimeError as error:
        remedy = "name in `encoders` one of this model's family and size, with equal `overrides`"
        raise ValueError(f"the encoder that the run starts from does not fit; {remedy}") from error
