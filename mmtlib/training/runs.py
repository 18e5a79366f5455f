"""List the runs of a parameter file and where they are kept: `mmt runs --params params/freedoom.yaml`."""

from mmtlib.config import Params, ParamsError
from mmtlib.data.dataset import DatasetError, FeatureDataset
from mmtlib.folders import Folders
from mmtlib.training.experiment import is_kept, kept, kept_runs, planned, why_not


def list_runs(params: Params, folders: Folders) -> int:
    """Print a line for each run; returns 1 where one is not kept, and would so be trained, else 0.

    Of such a run the line says what sets it apart from the kept run nearest to it. Raises ParamsError where
    `training.kept` is null, DatasetError where neither the features nor a kept run say what the data is.
    """
    if params.training.kept is None:
        raise ParamsError("training.kept is null, so no run is kept; name a folder there, or another parameter file.")
    folder = folders.root / params.training.kept
    known = kept_runs(folder)
    try:
        data = FeatureDataset(folders.features, "train").identity
    except DatasetError:  # not made on this machine: the kept runs say what they were trained on
        if not known:
            raise
        data = known[0].about["parts"]["data"]
    runs, absent = list(planned(params, data)), 0
    for name, trial, parts in runs:
        found = kept(folder, parts)
        absent += not is_kept(found)
        say = found.predictions.name if is_kept(found) else f"not kept: {why_not(folder, parts)}"
        print(f"{name} {trial} | {say}")
    wanted = {kept(folder, parts) for _, _, parts in runs}
    print(f"{len(runs) - absent} of {len(runs)} runs are kept; {len(set(known) - wanted)} files are of other runs.")
    return int(absent > 0)
