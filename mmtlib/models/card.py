"""The card beside trained weights: what the model is, how it was trained, what it scored and what it is not for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from mmtlib.models.build import MODALITY

GENERATED = "freedoom-sounds"
"""The data set whose clips a game engine makes."""

UNTOLD = {"model", "init", "robustness", "kept", "nproc"}
"""Settings that are said elsewhere on the card, or nothing that bears on the weights."""

TEMPLATE = Path(__file__).with_name("card.md.j2")


def model_card(
    about: Mapping[str, Any], *, parameters: int, file: str | None = None, scores: pd.DataFrame | None = None
) -> ModelCard:
    """A Markdown page on weights with metadata for the Hugging Face hub.

    `about` is the header of the weights (of a model that was not trained as `build_model` leaves it), `parameters` the
    model's number of them, `file` the path that a reader has the weights by, `scores` evaluation.scores of its
    predictions, of which val and test are shown.
    """
    told = about.get("run", {}) | about.get("recipe", {})
    if scores is not None:
        scores = scores[scores["split"].isin(["val", "test"])].rename(columns={"modality": "given", "n": "clips"})
        scores = scores.round(1).to_markdown(index=False, disable_numparse=True)
    told = {name: x if isinstance(x, str) else json.dumps(x) for name, x in told.items() if name not in UNTOLD}
    shown = dict(about=about, parameters=parameters, told=told, scores=scores, file=file, generated=GENERATED)
    data = ModelCardData(license="apache-2.0", library_name="mmtlib", tags=["audio-video", about["name"]])
    return ModelCard.from_template(data, template_path=str(TEMPLATE), kind=MODALITY[about["name"]], **shown)
