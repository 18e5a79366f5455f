"""The training stages: a run for each of its seeds, in one process or several, and what it leaves.

A run is finished once, in the folder runs/<key>-<features>/, and a stage copies from there. With `training.kept`,
predictions of finished runs are kept in a folder, too, under the key of the run (see experiment), and taken from there
instead of training. `training.nproc` starts processes on this machine, `torchrun ... -m mmtlib.training RUN` anywhere.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from mmtlib.cluster import cores
from mmtlib.config import Params, ParamsError, Run, Trial
from mmtlib.data.corruption import CONDITIONS
from mmtlib.data.dataset import FeatureDataset
from mmtlib.distributed import barrier, rank, ranks
from mmtlib.evaluation.predictions import predict, read_predictions
from mmtlib.evaluation.scores import scores
from mmtlib.files import write_bytes, write_json, write_text
from mmtlib.folders import Folders
from mmtlib.models import MODALITY, from_pretrained
from mmtlib.models.hub import load_model, read_header
from mmtlib.models.published import outside_files
from mmtlib.training.experiment import Kept, Parts, encoder_runs, is_kept, keep, kept, key_of, made_with, parts_for
from mmtlib.training.loop import Trainer, choose_device


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its files and its learning curve."""

    trial: Trial
    weights: Path
    predictions: Path
    history: pd.DataFrame  # epoch, lr, loss, ce, avc, imc, val_loss, val_top1 (or val_map)

    @cached_property
    def scores(self) -> pd.DataFrame:  # on validation and test, of evaluation.scores
        return scores(read_predictions(self.predictions))


FAILED = "training failed: "  # begins the line in which a process says why


class TrainingError(RuntimeError):
    """Training in several processes failed; the text is one sentence, that of the process that failed."""


def train_runs(name: str, params: Params, folders: Folders, trials: list[Trial] | None = None) -> list[Trained]:
    """Train the run `name` of `params` for each of its seeds and folds; keep weights, learning curve and predictions.

    `trials`: these alone. The files are those of Folders; there are no weights where kept predictions were taken, and
    no card. Encoders that a run starts from are trained first, unless their stage has left them. With `training.nproc`
    above 1 so many processes do it together. Raises ParamsError for a name that `params` does not have, DatasetError
    where there are no features, TrainingError when one of the processes fails.
    """
    if name not in params.runs:
        raise ParamsError(f"there is no run {name}; use one of {', '.join(params.runs)}.")
    trials = params.trials(name) if trials is None else trials
    if params.training.nproc > 1 and ranks() == 1:
        _in_processes(name, params, folders, trials)
    else:
        for trial in trials:
            _train_one(name, params, folders, trial)
    return [_trained(name, folders, trial) for trial in trials]


def _in_processes(name: str, params: Params, folders: Folders, trials: list[Trial]) -> None:
    """`train_runs` in processes of their own, whose lines are printed here."""
    nproc, file = params.training.nproc, folders.runs / f"{name}-{os.getpid()}.json"
    write_json(file, params.model_dump(mode="json"))  # JSON is YAML, too
    threads = {"OMP_NUM_THREADS": str(max(cores() // nproc, 1))}
    failures = []  # the first is the cause: other processes then miss that one
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    command += ["-m", "mmtlib.training", name, "--params", str(file.absolute())]
    command += ["--root", str(folders.root), "--trials", json.dumps(trials)]
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
            file.unlink()
    if process.returncode:
        cause = failures[0] if failures else f"one ended with status {process.returncode}; is there memory enough?"
        raise TrainingError(f"{nproc} processes of {name}: {cause}")


def _trained(name: str, folders: Folders, trial: Trial) -> Trained:
    """A run as its files tell it."""
    weights = folders.weights(name, *trial)
    return Trained(trial, weights, folders.predictions(name, *trial), pd.read_csv(weights.with_suffix(".csv")))


def _train_one(name: str, params: Params, folders: Folders, trial: Trial) -> None:
    """Leave the files of a run, copied from where it was finished or kept."""
    run, say = params.runs[name], _say(name, trial)
    weights = folders.weights(name, *trial)
    data = FeatureDataset(folders.features, "train")
    parts = parts_for(run, params, trial, data.identity)
    archive = kept(folders.root / params.training.kept, parts) if params.training.kept else None
    if archive is not None and is_kept(archive):
        say(f"takes the kept predictions, run {key_of(parts)}")
        found, trained = archive, None
    else:
        trained = finish(run, params, trial, folders, say)
        found = predict_run(run, parts, trained, folders.features)
        if rank() == 0 and archive is not None:
            keep(archive, found.predictions.read_bytes(), found.about)
    if rank() == 0:
        write_bytes(folders.predictions(name, *trial), found.predictions.read_bytes())
        write_text(weights.with_suffix(".csv"), found.about["history"])
        # Of what made it nothing: DVC compares bytes, and a commit changes none of them.
        write_json(weights.with_suffix(".json"), {"key": key_of(parts), "parts": parts})
        if trained is not None:
            write_bytes(weights, trained.read_bytes())
            file = weights.relative_to(folders.root).as_posix()
            about = {"file": file, "scores": scores(read_predictions(found.predictions))}
            write_text(weights.with_suffix(".md"), str(from_pretrained(weights).generate_model_card(**about)))
        elif weights.is_file() and read_header(weights).get("key") != key_of(parts):
            weights.unlink()  # of another run
            weights.with_suffix(".md").unlink(missing_ok=True)
    barrier()


def finish(run: Run, params: Params, trial: Trial, folders: Folders, say: Callable[[str], None]) -> Path:
    """The weights of a run, trained where they are not there yet; beside them history.csv."""
    data = FeatureDataset(folders.features, "train")
    key = key_of(parts_for(run, params, trial, data.identity))
    weights = folders.runs / f"{key}-{data.fingerprint[:8]}" / "weights.safetensors"  # as Trainer.checkpoint
    barrier()  # no rank looks after another has begun to write
    if weights.is_file():
        say(f"was trained already, run {key}")
        return weights
    init = outside_files(run.model, run.init, run.overrides)
    for part, (source, own) in encoder_runs(run, params).items():
        stage = folders.weights(source, *trial)
        wanted = key_of(parts_for(own, params, trial, data.identity))
        left = stage.is_file() and read_header(stage).get("key") == wanted
        init[part] = stage if left else finish(own, params, trial, folders, _say(source, trial))
    where = dict(features=folders.features, runs=folders.runs)
    trainer = Trainer(run, params.training, **trial._asdict(), **where, init=init)
    history = trainer.fit(log=say)
    if rank() == 0:
        write_text(weights.with_name("history.csv"), history.drop(columns="seconds").to_csv(index=False))
        trainer.save(weights)  # last: they say that the run is finished
    barrier()
    return weights


def predict_run(run: Run, parts: Parts, weights: Path, features: Path) -> Kept:
    """The predictions of a finished run, beside its weights; made where they are not there yet."""
    found = kept(weights.parent, parts)
    barrier()
    if is_kept(found):
        return found
    model = load_model(weights)[0].to(choose_device())
    # The test clips: here for the first time.
    val, test = (FeatureDataset(features, split, parts["fold"]) for split in ("val", "test"))
    conditions = [None, *CONDITIONS] if run.robustness and MODALITY[run.model] == "av" else [None]
    tables = [predict(model, val)]
    tables += [predict(model, test, condition=condition) for condition in conditions]
    if rank() == 0:
        history = weights.with_name("history.csv").read_text(encoding="utf-8")
        about = {"parts": parts, "history": history, "precision": model.about.get("precision")} | made_with()
        table, floats = pd.concat(tables, ignore_index=True), ["logits.list.element", "embedding.list.element"]
        plain = [name for name in table if name not in ("logits", "embedding")]
        packed = dict(compression="zstd", use_dictionary=plain, use_byte_stream_split=floats)
        keep(found, table.to_parquet(index=False, **packed), about)
    barrier()
    return found


def _say(name: str, trial: Trial) -> Callable[[str], None]:
    """A log that begins each line with the run, on the first rank."""
    return lambda line: print(f"{name} {trial} | {line}", flush=True) if rank() == 0 else None
