"""How a notebook begins: the parameters and folders of its study, and the files that it reads.

A notebook's default is the study `smoke`, and JupyterLab and nbval may start with any notebook: the stages before it
are then run first, in folders of that study, where they can overwrite nothing real.
"""

import os
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mmtlib.cluster import cores
from mmtlib.config import ROOT, STAGES, Params, load
from mmtlib.data.download import download
from mmtlib.data.features import extract_features
from mmtlib.folders import Folders
from mmtlib.training.experiment import kept, kept_runs, parts_for
from mmtlib.training.stage import Trained, train_runs

# Stage or guide -> the stages whose files it reads, in their order.
NEEDS = {
    "download": (),
    "features": ("download",),
    "pretrain_mat": ("features",),
    "pretrain_mvit": ("features",),
    "train_mmt": ("features", "pretrain_mat", "pretrain_mvit"),
    "ablations": ("features", "pretrain_mat", "pretrain_mvit"),
    "report": ("download", "features", "pretrain_mat", "pretrain_mvit", "train_mmt", "ablations"),
    "efficiency": (),
    "predict_your_own_clip": ("features",),
}

SMOKE = "smoke"  # the study whose missing files are made
FULL = "params/freedoom.yaml"  # the study whose results stand in for those of `smoke`


class MissingStage(RuntimeError):  # noqa: N818 (it says what is missing)
    """A stage was started before one that it needs; the text is one sentence that names that one."""


def begin(stage: str, file: str, changes: Mapping[str, Any] | None = None, root: Path = ROOT) -> tuple[Params, Folders]:
    """The parameters in `file`, with `changes` (see config.load), and the folders of their study.

    In the study `smoke` the earlier stages whose files are missing are run, a line printed for each. In any other
    nothing is made: raises MissingStage naming the stage to run. torch gets the cores that this process may use.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores())
    params = load(file, root, changes)
    folders = Folders(root, params.study)
    _prepare(stage, params, folders)
    return params, folders


def _prepare(stage: str, params: Params, folders: Folders) -> None:
    for earlier in (name for name in NEEDS[stage] if name not in STAGES or name in params.runs):
        absent = [path for path in outputs(earlier, params, folders) if not path.is_file()]
        if absent and params.study != SMOKE:
            name = absent[0].relative_to(folders.root)
            target = earlier if params.study == load().study else f"build/{params.study}/dvc.yaml:{earlier}"
            raise MissingStage(f"{stage} needs {name}, which is missing; run `dvc repro {target}` first.")
        if absent:
            _prepare(earlier, params, folders)
            print(f"{earlier} has not run in the study {params.study}: it runs now", flush=True)
            _run(earlier, params, folders)


def outputs(stage: str, params: Params, folders: Folders) -> list[Path]:
    """Files that a finished stage has left for the later ones."""
    if stage == "download":
        return [folders.clips / "manifest.csv", folders.clips / "dataset.json"]
    if stage == "features":
        return [folders.features / "features.json"]
    names = [stage] if stage in STAGES else params.ablations
    runs = [(name, *trial) for name in names for trial in params.trials(name)]
    return [path for run in runs for path in (folders.weights(*run).with_suffix(".json"), folders.predictions(*run))]


def _run(stage: str, params: Params, folders: Folders) -> None:
    """Call the stage's verb as its notebook does."""
    if stage == "download":
        download(folders.clips, **params.download.model_dump())
    elif stage == "features":
        extract_features(folders.clips / "manifest.csv", folders.features, **params.features.model_dump())
    else:
        for name in [stage] if stage in STAGES else params.ablations:
            train_runs(name, params, folders)


def to_show(name: str, trained: list[Trained], params: Params, root: Path = ROOT) -> list[Trained]:
    """The results of a run that a notebook shows: those just trained; in the study `smoke` those of FULL instead.

    One epoch on two clips a class shows nothing. FULL's predictions are committed; its models are an older, wider form.
    """
    if params.study != SMOKE:
        return trained
    full, found = load(FULL, root), []
    folder = root / full.training.kept
    data = kept_runs(folder)[0].about["parts"]["data"]
    for trial in full.trials(name):
        run = kept(folder, parts_for(full.runs[name], full, trial, data))
        history = pd.read_csv(StringIO(run.about["history"]))
        found.append(Trained(trial, Folders(root, full.study).weights(name, *trial), run.predictions, history))
    print(f"of the study {full.study}, whose predictions are kept: {len(found)} seeds")
    return found
