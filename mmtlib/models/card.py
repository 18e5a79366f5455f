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

TEMPLATE = Path(__file__).with_name("card.md.j2")


def model_card(
    about: Mapping[str, Any], *, parameters: int, file: str | None = None, scores: pd.DataFrame | None = None
) -> ModelCard:
    """A Markdown page on weights with metadata for the Hugging Face hub.

    `about` is the header of the weights (of a model that was not trained as `build_model` leaves it), `parameters` the
    model's number of them, `file` the path that a reader has the weights by, `scores` evaluation.scores of its
    predictions, of which val and test are shown.
    """
    stats = about.get("stats")
    data = ModelCardData(license="apache-2.0", library_name="mmtlib", tags=["audio-video", about["name"]])
    facts = {"model": f"{about['name']}, {parameters:,} parameters"}
    if stats:
        facts |= _training(about, stats)
    if scores is not None:
        scores = scores[scores["split"].isin(["val", "test"])].rename(columns={"modality": "given", "n": "clips"})
        scores = scores.round(1).to_markdown(index=False, disable_numparse=True)
    settings = stats["settings"] if stats else {}
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=about["name"],
        seed=about.get("seed"),
        facts=facts,
        scores=scores,
        clips=settings.get("clips", 1),
        crops=settings.get("crops", 1),
        file=file,
        data=stats and stats["name"],
        generated=GENERATED,
    )


def _training(about: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, str]:
    """What the model reads and how it was trained, fact by fact."""
    kind, settings, data = MODALITY[about["name"]], stats["settings"], _data(stats)
    (times, bands), (frames, height, width) = stats["log_mel"]["shape"][1:], stats["frames"]["shape"][1:4]
    reads = {
        "audio": f"log-mel (batch, 1, {times}, {bands}): {settings['seconds']:g} s at {settings['sample_rate']} Hz, "
        f"windows of {settings['window_ms']:g} ms every {settings['hop_ms']:g} ms",
        "video": f"RGB frames (batch, 3, {frames}, {height}, {width}), evenly spaced over {settings['seconds']:g} s",
    }
    reads = "; ".join(reads.values()) + "; either may be missing" if kind == "av" else reads[kind]
    clips = f"; {about['clips']:,} clips" if "clips" in about else ""
    starts = [_origin(part, source, data) for part, source in about.get("encoders", {}).items()]
    facts = {
        "reads": f"{reads}; normalised with the statistics in the file",
        **{f"classes ({head}, {len(names)})": ", ".join(names) for head, names in about["heads"].items()},
        "trained on": f"{data}{clips}",
        "starts from": "; ".join(starts) or "random weights, no other data",
        "run": f"{about.get('key', 'without a key')}, seed {about.get('seed')}",
    }
    untold = {"model", "init", "robustness", "kept", "nproc"}  # said above, or nothing that bears on the weights
    settings = {name: value for name, value in about.get("run", {}).items() if name not in untold}
    settings |= {name: value for name, value in about.get("recipe", {}).items() if name not in untold}
    return facts | {name: x if isinstance(x, str) else json.dumps(x) for name, x in settings.items()}


def _data(stats: Mapping[str, Any]) -> str:
    return f"{stats['name']}, fingerprint {stats['fingerprint'][:16]}"


def _origin(part: str, source: Mapping[str, Any], own: str) -> str:
    """Where an encoder comes from; data other than the run's own are named."""
    stats = source.get("stats") or {}
    data = _data(stats) if stats.get("fingerprint") else "data that its file does not state"
    run = f", run {source['key']}" if "key" in source else ""
    return f"{part}: {source['name']}{run}, trained on {'the same data' if data == own else data}"
