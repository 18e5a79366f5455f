"""`torchrun --nproc-per-node 8 -m mmtlib.training RUN [--params FILE]`: train a run without its notebook."""

import argparse
import json
import sys
import traceback
from pathlib import Path

from mmtlib.config import ROOT, Trial, load
from mmtlib.distributed import process_group
from mmtlib.folders import Folders
from mmtlib.training.stage import FAILED, TrainingError, train_runs


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status; a failure is said in one line."""
    parser = argparse.ArgumentParser(prog="mmtlib.training", description="Train a run of a parameter file.")
    parser.add_argument("run", help="pretrain_mat, pretrain_mvit, train_mmt or a row of the table ablations")
    parser.add_argument("--params", default="params.yaml", help="parameter file (params.yaml)")
    parser.add_argument("--root", default=ROOT, type=Path, help=argparse.SUPPRESS)  # these two are of train_runs
    parser.add_argument("--trials", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        params = load(given.params)
        trials = given.trials and [Trial(*trial) for trial in given.trials]
        with process_group():
            train_runs(given.run, params, Folders(given.root, params.study), trials)
    except Exception as error:
        # Bare words where we wrote them for the user, else with the trace for whoever mends it.
        if not isinstance(error, ValueError | OSError | ArithmeticError | TrainingError):
            traceback.print_exc()
        print(f"{FAILED}{error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
