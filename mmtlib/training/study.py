"""All runs of a study at once: which are kept (`mmt runs`), and training those that are not, side by side.

Each is finished in its folder below runs/, where the stages then find it. A run that is interrupted, with its worker
or with everything, goes on at its last epoch.
"""

import os
import time

import torch

from mmtlib.cluster import connect, cores
from mmtlib.config import Params, ParamsError, Run, Trial
from mmtlib.data.dataset import DatasetError, FeatureDataset
from mmtlib.folders import Folders
from mmtlib.training.experiment import encoder_runs, is_kept, kept, kept_runs, key_of, parts_for, planned, why_not
from mmtlib.training.stage import finish, predict_run, train_runs


def train_all(params: Params, folders: Folders, workers: int | str = 0) -> None:
    """Train every run of a parameter file that is not kept, and leave the files of all in the study's folders.

    `workers`: processes on this machine (0: one for each core or, where there are any, each GPU), or the address of a
    Dask scheduler whose workers see the same folders; none with `training.nproc` above 1, for one run after another.
    Raises ParamsError at once for a run that cannot be, DatasetError without features, and what training raises.
    """
    data = FeatureDataset(folders.features, "train").identity
    runs = list(planned(params, data))
    if params.training.nproc == 1:
        _side_by_side(params, folders, workers, data, runs)
    elif workers:
        raise ParamsError("training.nproc gives each run processes of this machine, in turn; leave --workers out.")
    for name in params.runs:
        train_runs(name, params, folders)


def _side_by_side(params: Params, folders: Folders, workers: int | str, data: dict, runs: list) -> None:
    """Train and predict; prints a line for each run."""
    from distributed import as_completed  # slow to import

    archive = folders.root / params.training.kept if params.training.kept else None
    jobs: dict[str, tuple[str, Run, Trial, list[str]]] = {}  # key -> name, run, trial, keys of its encoders

    def add(name: str, run: Run, trial: Trial) -> str:
        starts = [add(*source, trial) for source in encoder_runs(run, params).values()]
        key = key_of(parts_for(run, params, trial, data))
        if key not in jobs or run.robustness:
            jobs[key] = (name, run, trial, starts)
        return key

    for name, trial, parts in runs:
        if archive is None or not is_kept(kept(archive, parts)):
            add(name, params.runs[name], trial)
    if not jobs:
        print("every run is kept", flush=True)
        return
    begun = time.monotonic()
    started = {start for *_, starts in jobs.values() for start in starts}
    # First what others wait for, then the longest.
    order = sorted(jobs, key=lambda key: (key not in started, -jobs[key][1].epochs))
    if isinstance(workers, int):
        workers = min(workers or torch.cuda.device_count() or cores(), len(jobs))
    with connect(workers) as client, client.as_current():
        futures = {}
        for key in order:
            name, run, trial, starts = jobs[key]
            waits = [futures[start] for start in starts]
            task = (params, folders, name, run, trial, workers, waits)
            futures[key] = client.submit(_train, *task, key=f"train-{key}", pure=False)
        for count, future in enumerate(as_completed(futures.values()), start=1):
            minutes = (time.monotonic() - begun) / 60
            print(f"{count}/{len(futures)} runs, {minutes:.1f} min: {future.result()}", flush=True)


def _train(
    params: Params, folders: Folders, name: str, run: Run, trial: Trial, workers: int | str, waits: list[str]
) -> str:
    """A worker's task: one run from its settings to its predictions; `waits` are the tasks before it."""
    from distributed import get_worker

    if isinstance(workers, int):  # on one machine: each has its share of the cores, the processes that decode included
        os.environ["LOCAL_WORLD_SIZE"] = str(workers)
        torch.set_num_threads(cores())
    if torch.cuda.is_available() and str(get_worker().name).isdigit():  # of processes of one machine: a GPU each
        torch.cuda.set_device(int(get_worker().name) % torch.cuda.device_count())
    begun = time.monotonic()
    weights = finish(run, params, trial, folders, lambda line: print(f"{name} {trial} | {line}", flush=True))
    data = FeatureDataset(folders.features, "train").identity
    predict_run(run, parts_for(run, params, trial, data), weights, folders.features)
    return f"{name} {trial}, trained in {time.monotonic() - begun:.0f} s"


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
    runs = [(f"{name} {trial}", parts, kept(folder, parts)) for name, trial, parts in planned(params, data)]
    for label, parts, run in runs:
        print(f"{label} | {run.predictions.name if is_kept(run) else 'not kept: ' + why_not(folder, parts)}")
    absent, others = sum(not is_kept(run) for *_, run in runs), set(known) - {run for *_, run in runs}
    print(f"{len(runs) - absent} of {len(runs)} runs are kept; {len(others)} files are of other runs.")
    return int(absent > 0)
