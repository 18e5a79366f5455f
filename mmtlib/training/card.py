"""The card beside trained weights: what the model is, how it was trained, what it scored and what it is not for."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmtlib.models import MODALITY

GENERATED = "freedoom-sounds"
"""The data set whose clips a game engine makes."""


def model_card(
    file: str, header: Mapping[str, Any], scores: pd.DataFrame, *, parameters: int, clips: int, encoders: Mapping
) -> str:
    """A Markdown page on the weights in `file`, named from the repository's root.

    `header` is that of the weights file, `scores` are evaluation.scores of its predictions; `parameters` of the model
    and `clips` that it was trained on are counts. `encoders`: part -> header of the weights that it started from.
    """
    name, stats, run, kind = header["name"], header["stats"], header["run"], MODALITY[header["name"]]
    settings, data = stats["settings"], _data(stats)
    seconds = f"{settings['seconds']:g} s"
    (times, bands), (frames, height, width) = stats["log_mel"]["shape"][1:], stats["frames"]["shape"][1:4]
    reads = {
        "audio": f"log-mel (batch, 1, {times}, {bands}): {seconds} at {settings['sample_rate']} Hz, windows of "
        f"{settings['window_ms']:g} ms every {settings['hop_ms']:g} ms",
        "video": f"RGB frames (batch, 3, {frames}, {height}, {width}), evenly spaced over {seconds}",
    }
    reads = "; ".join(reads.values()) + "; either may be missing" if kind == "av" else reads[kind]
    recipe = {field: value for field, value in header["recipe"].items() if field not in ("kept", "nproc")}
    facts = {
        "model": f"{name}, {parameters:,} parameters",
        "reads": f"{reads}; normalised with the statistics in the file",
        **{f"classes ({head}, {len(names)})": ", ".join(names) for head, names in header["heads"].items()},
        "trained on": f"{data}; {clips:,} clips",
        "starts from": "; ".join(_origin(*item, data) for item in encoders.items()) or "random weights, no other data",
        "run": f"{header['key']}, seed {header['seed']}",
        **{field: _plain(value) for field, value in run.items() if field not in ("model", "init", "robustness")},
        **{field: _plain(value) for field, value in recipe.items()},
    }
    facts = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    table = scores[scores["split"].isin(["val", "test"])].rename(columns={"modality": "given", "n": "clips"}).round(1)
    table = table.to_markdown(index=False, disable_numparse=True)
    made = "made by a game engine" if stats["name"] == GENERATED else f"those of {stats['name']}"
    views = f"{settings.get('clips', 1)} window(s) x {settings.get('crops', 1)} crop(s)"
    return f"""# {name}, seed {header["seed"]}

{facts}

## Scores

Percent; test clips are read in {views}. The epoch was chosen by top-1 on val, so scores there flatter it.

{table}

## Use

```python
from mmtlib.models.hub import load_model
model, about = load_model("{file}")
```

`python -m mmtlib.predict FILE --model {file}` reads any media file.
Meant for research on audio-video classification: to compare models trained on the same clips.

## Limits

- The clips are {made}. The scores say nothing of other recordings, other classes or other splits.
- It names one of its classes whatever it is given: there is no *none of these*.
- One seed; how much seeds differ, and intervals, are in reports/README.md.
- Not meant for decisions on people, nor where an error does harm.
- Licence: Apache-2.0, as the code's; the clips have their own.
"""


def _data(stats: Mapping[str, Any]) -> str:
    return f"{stats['name']}, fingerprint {stats['fingerprint'][:16]}"


def _origin(part: str, header: Mapping[str, Any], own: str) -> str:
    """Where an encoder comes from; data other than the run's own are named."""
    data = _data(header["stats"]) if "stats" in header else "data that its file does not state"
    run = f", run {header['key']}" if "key" in header else ""
    return f"{part}: {header['name']}{run}, trained on {'the same data' if data == own else data}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
