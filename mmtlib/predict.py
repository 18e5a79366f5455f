"""What a trained model makes of any media file, whole and window by window.

python -m mmtlib.predict FILE... [--model WEIGHTS] [--top 5] [--windows] [--json]
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmtlib.config import ROOT
from mmtlib.data.decode import FeatureError, Settings, Task, View, decode
from mmtlib.data.media import CUT_OFF_S
from mmtlib.data.probe import look
from mmtlib.models import MODALITY
from mmtlib.models.hub import WeightsError, load_model

WEIGHTS = ROOT / "models/train_mmt/train_mmt-seed0.safetensors"
"""The MMT of the pipeline."""

_WORDS = {"audio": "sound", "video": "picture", "av": "both"}  # figures.READS, without its slow import of matplotlib


class PredictionError(ValueError):
    """A file or a setting of which nothing can be said; the text is one sentence with the remedy."""


class Prediction(NamedTuple):
    """What a model says of a file.

    Columns of the tables: modality (what the model was given: audio, video, av), head, rank (from 1), label,
    probability. In `windows` start and end come first, in seconds.
    """

    file: Path
    seconds: float  # the file's length
    notes: list[str]  # what the file lacks, in plain words
    verdict: pd.DataFrame  # the mean of the windows
    windows: pd.DataFrame


def predict_file(
    weights: str | Path,
    file: str | Path,
    *,
    top: int = 5,
    seconds: float | int | None = None,
    hop: float | int | None = None,
) -> Prediction:
    """The `top` classes that a trained model sees in a media file, in all and in each of its windows.

    Windows of `seconds` (None: the length that the model was trained on) begin every `hop` seconds (None: one after
    the other), and the last one ends with the file; of a file that is no longer than one, or by less than
    media.CUT_OFF_S, the central one is read, as in training. Each is decoded and normalised as the test clips of the
    training were, its crops averaged. A model of both modalities is asked with the sound alone, with the picture alone
    and with both, as in `evaluation.predict`: the same clip gets the same probabilities. The file's are the means over
    the windows that have what is asked for. A modality that a window lacks (digital silence is no sound) is withheld
    there, and `notes` says so. Raises WeightsError, FeatureError (a window that gives no spectrogram) and
    PredictionError: a file that cannot be read or has nothing of what the model reads.
    """
    return _predict(*_load(weights), Path(file), top, seconds, hop)


def _load(weights: str | Path) -> tuple[nn.Module, dict]:
    model, about = load_model(Path(weights))
    if "stats" not in about:
        raise WeightsError(f"{weights} does not say how its inputs were made; train it again")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), about


def _predict(model: nn.Module, about: dict, file: Path, top: int, seconds, hop) -> Prediction:
    kind, stats = MODALITY[about["name"]], about["stats"]
    heads = stats.get("heads") or {"label": stats["classes"]}
    settings = replace(Settings(**stats["settings"]), clips=1)  # the windows are those below
    settings = settings if seconds is None else replace(settings, seconds=seconds)
    facts = look(str(file))
    if facts.status != "ok":
        raise PredictionError(_in_other_words(facts.reason))
    spans = window_spans(facts.duration, settings.seconds, hop)
    rows, means, counts = [], {}, dict.fromkeys(_WORDS if kind == "av" else [kind], 0)
    for start, end in spans:
        made = decode(settings, Task(file, start, end, "test"), kind)
        if made.status != "used":
            raise PredictionError(_in_other_words(made.reason))
        for modality, probabilities in _answers(model, stats, heads, kind, made.views).items():
            rows += [(start, end, *row) for row in _best(probabilities, modality, heads, top)]
            counts[modality] += 1
            mean = means.get(modality, 0.0)
            means[modality] = mean + (probabilities - mean) / counts[modality]
    if not means:
        raise PredictionError(f"{file} has nothing of what {about['name']} reads ({kind}); give another file.")
    columns = ["modality", "head", "rank", "label", "probability"]
    verdict = [row for modality in counts if modality in means for row in _best(means[modality], modality, heads, top)]
    return Prediction(
        file,
        facts.duration,
        _notes(counts, len(spans)),
        pd.DataFrame(verdict, columns=columns),
        pd.DataFrame(rows, columns=["start", "end", *columns]),
    )


def window_spans(length: float, seconds: float | int, hop: float | int | None = None) -> list[tuple[float, float]]:
    """Start and end, in seconds, of the windows of a file of that length; see `predict_file`."""
    hop = seconds if hop is None else hop
    if not hop > 0:
        raise PredictionError(f"hop is {hop}; give a number of seconds above 0.")
    last = length - seconds
    if last <= CUT_OFF_S:
        first = max(last, 0.0) / 2
        return [(first, min(first + seconds, length))]
    starts = np.arange(0.0, last - min(CUT_OFF_S, hop / 2), hop)  # one that is hardly before the last adds nothing
    return [(start, min(start + seconds, length)) for start in (*starts.tolist(), last)]


@torch.inference_mode()
def _answers(
    model: nn.Module, stats: dict, heads: Mapping[str, Sequence[str]], kind: str, views: Sequence[View]
) -> dict[str, Float[Tensor, " classes"]]:
    """Probabilities of a window by what the model is given, averaged over the window's crops; heads side by side."""
    device = next(model.parameters()).device
    audio = video = None
    if views[0].log_mel is not None:  # the arithmetic of FeatureDataset, step by step, for the same last digits
        audio = torch.stack([torch.from_numpy(view.log_mel) for view in views])[:, None].float()
        audio.sub_(stats["log_mel"]["mean"]).div_(stats["log_mel"]["std"])
        audio = audio.to(device)
    if views[0].frames is not None:
        video = torch.stack([torch.from_numpy(view.frames) for view in views]).permute(0, 4, 1, 2, 3).float()
        mean, std = (255 * torch.tensor(stats["frames"][name]).view(3, 1, 1, 1) for name in ("mean", "std"))
        video = video.sub_(mean).div_(std).to(device)
    given = {"audio": (audio,), "video": (video,)}
    if kind == "av":
        given = {"audio": (audio, None), "video": (None, video), "av": (audio, video)}
    found = {}
    for modality, inputs in given.items():
        if any(part is not None for part in inputs):
            out = model(*inputs)
            logits = (out.logits if kind == "av" else out).float().cpu()
            parts = logits.split([len(names) for names in heads.values()], dim=1)
            found[modality] = torch.cat([part.softmax(1) for part in parts], dim=1).mean(0)
    return found


def _best(
    probabilities: Float[Tensor, " classes"], modality: str, heads: Mapping[str, Sequence[str]], top: int
) -> list[tuple]:
    """A row for each of the `top` classes of each head."""
    rows = []
    parts = probabilities.split([len(names) for names in heads.values()])
    for (head, names), part in zip(heads.items(), parts, strict=True):
        best = part.topk(min(top, len(names)))
        for rank, (value, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), start=1):
            rows.append((modality, head, rank, names[index], value))
    return rows


def _notes(counts: Mapping[str, int], windows: int) -> list[str]:
    """What is to be said of windows that lack a modality. `counts`: modality -> windows that were read with it."""
    notes = []
    for modality, count in counts.items():
        word, other = _WORDS[modality], {"audio": "picture", "video": "sound"}.get(modality)
        alone = f"; both is the {other} alone" if "av" in counts and other else ""
        if count == 0:
            notes.append(f"no {word} in it{alone}")
        elif count < windows:
            where = "with neither" if modality == "av" else f"without {word}"
            notes.append(f"{windows - count} of {windows} windows {where}{alone and alone + ' there'}")
    return notes


def _in_other_words(reason: str) -> str:
    """A reason of mmtlib.data, without its advice on the rows of a manifest."""
    return re.sub(r"(fetch it( again)?|put a file there) or drop its row.*$", "give another file.", reason)


def as_text(found: Prediction, windows: bool = False) -> str:
    """A prediction for people to read: the best classes in percent, and with `windows` the best one of each."""
    number = len(found.windows.groupby(["start", "end"]))
    lines = [f"{found.file}: {found.seconds:.1f} s, {number} window{'s' * (number != 1)}", *found.notes]
    lines.append(_side_by_side(found.verdict, ["rank"]))
    if windows:
        first = found.windows[found.windows["rank"] == 1]
        lines += ["", _side_by_side(first.round({"start": 2, "end": 2}), ["start", "end"])]
    return "\n".join(lines) + "\n"


def _side_by_side(table: pd.DataFrame, index: list[str]) -> str:
    """A column for what the model was given (and for each head, where there are several)."""
    several = table["head"].nunique() > 1
    words = table["modality"].map(_WORDS)
    table = table.assign(
        column=table["head"] + " by " + words if several else words,
        cell=table["label"] + table["probability"].map(" {:6.1%}".format),
    )
    wide = table.pivot(index=index, columns="column", values="cell").fillna("-")[table["column"].unique()]
    return wide.reset_index().to_string(index=False)


def as_json(found: Prediction, windows: bool = False) -> str:
    """A prediction as one line of JSON; seconds to the millisecond, probabilities to six digits."""
    digits = {"start": 3, "end": 3, "probability": 6}
    tables = {"verdict": found.verdict} | ({"windows": found.windows} if windows else {})
    plain = {name: table.round(digits).to_dict("records") for name, table in tables.items()}
    return json.dumps({"file": str(found.file), "seconds": round(found.seconds, 3), "notes": found.notes} | plain)


def main(arguments: list[str] | None = None) -> int:
    """Print what the model says of each file; return 0, or 1 where one got a sentence on standard error instead."""
    parser = argparse.ArgumentParser(prog="python -m mmtlib.predict", description="Name what is seen and heard.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file of sound, picture or both")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="weights (default: of stage train_mmt)")
    parser.add_argument("--top", type=int, default=5, help="classes shown (5)")
    parser.add_argument("--windows", action="store_true", help="what is said of each window, too")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each file")
    given = parser.parse_args(arguments)
    if given.top < 1:
        parser.error(f"--top {given.top}: give 1 or more")
    try:
        model, about = _load(given.model)
    except WeightsError as error:
        print(error, file=sys.stderr)
        return 1
    status = 0
    for file in given.files:
        try:
            found = _predict(model, about, file, given.top, None, None)
        except (PredictionError, FeatureError) as error:
            print(error, file=sys.stderr)
            status = 1
        else:
            print((as_json if given.json else as_text)(found, given.windows), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
