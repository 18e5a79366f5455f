"""The training stages: a run for each of its seeds, in one process or several, and what it leaves.

With `training.kept`, predictions of finished runs are kept in a folder, too, under the key of the run (see experiment),
and taken from there instead of training. `training.nproc` starts processes on this machine, `torchrun ... -m
mmtlib.training.stage STAGE` anywhere.
"""

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mmtlib.config import Params, ParamsError, Recipe, Run, load
from mmtlib.config import workspace as workspace_folder
from mmtlib.data.corruption import CONDITIONS
from mmtlib.data.dataset import FeatureDataset
from mmtlib.distributed import barrier, process_group, rank, ranks, torchrun
from mmtlib.evaluation.predictions import predict, predictions_bytes, read_predictions, scores
from mmtlib.files import write_bytes, write_json, write_text
from mmtlib.models.hub import read_header
from mmtlib.training.card import model_card
from mmtlib.training.experiment import ENCODERS, encoder_runs, is_kept, keep, kept, key_of, made_with, parts_of, plain
from mmtlib.training.loop import Trainer, nothing, origin


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its files, its learning curve, and its scores on validation and test."""

    name: str
    seed: int
    weights: Path
    predictions: Path
    history: pd.DataFrame  # epoch, lr, loss, ce, avc, imc, val_loss, val_top1; seconds, if this process trained
    scores: pd.DataFrame  # split, modality, n, top1, top5


FAILED = "training failed: "  # begins the line in which a process says why


class TrainingError(RuntimeError):
    """Training in several processes failed; the text is one sentence, that of the process that failed."""


def train_runs(
    name: str,
    run: Run,
    recipe: Recipe,
    *,
    stage: str,
    seeds: list[int],
    workspace: Path,
    encoders: Mapping[str, Run] | None = None,
) -> list[Trained]:
    """Train `run` once for each seed and keep weights, learning curve and predictions.

    Files: models/<stage>/<name>-seed<k>.safetensors, .md (the card of the weights), .csv (the learning curve) and .json
    (what was run), and predictions/<stage>/<name>-seed<k>.parquet, all below `workspace`; there are no weights where
    predictions kept in `recipe.kept` were taken, and no card. `encoders` are the runs of the stages pretrain_mat and
    pretrain_mvit, by these names: what a run with init "pretrained" starts from is trained here where that stage has
    left no weights, or where the run has fewer clips. With `recipe.nproc` above 1 so many processes do it together.
    Raises DatasetError or WeightsError when an earlier stage has not run, TrainingError when one of the processes
    fails.
    """
    workspace, encoders = Path(workspace).resolve(), encoders or {}
    if recipe.nproc > 1 and ranks() == 1:
        _in_processes(name, run, recipe, stage, seeds, workspace, encoders)
        return [_finished(name, stage, seed, workspace) for seed in seeds]
    return [_train_one(name, run, recipe, stage, seed, workspace, encoders) for seed in seeds]


def _in_processes(
    name: str, run: Run, recipe: Recipe, stage: str, seeds: list[int], workspace: Path, encoders: Mapping[str, Run]
) -> None:
    """`train_runs` in processes of their own, whose lines are printed here."""
    spec = dict(name=name, run=plain(run), recipe=recipe.model_dump(), stage=stage, seeds=seeds)
    spec["encoders"] = {part: plain(encoder) for part, encoder in encoders.items()}
    command = torchrun(
        recipe.nproc, "-m", "mmtlib.training", "--workspace", str(workspace), "--spec", json.dumps(spec)
    )
    threads = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // recipe.nproc, 1))}
    failures = []  # the first is the cause: other processes then miss that one
    with subprocess.Popen(
        command, env=threads | os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout:
                if " seed " in line.split(" | ")[0]:
                    print(line, end="", flush=True)
                elif line.startswith(FAILED):
                    failures.append(line.removeprefix(FAILED).strip())
        finally:
            process.terminate()  # of no effect where it has ended
    if process.returncode:
        cause = failures[0] if failures else f"one ended with status {process.returncode}; is there memory enough?"
        raise TrainingError(f"{recipe.nproc} processes of {name}: {cause}")


def _files(name: str, stage: str, seed: int, workspace: Path) -> tuple[Path, Path]:
    """Where the weights and the predictions of a run go."""
    file = f"{stage}/{name}-seed{seed}"
    return workspace / f"models/{file}.safetensors", workspace / f"predictions/{file}.parquet"


def _finished(name: str, stage: str, seed: int, workspace: Path) -> Trained:
    """A run as its files tell it."""
    weights, predictions = _files(name, stage, seed, workspace)
    history = pd.read_csv(weights.with_suffix(".csv"))
    return Trained(name, seed, weights, predictions, history, scores(read_predictions(predictions)))


def _train_one(
    name: str, run: Run, recipe: Recipe, stage: str, seed: int, workspace: Path, encoders: Mapping[str, Run]
) -> Trained:
    features, runs = workspace / "data/features", workspace / "runs"
    starts = {  # part -> key of the run that it comes from, and how to get its weights
        part: _encoder(ENCODERS[part], own, recipe, seed, workspace)
        for part, own in encoder_runs(run, encoders).items()
    }
    weights, path = _files(name, stage, seed, workspace)
    identity = FeatureDataset(features, "train").identity
    parts = parts_of(run, recipe, seed, identity, {part: start[0] for part, start in starts.items()})
    key, found = key_of(parts), kept(workspace / recipe.kept, parts) if recipe.kept else None
    if found is not None and is_kept(found):
        _say(name, seed)(f"takes the kept predictions, run {key}")
        data, about, history = found.predictions.read_bytes(), found.about, None
        if rank() == 0 and weights.is_file() and read_header(weights).get("key") != key:
            weights.unlink()  # of another run
            weights.with_suffix(".md").unlink(missing_ok=True)
    else:
        init = {part: get() for part, (_, get) in starts.items()}
        trainer = Trainer(run, recipe, seed=seed, features=features, runs=runs, init=init)
        history = trainer.fit(log=_say(name, seed))
        test = FeatureDataset(features, "test")  # read here for the first time
        conditions = [None, *CONDITIONS] if run.robustness and trainer.modality == "av" else [None]
        tables = [predict(trainer.model, run.model, trainer.val)]
        tables += [predict(trainer.model, run.model, test, condition=condition) for condition in conditions]
        about = {"parts": parts, "history": history.drop(columns="seconds").to_csv(index=False)} | made_with()
        predictions = pd.concat(tables, ignore_index=True)
        data = predictions_bytes(predictions)
        if rank() == 0:
            trainer.save(weights)
            card = model_card(
                weights.relative_to(workspace).as_posix(),
                read_header(weights),
                scores(predictions),
                parameters=sum(part.numel() for part in trainer.model.parameters()),
                clips=len(trainer.indices),
                encoders={part: read_header(start) for part, start in init.items()},
            )
            write_text(weights.with_suffix(".md"), card)
            if found is not None:
                keep(found, data, about)
    if rank() == 0:
        write_bytes(path, data)
        write_text(weights.with_suffix(".csv"), about["history"])
        # Of what made it nothing: DVC compares bytes, and a commit changes none of them.
        write_json(weights.with_suffix(".json"), {"key": key, "parts": about["parts"]})
    barrier()
    done = _finished(name, stage, seed, workspace)
    return done if history is None else replace(done, history=history)


def _encoder(
    source: str, run: Run | None, recipe: Recipe, seed: int, workspace: Path
) -> tuple[str, Callable[[], Path]]:
    """The key of the run that an encoder comes from, and a call that gives its weights, trained if need be."""
    path = _files(source, source, seed, workspace)[0]
    if run is None or (run.train_share == 1 and path.is_file()):
        return origin(path), lambda: path
    features, runs = workspace / "data/features", workspace / "runs"
    key = key_of(parts_of(run, recipe, seed, FeatureDataset(features, "train").identity, {}))

    def train() -> Path:
        trainer = Trainer(run, recipe, seed=seed, features=features, runs=runs, init={})
        own = trainer.checkpoint.with_name("weights.safetensors")
        if not own.is_file():
            trainer.fit(log=_say(source, seed))
            if rank() == 0:
                trainer.save(own)
            barrier()
        return own

    return key, train


def _say(name: str, seed: int) -> Callable[[str], None]:
    """A log that begins each line with the run, on the first rank."""
    return (lambda line: print(f"{name} seed {seed} | {line}", flush=True)) if rank() == 0 else nothing


def main(arguments: list[str] | None = None) -> int:
    """`torchrun --nproc-per-node=8 -m mmtlib.training.stage RUN`: a run of params.yaml without its notebook.

    Returns the exit status; a failure is said in one line.
    """
    parser = argparse.ArgumentParser(prog="mmtlib.training", description="Train a run of params.yaml.")
    parser.add_argument("run", nargs="?", help="pretrain_mat, pretrain_mvit, train_mmt or a row of the table ablations")
    parser.add_argument("--workspace", default=".", help="folder of data/ and models/ (the repository root)")
    parser.add_argument("--spec", help=argparse.SUPPRESS)  # of train_runs: its arguments, as JSON
    given = parser.parse_args(arguments)
    try:
        if given.spec:
            spec = json.loads(given.spec)
            spec |= {"run": Run.model_validate(spec["run"]), "recipe": Recipe.model_validate(spec["recipe"])}
            spec["encoders"] = {part: Run.model_validate(encoder) for part, encoder in spec["encoders"].items()}
        else:
            spec = arguments_of(given.run, load())
        with process_group():
            train_runs(**spec, workspace=workspace_folder(given.workspace))
    except Exception as error:
        # Bare words where we wrote them for the user, else with the trace for whoever mends it.
        if not isinstance(error, ValueError | OSError | ArithmeticError):
            traceback.print_exc()
        print(f"{FAILED}{error}", flush=True)
        return 1
    return 0


def arguments_of(name: str | None, params: Params) -> dict[str, Any]:
    """What train_runs is to be given for a run of params.yaml. Raises ParamsError for a name that it does not have."""
    stages = {stage: getattr(params, stage) for stage in ("pretrain_mat", "pretrain_mvit", "train_mmt")}
    if name not in (runs := stages | params.ablations):
        raise ParamsError(f"params.yaml has no run {name}; use one of {', '.join(runs)}.")
    stage = name if name in stages else f"ablations/{name}"
    encoders = {part: stages[part] for part in ("pretrain_mat", "pretrain_mvit")}
    return dict(name=name, run=runs[name], recipe=params.training, stage=stage, seeds=params.seeds_of(name)) | {
        "encoders": encoders
    }


if __name__ == "__main__":
    sys.exit(main())
