"""Inputs of a notebook: checked in a real workspace, made in the smoke one.

A notebook's defaults are the smoke profile, and JupyterLab and nbval may start with any notebook: there the
stages before it are run first, in build/smoke, where they can overwrite nothing real.
"""

import os
from pathlib import Path

from mmtlib import config
from mmtlib.config import Params, load
from mmtlib.data.download import download
from mmtlib.data.features import extract_features
from mmtlib.training.stage import arguments_of, train_runs

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
    "predict_your_own_clip": ("train_mmt",),
}


class MissingStage(RuntimeError):  # noqa: N818 (it says what is missing)
    """A stage was started before one that it needs; the text is one sentence that names that one."""


def is_smoke(workspace: str | Path) -> bool:
    """Whether a workspace may be filled by `prepare`: it is called build/smoke, wherever that lies."""
    return config.workspace(workspace).parts[-2:] == ("build", "smoke")


def profile(workspace: str | Path) -> Params:
    """The parameters that a workspace is made with: params/smoke.yaml in a smoke one, else params.yaml."""
    return load("params/smoke.yaml" if is_smoke(workspace) else "params.yaml")


def prepare(workspace: str | Path, stage: str) -> None:
    """See to it that the files a stage reads are there.

    In a smoke workspace the earlier stages whose files are missing are run with params/smoke.yaml, a line
    printed for each. In any other nothing is made: raises MissingStage naming the stage to run.
    """
    folder = config.workspace(workspace)
    params = profile(workspace)
    for earlier in NEEDS[stage]:
        absent = [name for name in outputs(params, earlier) if not (folder / name).is_file()]
        if not absent:
            continue
        if not is_smoke(workspace):
            raise MissingStage(f"{stage} needs {absent[0]}, which is missing; run `dvc repro {earlier}` first.")
        prepare(workspace, earlier)
        print(f"{earlier} has not run in {os.path.relpath(folder, config.ROOT)}: it runs now", flush=True)
        _run(folder, params, earlier)


def outputs(params: Params, stage: str) -> list[str]:
    """Files, relative to the workspace, that a finished stage has left for the later ones."""
    if stage == "download":
        return ["data/clips/manifest.csv", "data/clips/dataset.json"]
    if stage == "features":
        return ["data/features/features.json"]
    return [
        f"{kind}/{folder}/{Path(folder).name}-seed{seed}.{suffix}"
        for folder in _runs(params, stage)
        for seed in params.seeds_of(Path(folder).name)
        for kind, suffix in (("models", "json"), ("predictions", "parquet"))
    ]


def _runs(params: Params, stage: str) -> list[str]:
    """The folders of a training stage's runs below models/."""
    return [f"ablations/{row}" for row in params.ablations] if stage == "ablations" else [stage]


def _run(folder: Path, params: Params, stage: str) -> None:
    """Call the stage's verb as its notebook does."""
    if stage == "download":
        download(folder / "data/clips", **params.download.model_dump())
    elif stage == "features":
        manifest = folder / "data/clips/manifest.csv"
        extract_features(manifest, folder / "data/features", **params.features.model_dump())
    else:
        for place in _runs(params, stage):
            train_runs(**arguments_of(Path(place).name, params), workspace=folder)
