"""`torchrun --nproc-per-node 8 -m mmtlib.training RUN [--params FILE]`: train a run without its notebook."""

import argparse
import sys
from pathlib import Path

from mmtlib.config import ROOT, load
from mmtlib.distributed import process_group
from mmtlib.folders import Folders
from mmtlib.training.stage import FAILED, TrainingError, run_from_spec, train_runs


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status; a failure is said in one line."""
    parser = argparse.ArgumentParser(prog="mmtlib.training", description="Train a run of a parameter file.")
    parser.add_argument("run", help="pretrain_mat, pretrain_mvit, train_mmt or a row of the table ablations")
    parser.add_argument("--params", default="params.yaml", help="parameter file (params.yaml)")
    parser.add_argument("--spec", help=argparse.SUPPRESS)  # of train_runs: its arguments, as a JSON file
    given = parser.parse_args(arguments)
    if given.spec:
        return run_from_spec(given.run, Path(given.spec))
    try:
        params = load(given.params)
        with process_group():
            train_runs(given.run, params, Folders(ROOT, params.study))
    except (ValueError, TrainingError) as error:
        print(f"{FAILED}{error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
