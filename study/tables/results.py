"""What the stages left in a study's folders: its runs with their predictions, and the features they were given."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from mmtlib.config import STAGES as TRAINED
from mmtlib.config import Objective, Params, Run, Trial
from mmtlib.evaluation.predictions import read_predictions
from mmtlib.folders import Folders
from mmtlib.models import MODALITY
from mmtlib.training.experiment import encoder_runs, run_of

STAGES = dict(zip(("audio", "video", "av"), TRAINED, strict=True))  # they train the default models of these modalities
QUESTIONS: dict[str, Any] = YAML(typ="safe", pure=True).load(Path(__file__).parents[1] / "claims.yaml")

GROUPS: dict[str, str] = QUESTIONS["groups"]
"""The blocks of ablations.csv, each with the claim that its rows test; rows of other groups have their own tables."""


class ReportError(RuntimeError):
    """Something that an earlier stage writes is missing or unreadable; the message names that stage."""


@dataclass(frozen=True)
class Result:
    """One run of params.yaml, of every seed and fold, as it was trained.

    `label` is the model's name in the tables (see model_label), `trained` the run's section as it was then.
    `predictions` are by seed, those of all folds in one table, with the column `fold`: each clip is tested once.
    """

    name: str
    group: str | None  # none: the run of a stage
    label: str
    trained: Run
    predictions: dict[int, pd.DataFrame]
    curves: dict[Trial, pd.DataFrame]

    @property
    def modality(self) -> str:
        """What the model reads: audio, video or av."""
        return MODALITY[self.trained.model]

    @property
    def objective(self) -> str:
        return objective_name(self.trained.objective)

    @property
    def about(self) -> dict[str, Any]:
        """The columns that tell of the model in most tables."""
        return {"model": self.label, "modality": self.modality, "objective": self.objective, "ours": self.group is None}


def stage_of(name: str, group: str | None) -> str:
    """What to run for a run, in words."""
    return name if group is None else f"ablations for row {name}"


def load_results(folders: Folders, params: Params) -> list[Result]:
    """Everything that params.yaml asks to be trained: the three stages, then the rows of `ablations`.

    Raises ReportError, naming the stage to run, for the first file that is missing or damaged.
    """
    results: list[Result] = []
    for name, run in params.runs.items():
        group, trained, predictions, curves = getattr(run, "group", None), None, {}, {}
        for trial in params.trials(name):
            weights = folders.weights(name, *trial)
            try:
                about = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
                trained = run_of(about["parts"])
                own = read_predictions(folders.predictions(name, *trial))
                predictions.setdefault(trial.seed, []).append(own.assign(fold=trial.fold))
                curves[trial] = pd.read_csv(weights.with_suffix(".csv")).rename(columns={"val_map": "val_top1"})
            except (ValueError, OSError, KeyError, TypeError) as error:
                problem = f"the files of {name} with {trial} are missing or damaged ({error!r})"
                raise ReportError(f"{problem}; run stage {stage_of(name, group)}.") from error
        predictions = {seed: pd.concat(parts, ignore_index=True) for seed, parts in predictions.items()}
        reference = next((r for r in results if r.group is None and r.trained.model == trained.model), None)
        label = trained.model if group is None else model_label(name, trained, reference and reference.trained)
        inits = {trained.init, *(own.init for _, own in encoder_runs(run, params).values())}
        label += "".join(f"+{Path(init).stem}" for init in sorted(inits - {"scratch", "pretrained"}))  # saw other data
        results.append(Result(name, group, label, trained, predictions, curves))
    return results


def model_label(row: str, run: Run, reference: Run | None) -> str:
    """The model's name in the tables: `mmt_t` where a row changes the objective only, else `mmt_t-concat`.

    `reference` is the stage's run of the same model, if there is one.
    """
    left_out = {"objective", "robustness"}  # the latter is how it is tested
    same = reference is not None and run.model_dump(exclude=left_out) == reference.model_dump(exclude=left_out)
    if row == run.model or (same and objective_name(run.objective) != objective_name(reference.objective)):
        return run.model
    variant = re.sub(f"^({run.model}|{run.model.rsplit('_', 1)[0]})[_-]", "", row)
    return f"{run.model}-{variant.replace('_', '-')}"


def objective_name(objective: Objective) -> str:
    """ce, ce+avc, ce+imc or ce+avc+imc: the losses that have a weight."""
    return "+".join(["ce"] + [part for part in ("avc", "imc") if getattr(objective, part) > 0])


def read_features(folders: Folders) -> dict[str, Any]:
    """features.json; ReportError if the stage has not run.

    `heads` is always there; with several of them `classes` are those of the first, by which the report tells classes.
    `multilabel`: whether a clip may have several labels; mAP then stands where top-1 does.
    `groups` of a set of folds: clip_id -> the recording or person that it shares with others.
    """
    path = folders.features / "features.json"
    try:
        features = json.loads(path.read_text(encoding="utf-8"))
        heads = features.get("heads") or {"label": features["classes"]}
        groups = {}
        if "folds" in features:
            groups = pd.read_csv(path.with_name("index.csv"), dtype=str, na_filter=False).set_index("clip_id").group
        own = {"heads": heads, "classes": next(iter(heads.values())), "groups": dict(groups.items())}
        return {"multilabel": False} | features | own
    except FileNotFoundError as error:
        raise ReportError(f"{error.filename} does not exist; run stage features.") from None
    except ValueError as error:
        raise ReportError(f"{path} is damaged ({error}); run stage features again.") from error
