"""Run a stage: check params.yaml, execute the stage's notebook with papermill, keep a clean executed copy.

- `python -m study.run STAGE [--row NAME] [--workspace .]`: what dvc.yaml calls
- `python -m study.run features --shard I/N`, then `--merge`: that stage by hand, split over machines that share data/
- `python -m study.run sources`: writes the code cells alone, which dvc.yaml's stages depend on
- `python -m study.run notebooks [--only STAGE]`: re-executes notebooks/ in place, at their defaults
"""

import argparse
import ast
import json
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from mmtlib.config import ROOT, Params, ParamsError, load
from mmtlib.files import write_text

# The stages in their order; each is also a notebook (01_download, ...) and a section of params.yaml.
# All but `efficiency` make up the pipeline of dvc.yaml; that one is in bench/dvc.yaml, for `make bench`.
STAGES = ("download", "features", "pretrain_mat", "pretrain_mvit", "train_mmt", "ablations", "report", "efficiency")

# Notebooks beside the stages: no part of the pipeline, so they have no number and no section of params.yaml.
GUIDES = ("predict_your_own_clip",)

# Sections that a training stage gets whole, each as one parameter, beside the fields of its own section.
# The report gets the name of the parameter file instead: it shows every stage's values.
SHARED = dict.fromkeys(("pretrain_mat", "pretrain_mvit", "train_mmt", "ablations"), ("seeds", "training"))

# Sections of the runs that a model of both modalities may start from; its stages get them in one parameter, `encoders`.
ENCODERS = ("pretrain_mat", "pretrain_mvit")


class NotebookError(RuntimeError):
    """A notebook is missing, malformed or failed; the message is one or two lines for the terminal."""


def notebook_of(stage: str, root: Path = ROOT) -> Path:
    """Return the notebook of a stage or guide, found by its name. Raises NotebookError when there is none."""
    number = "" if stage in GUIDES else "[0-9][0-9]_"
    found = sorted((root / "notebooks").glob(f"{number}{stage}.ipynb"))
    if len(found) != 1:
        name = f"NN_{stage}" if number else stage
        raise NotebookError(f"notebooks/: {len(found)} files are named {name}.ipynb; there must be one.")
    return found[0]


def stage_values(params: Params, stage: str, row: str | None = None, profile: str = "params.yaml") -> dict[str, Any]:
    """Return what a stage's notebook is given: the row's name, the shared sections, the fields of its own.

    `profile` is the file `params` was read from. Raises ParamsError for a row that is missing or unknown.
    """
    if (row is not None) != (stage == "ablations"):
        raise ParamsError(f"stage {stage} got --row {row}; name a row for ablations, and for no other.")
    if stage == "report":
        return {"profile": profile}
    plain = params.model_dump(mode="json")
    shared = {name: plain[name] for name in SHARED.get(stage, ())}
    if stage in ("train_mmt", "ablations"):
        shared["encoders"] = {name: plain[name] for name in ENCODERS}
    if row is None:
        return shared | plain[stage]
    if row not in plain[stage]:
        raise ParamsError(f"params.yaml: ablations has no row {row}; use one of {', '.join(plain[stage])}.")
    return {"row": row} | shared | plain[stage][row] | {"seeds": params.seeds_of(row)}


def cell_defaults(path: Path) -> dict[str, Any]:
    """Return names and values of a notebook's parameters cell; each line must be `name = literal`.

    Raises NotebookError: no such cell, more than one, or a line that is no plain assignment.
    """
    cells = [cell for cell in _read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{path.name}: {len(cells)} cells are tagged `parameters`; tag exactly one.")
    values = {}
    try:
        for line in ast.parse(cells[0].source).body:
            if not (isinstance(line, ast.Assign) and [type(name) for name in line.targets] == [ast.Name]):
                raise ValueError(f"line {line.lineno} is no plain assignment")
            values[line.targets[0].id] = ast.literal_eval(line.value)
    except (SyntaxError, ValueError) as error:
        raise NotebookError(f"{path.name}: parameters cell: {error}; write one `name = literal` a line.") from error
    return values


def run(stage: str, row: str | None = None, workspace: str = ".", root: Path = ROOT) -> Path:
    """Execute a stage's notebook with the values of params.yaml; return the executed copy's path.

    The copy, <workspace>/reports/notebooks/<stage>[-<row>].ipynb, is written on failure too. `workspace` is
    taken from `root`. Raises ParamsError or NotebookError.
    """
    params = load(root=root)
    values = {"workspace": workspace} | stage_values(params, stage, row)
    if stage == "features":
        _check_flips(params, root / workspace / "data/clips/dataset.json")
    source = notebook_of(stage, root)
    known = cell_defaults(source)
    if absent := sorted(values.keys() - known.keys()):
        raise NotebookError(f"{source.name}: its parameters cell lacks {', '.join(absent)}; add it.")
    if extra := sorted(known.keys() - values.keys()):
        raise NotebookError(f"{source.name}: no field of params.yaml is named {', '.join(extra)}; remove or rename it.")
    name = stage if row is None else f"{stage}-{row}"
    target = root / workspace / "reports" / "notebooks" / f"{name}.ipynb"
    execute(source, target, values, root)
    return target


def _check_flips(params: Params, dataset: Path) -> None:
    """Raise ParamsError, before hours of extraction, for what training would refuse."""
    classes = json.loads(dataset.read_text(encoding="utf-8")).get("classes") if dataset.is_file() else None
    for name in params.training.flip_except if classes else ():
        if name not in classes:
            raise ParamsError(f"params.yaml: training.flip_except names {name!r}, no class of the data set; remove it.")


def refresh(only: str | None = None, root: Path = ROOT) -> None:
    """Re-execute the notebooks at their defaults and store them in place, as nbval wants them."""
    for stage in (*STAGES, *GUIDES) if only is None else (only,):
        source = notebook_of(stage, root)
        print(f"{source.relative_to(root)}", flush=True)
        execute(source, source, {}, root)


def sources(root: Path = ROOT) -> None:
    """Write the code cells of each notebook, without prose and outputs, to build/notebooks/<stage>.json."""
    folder = root / "build" / "notebooks"
    for stage in STAGES:
        plain = []
        for cell in _read(notebook_of(stage, root)).cells:
            if cell.cell_type == "code":
                # nbval's tags say what a test compares; they do not change what runs.
                tags = [tag for tag in cell.metadata.get("tags", []) if not tag.startswith("nbval")]
                plain.append({"source": cell.source, "tags": tags})
        write_text(folder / f"{stage}.json", json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def split_features(shard: str | None, workspace: str = ".", root: Path = ROOT) -> None:
    """Extract one part ("I/N", counted from 0) of the features, or join all parts (None); `dvc commit features` then.

    Raises ParamsError, and NotebookError where the work fails.
    """
    from mmtlib.data.features import extract_features, merge_features

    values, data = load(root=root).features.model_dump(), root / workspace / "data"
    try:
        if shard is None:
            merge_features(data.glob("features.part-*"), data / "features", workers=values["workers"])
        else:
            number, count = map(int, shard.split("/"))
            extract_features(data / "clips/manifest.csv", data / "features", **values, shard=(number, count))
    except ValueError as error:  # FeatureError, ManifestError
        raise NotebookError(str(error)) from error


def execute(source: Path, target: Path, values: Mapping[str, Any], root: Path = ROOT) -> None:
    """Execute a notebook in its own folder, its standard output shown live, and write the scrubbed result.

    On failure the result is written as well, unless that would overwrite the source.
    Raises NotebookError with two lines: stage, cell, error; and where to look.
    """
    import papermill
    from traitlets.config import Config

    # The kernel starts in notebooks/: without this it would import whichever checkout pip installed last.
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(root))]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *others])
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # the debugger's start-up warning
    # ipykernel >= 7.3 otherwise warns at each start that its sockets are not encrypted.
    config = Config({"KernelManager": {"transport_encryption": "auto"}})
    # The kernel would otherwise log an error when it is shut down before it is quite done with the last request.
    quiet = ["--log-level=CRITICAL"]
    kernel = {"kernel_name": "python3", "language": "python", "config": config, "extra_arguments": quiet}
    shown = {"progress_bar": False, "stdout_file": sys.stdout, "stderr_file": sys.stderr}
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "executed.ipynb"
        failure = None
        try:
            papermill.execute_notebook(source, draft, dict(values), cwd=source.parent, **kernel, **shown)
        except papermill.PapermillExecutionError as error:
            message = next(iter(error.evalue.strip().splitlines()), "(no message)")
            failure = f"code cell [{error.exec_count}]: {error.ename}: {message}"
        except Exception as error:  # the kernel died (killed for want of memory, mostly) or never started
            message = next(iter(str(error).strip().splitlines()), "(no message)")
            failure = f"{_unfinished(draft)}: {type(error).__name__}: {message}"
        kept = draft.exists() and (failure is None or target != source)
        if kept:
            text = nbformat.writes(scrub(nbformat.read(draft, as_version=4))) + "\n"
            if target != source:  # its links are to its neighbours
                neighbours = Path(os.path.relpath(source.parent, target.parent)).as_posix()
                text = re.sub(r"\]\((\w+\.ipynb)\)", rf"]({neighbours}/\1)", text)
            write_text(target, text)
    if failure is not None:
        copy = f"The executed copy is {os.path.relpath(target, root)}." if kept else "No copy was written."
        raise NotebookError(f"{source.relative_to(root)} failed in {failure}\n{copy}")


def scrub(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what differs from run to run: times, random ids, versions, how a stream was cut in pieces."""
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    language = {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": language})
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if "injected-parameters" in tags:
            cell.id = "injected-parameters"
        elif "papermill-error-cell-tag" in tags:
            cell.id = f"papermill-error-{index}"
        if cell.cell_type == "code":
            CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, index)
    return notebook


def usable_cores() -> int:
    """Return the cores this process may use: its affinity, and a container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def _unfinished(draft: Path) -> str:
    """Name the cell that was running when papermill last wrote its draft."""
    cells = nbformat.read(draft, as_version=4).cells if draft.exists() else []
    code = [cell.metadata.get("papermill", {}) for cell in cells if cell.cell_type == "code"]
    begun = sum(state.get("status", "pending") != "pending" for state in code)
    return f"code cell [{begun}]" if begun else "its start"


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        reason = str(error).splitlines()[0][:100]
        raise NotebookError(f"{path.name}: not a notebook ({reason}); restore it from Git.") from error


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, return the exit status: 0, 1 (failed, said in a line or two) or 130."""
    parser = argparse.ArgumentParser(prog="python -m study.run", description="Run a stage of the pipeline.")
    parser.add_argument("stage", choices=[*STAGES, "sources", "notebooks"])
    parser.add_argument("--row", help="row of the table ablations in params.yaml")
    parser.add_argument("--workspace", default=".", help="folder of data/, models/, reports/ (the root)")
    parser.add_argument("--only", choices=[*STAGES, *GUIDES], help="with notebooks: this one alone")
    parser.add_argument("--shard", metavar="I/N", help="with features: this part of the clips alone, 0/4 to 3/4")
    parser.add_argument("--merge", action="store_true", help="with features: join the parts")
    given = parser.parse_args(arguments)
    if (given.shard or given.merge) and given.stage != "features":
        parser.error("--shard and --merge go with the stage features")
    if given.shard and not re.fullmatch(r"\d{1,6}/\d{1,6}", given.shard):
        parser.error(f"--shard {given.shard}: write I/N, as in 0/4")
    # Either ends the stage and its kernel; SIGINT too, which a background job of a shell is started to ignore.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        if given.stage == "sources":
            sources()
        elif given.stage == "notebooks":
            refresh(given.only)
        elif given.shard or given.merge:
            split_features(given.shard, given.workspace)
        else:
            run(given.stage, given.row, given.workspace)
    except (ParamsError, NotebookError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{given.stage}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
