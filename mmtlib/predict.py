"""What a trained model makes of any media file, whole and window by window: `mmt predict FILE...`."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from mmtlib.data.dataset import normalised
from mmtlib.data.decode import Decoded, Settings, Task, decode
from mmtlib.data.media import CUT_OFF_S
from mmtlib.data.probe import look
from mmtlib.evaluation.scores import probabilities
from mmtlib.files import Number
from mmtlib.models import AVModel, from_pretrained
from mmtlib.models.hub import WeightsError
from mmtlib.sections import check

_WORDS = {"audio": "audio", "video": "video", "av": "audio-visual"}  # figures.style.READS, which imports matplotlib
_TOGETHER = 16  # windows of a long file that are decoded and read at a time
_COLUMNS = ["modality", "head", "rank", "label", "probability"]
Heads = Mapping[str, Sequence[str]]  # name -> classes
AnyModel = AVModel | str | Path  # a trained one, or its weights


class PredictionError(ValueError):
    """A file or a setting of which nothing can be said; the text is one sentence with the remedy."""


class Prediction(NamedTuple):
    """What a model says of a file.

    Columns of the tables: modality (what the model was given: audio, video, av), head, rank (from 1), label,
    probability, and of a model of several labels a clip `present`: whether the probability reaches the class's
    threshold, of the best F1 on validation. In `windows` start and end come first, in seconds.
    """

    file: Path
    seconds: float  # the file's length
    notes: list[str]  # what the file lacks, in plain words
    verdict: pd.DataFrame  # the mean of the windows
    windows: pd.DataFrame


def predict_file(
    model: AnyModel, file: str | Path, *, top: int = 5, seconds: Number | None = None, hop: Number | None = None
) -> Prediction:
    """The `top` classes that a trained model, or one of these weights, names for a media file and for its windows.

    Windows of `seconds` (None: the length that the model was trained on) begin every `hop` seconds (None: one after
    the other), and the last one ends with the file; of a file that is no longer than one, or by less than
    media.CUT_OFF_S, the central one is read, as in training. Each is decoded and normalised as the test clips of the
    training were, its crops averaged. A model of both modalities is asked with the audio alone, with the video alone
    and with both, as in `evaluation.predict`: the same clip gets the same probabilities. The file's are the means over
    the windows that have what is asked for. A modality that a window lacks (digital silence is no sound) is withheld
    there, and `notes` says so. Raises WeightsError, ParamsError (`seconds` that give no spectrogram) and
    PredictionError: a file that cannot be read or has nothing of what the model reads.
    """
    model, file = ready(model), Path(file)
    kind, stats = model.reads, model.about["stats"]
    heads = stats.get("heads") or {"label": stats["classes"]}
    given = stats["settings"] | {"clips": 1} | ({} if seconds is None else {"seconds": seconds})
    settings = check(Settings, given, f"features of {model.about['name']}")  # the windows are those below
    facts = look(str(file))
    if facts.status != "ok":
        raise PredictionError(_in_other_words(facts.reason))
    spans = window_spans(facts.duration, settings.seconds, hop)
    rows, answers = [], {modality: [] for modality in (_WORDS if kind == "av" else [kind])}
    for group in _groups(spans):
        task = Task(file, group[0][0], group[-1][1], all_views=True)
        made = decode(settings.model_copy(update={"clips": len(group)}), task, kind)
        if made.status != "used":
            raise PredictionError(_in_other_words(made.reason))
        for (start, end), by_modality in zip(group, _answers(model, stats, heads, made, len(group)), strict=True):
            for modality, answer in by_modality.items():
                rows += [(start, end, *row) for row in _best(answer, modality, heads, top)]
                answers[modality].append(answer)
    verdict = []
    for modality, found in answers.items():
        verdict += _best(torch.stack(found).mean(0), modality, heads, top) if found else []
    if not verdict:
        raise PredictionError(f"{file} has nothing of what {model.about['name']} reads ({kind}); give another file.")
    notes = _notes({modality: len(found) for modality, found in answers.items()}, len(spans))
    verdict, windows = pd.DataFrame(verdict, columns=_COLUMNS), pd.DataFrame(rows, columns=["start", "end", *_COLUMNS])
    named = model.about.get("thresholds", {}).items()
    cuts = {(name, label): cut for name, own in named for label, cut in zip(stats["classes"], own, strict=True)}
    for table in (verdict, windows) if cuts else ():
        own = [cuts.get(pair, np.inf) for pair in zip(table["modality"], table["label"], strict=True)]
        table["present"] = table["probability"] >= own
    return Prediction(file, facts.duration, notes, verdict, windows)


def ready(model: AnyModel) -> AVModel:
    """The model, or that of these weights, on the GPU if there is one."""
    if not isinstance(model, AVModel):
        model = from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")
    if "stats" not in model.about:
        raise WeightsError(f"{model.about['name']} does not say how its inputs were made; train it again")
    return model


def window_spans(length: float, seconds: Number, hop: Number | None = None) -> list[tuple[float, float]]:
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


def _groups(spans: list[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Windows that are decoded together: alike and one after the other, so that a long file is read once.

    Tells how far a long file is.
    """
    regular = spans[:-1]  # the last one ends with the file, wherever it begins
    for first in range(0, len(regular), _TOGETHER):
        if first and first % (10 * _TOGETHER) == 0:
            print(f"{first} of {len(spans)} windows", file=sys.stderr, flush=True)
        yield regular[first : first + _TOGETHER]
    yield spans[-1:]


@torch.inference_mode()
def _answers(model: AVModel, stats: dict, heads: Heads, made: Decoded, windows: int) -> list[dict[str, Tensor]]:
    """Each window's probabilities by what the model is given, averaged over its crops; heads side by side."""
    answers: list[dict[str, Tensor]] = [{} for _ in range(windows)]
    crops, lengths = len(made.views) // windows, torch.tensor(made.audio_frames)
    lacks = [(view.log_mel is None, view.frames is None) for view in made.views]
    for lack in set(lacks):
        where = [place for place, other in enumerate(lacks) if other == lack]
        views = [made.views[place] for place in where]
        log_mel, frames = (
            None if is_absent else torch.from_numpy(np.stack(parts))
            for is_absent, parts in zip(lack, zip(*views, strict=True), strict=True)
        )
        audio, video = normalised(log_mel, frames, lengths[where], stats, next(model.parameters()).device)
        given = {"audio": (audio, None), "video": (None, video), "av": (audio, video)}
        for modality in given if model.reads == "av" else [model.reads]:
            if all(part is None for part in given[modality]):
                continue
            logits = model.read(*given[modality]).logits.float().cpu()
            sizes = [1] * logits.shape[1] if stats.get("multilabel") else [len(names) for names in heads.values()]
            views = probabilities(logits, sizes)
            means = reduce(views, "(windows crops) c -> windows c", "mean", crops=crops)
            for place, mean in zip(where[::crops], means, strict=True):
                answers[place // crops][modality] = mean
    return answers


def _best(probabilities: Float[Tensor, " classes"], modality: str, heads: Heads, top: int) -> list[tuple]:
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
        word, other = _WORDS[modality], {"audio": "video", "video": "audio"}.get(modality)
        alone = f"; {_WORDS['av']} is {_WORDS[other]} alone" if "av" in counts and other else ""
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
    if "present" in found.verdict:
        lines.append("* is named: its probability reaches the class's threshold, of the best F1 on validation")
    return "\n".join(lines) + "\n"


def _side_by_side(table: pd.DataFrame, index: list[str]) -> str:
    """A column for what the model was given (and for each head, where there are several)."""
    several = table["head"].nunique() > 1
    words = table["modality"].map(_WORDS)
    table = table.assign(
        column=table["head"] + " by " + words if several else words,
        cell=table["label"]
        + table["probability"].map(" {:6.1%}".format)
        + (table["present"].map({True: " *", False: "  "}) if "present" in table else ""),
    )
    wide = table.pivot(index=index, columns="column", values="cell").fillna("-")[table["column"].unique()]
    return wide.reset_index().to_string(index=False)


def as_json(found: Prediction, windows: bool = False) -> str:
    """A prediction as one line of JSON; seconds to the millisecond, probabilities to six digits."""
    digits = {"start": 3, "end": 3, "probability": 6}
    tables = {"verdict": found.verdict} | ({"windows": found.windows} if windows else {})
    plain = {name: table.round(digits).to_dict("records") for name, table in tables.items()}
    return json.dumps({"file": str(found.file), "seconds": round(found.seconds, 3), "notes": found.notes} | plain)


if __name__ == "__main__":  # as `mmt predict`
    import runpy

    sys.argv.insert(1, "predict")
    runpy.run_module("mmtlib", run_name="__main__")
