"""List the runs of a parameter file and where they are kept: `python -m mmtlib.training.runs [params/multiseed.yaml]`.

Of a run that is not kept, and would so be trained, it says what sets it apart from the kept run nearest to it.
"""

import argparse
import sys

from mmtlib.config import ParamsError, load, workspace
from mmtlib.data.dataset import DatasetError, FeatureDataset
from mmtlib.training.experiment import is_kept, kept, kept_runs, planned, why_not


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each run; the exit status is 1 where one is not kept."""
    parser = argparse.ArgumentParser(prog="python -m mmtlib.training.runs", description="List the runs that are kept.")
    parser.add_argument("params", nargs="?", default="params.yaml", help="file of parameters (params.yaml)")
    parser.add_argument("--workspace", default=".", help="folder of data/ (the repository root)")
    given = parser.parse_args(arguments)
    try:
        params = load(given.params)
        if params.training.kept is None:
            raise ParamsError(f"{given.params}: training.kept is null, so no run is kept; name a folder there.")
        root = workspace(given.workspace)
        folder = root / params.training.kept
        known = kept_runs(folder)
        try:
            data = FeatureDataset(root / "data/features", "train").identity
        except DatasetError:  # not made on this machine: the kept runs say what they were trained on
            if not known:
                raise
            data = known[0].about["parts"]["data"]
    except (ParamsError, DatasetError) as error:
        print(error, file=sys.stderr)
        return 1
    runs, absent = list(planned(params, data)), 0
    for name, seed, parts in runs:
        found = kept(folder, parts)
        absent += not is_kept(found)
        say = found.predictions.name if is_kept(found) else f"not kept: {why_not(folder, parts)}"
        print(f"{name} seed {seed} | {say}")
    wanted = {kept(folder, parts) for _, _, parts in runs}
    print(f"{len(runs) - absent} of {len(runs)} runs are kept; {len(set(known) - wanted)} files are of other runs.")
    return int(absent > 0)


if __name__ == "__main__":
    sys.exit(main())
