"""What a training run is known by, where its encoders come from, and which finished runs are kept.

The key of a run is a hash of what it is, in plain values: the run, the recipe, the seed, the fold, the data, the keys
of the runs that its encoders come from, and the version of its family's numbers, NUMERICS. No source text is part of
it: a rename orphans nothing. What the numbers of a family depend on is guarded by tests/training/test_numerics.py.
"""

import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmtlib.config import ROOT, Params, ParamsError, Recipe, Run, Trial
from mmtlib.data.corruption import CONDITIONS
from mmtlib.files import digest, write_bytes, write_json
from mmtlib.models import resolved
from mmtlib.models.build import modality_of
from mmtlib.models.published import outside_files

NUMERICS = {"mat": 1, "ast": 1, "mvitv2": 1, "mmt": 2, "mbt": 2, "resnet18": 2, "vit_audio": 1, "vit_video": 1}
"""Version of the numbers of each family of models: raise it when a change of code changes what training computes."""

CORRUPTION = 1
"""The same for how test clips are corrupted."""

Parts = dict[str, Any]


def plain(run: Run) -> dict[str, Any]:
    """What decides a run, without what other parts tell; a row's place in the report does not.

    Its overrides are all settings of its model but `recompute`, which changes no number. ValueError: an unknown model.
    """
    told = run.model_dump(mode="json", exclude={"group", "seeds", "folds", "encoders"})
    settings = resolved(run.model, run.overrides)
    for part in (settings, settings.get("audio", {}), settings.get("video", {})):
        part.pop("recompute", None)
    return told | {"overrides": settings}


def parts_of(run: Run, recipe: Recipe, trial: Trial, data: Parts, encoders: Mapping[str, str]) -> Parts:
    """What a run is known by, as JSON.

    `data` is FeatureDataset.identity; `encoders`: part -> key of the run that it starts from, or hash of the file.
    Raises ValueError for a model that is not known.
    """
    several = len(data.get("heads", ())) > 1
    joint = several and run.objective.avc + run.objective.imc > 0  # had other positives once
    share = (several or data.get("multilabel", False)) and run.train_share < 1  # was of other clips
    parts = {
        "run": plain(run),
        # What came later is left out at its default: runs from before it stay found.
        "recipe": recipe.model_dump(exclude={"nproc", "kept"} | (set() if recipe.balanced else {"balanced"})),
        "seed": trial.seed,
        "fold": trial.fold,
        "data": data,
        "encoders": dict(encoders),
        "numerics": NUMERICS[run.model.rsplit("_", 1)[0]] + joint + share,
    }
    # How the trained model is tested, too, decides what is kept of the run, but not its weights.
    robust, moves = parts["run"].pop("robustness"), (data.get("settings") or {}).get("motion", False)
    parts["conditions"] = {"names": list(CONDITIONS), "version": CORRUPTION + moves} if robust else None
    return json.loads(json.dumps(parts))  # lists for tuples, as a file gives them back


def run_of(parts: Parts) -> Run:
    """The run that `parts_of` was given. Raises ValueError where it is not one of today's."""
    return Run.model_validate(parts["run"] | {"robustness": parts["conditions"] is not None})


ENCODERS = {"audio": "pretrain_mat", "video": "pretrain_mvit"}
"""The stages whose runs the encoders of a model with init "pretrained" come from, unless it names others."""


def encoder_runs(run: Run, params: Params) -> dict[str, tuple[str, Run]]:
    """part -> name of the run that an encoder comes from, and that run, of as few clips. ParamsError: there is none."""
    sources = run.encoders or ENCODERS if run.init == "pretrained" else {}
    if sources and modality_of(run.model) != "av":
        raise ParamsError(f"init pretrained is for models of both modalities, not for {run.model}; set it to scratch.")
    for part, name in sources.items():
        if name not in params.runs or modality_of(params.runs[name].model) != part:
            raise ParamsError(f"{run.model} starts from {name}, which is no run of {part} alone; correct `encoders`.")
    changes = {"train_share": run.train_share}
    return {part: (name, params.runs[name].model_copy(update=changes)) for part, name in sources.items()}


def parts_for(run: Run, params: Params, trial: Trial, data: Parts) -> Parts:
    """`parts_of` a run of a parameter file, the keys of its encoders worked out."""
    encoders = encoder_runs(run, params).items()
    keys = {part: key_of(parts_for(own, params, trial, data)) for part, (_, own) in encoders}
    outside = outside_files(run.model, run.init, run.overrides)
    keys |= {part: _file_key(path, path.stat().st_mtime_ns) for part, path in outside.items()}
    return parts_of(run, params.training, trial, data, keys)


@functools.cache
def _file_key(path: Path, mtime_ns: int) -> str:
    """Hash of a file of weights, read once: every row and seed asks for it."""
    return digest(path.read_bytes())


def planned(params: Params, data: Parts) -> Iterator[tuple[str, Trial, Parts]]:
    """Name, trial and parts of every run that a parameter file asks for, on data of this identity."""
    for name, run in params.runs.items():
        for trial in params.trials(name):
            yield name, trial, parts_for(run, params, trial, data)


def key_of(parts: Parts) -> str:
    """The key of a trained model: of all parts but how it is tested."""
    return digest({name: part for name, part in parts.items() if name != "conditions"})


@dataclass(frozen=True)
class Kept:
    """A finished run that is kept: a table of predictions and, beside it, a JSON file that says what it is."""

    predictions: Path

    @property
    def about(self) -> dict[str, Any]:
        """parts (see parts_of), history (the learning curve as CSV), precision (fp32, bf16), commit, torch."""
        return json.loads(self.predictions.with_suffix(".json").read_text(encoding="utf-8"))


def kept(folder: Path, parts: Parts) -> Kept:
    """Where a run is kept, whether it is there or not."""
    return Kept(folder / f"{digest(parts)}.parquet")


def is_kept(run: Kept) -> bool:
    """Whether both files are there; the JSON file is written last."""
    return run.predictions.is_file() and run.predictions.with_suffix(".json").is_file()


def keep(run: Kept, predictions: bytes, about: Mapping[str, Any]) -> None:
    """Write a finished run, its JSON file last."""
    write_bytes(run.predictions, predictions)
    write_json(run.predictions.with_suffix(".json"), about)


def kept_runs(folder: Path) -> list[Kept]:
    """All runs that are kept in a folder, by name."""
    return [run for run in map(Kept, sorted(folder.glob("*.parquet"))) if is_kept(run)]


def differences(wanted: Any, found: Any, name: str = "") -> Iterator[str]:
    """What differs between two values of JSON, a line each: `recipe.noise: 0.1 is kept, 0.0 is wanted`."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted(wanted.keys() | found.keys()):
            yield from differences(wanted.get(key), found.get(key), f"{name}.{key}".removeprefix("."))
    elif wanted != found:
        yield f"{name}: {json.dumps(found)} is kept, {json.dumps(wanted)} is wanted"


def why_not(folder: Path, parts: Parts) -> str:
    """For a run that is not kept: what sets it apart from the kept run that is nearest to it."""
    runs = [list(differences(parts, run.about["parts"])) for run in kept_runs(folder)]
    return "; ".join(min(runs, key=len)) if runs else f"no run is kept in {folder}"


@functools.cache
def made_with() -> dict[str, str]:
    """The commit of the code and the version of torch, for the record; neither is part of a key."""

    def git(*words: str) -> str:  # of this checkout, not of one around it
        command = ["git", "-C", str(ROOT), "--git-dir=.git", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "mmtlib", "study", "freedoom_sounds", "dvc.yaml")
        commit = git("rev-parse", "HEAD").strip() + ", with uncommitted changes" * bool(changed)
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return {"commit": commit, "torch": torch.__version__.split("+")[0]}
