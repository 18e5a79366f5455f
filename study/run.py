"""Run a stage: execute its notebook with papermill, keep a clean executed copy.

- `python -m study.run STAGE [--row NAME] [--params FILE]`: what dvc.yaml calls
- `python -m study.run sources [--params FILE]`: writes the code cells alone, which dvc.yaml's stages depend on
- `python -m study.run compose NAME`: writes build/NAME/dvc.yaml, by which `dvc repro` runs the study params/NAME.yaml
- `python -m study.run notebooks [--only STAGE]`: re-executes notebooks/ in place, at their defaults
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import nbformat
from ruamel.yaml import YAML

from mmtlib.config import ROOT, ParamsError, compose, load, workspace
from mmtlib.config import STAGES as TRAINED
from mmtlib.files import write_text
from mmtlib.folders import Folders

# The stages in their order; each is also a notebook (01_download, ...) and a section of params.yaml.
# All but `efficiency` make up the pipeline of dvc.yaml; that one is in bench/dvc.yaml, for `make bench`.
STAGES = ("download", "features", "pretrain_mat", "pretrain_mvit", "train_mmt", "ablations", "report", "efficiency")

# Notebooks beside the stages: no part of the pipeline, so they have no number and no section of params.yaml.
GUIDES = ("predict_your_own_clip",)


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


def run(stage: str, row: str | None = None, file: str = "params.yaml", root: Path = ROOT) -> Path:
    """Execute a stage's notebook on a parameter file; return the executed copy's path.

    The copy, reports/<study>/notebooks/<stage>[-<row>].ipynb, is written on failure too. Raises ParamsError for a bad
    file and for a row that is missing or unknown, NotebookError where the notebook fails.
    """
    params = load(file, root=root)
    if (row is not None) != (stage == "ablations"):
        raise ParamsError(f"stage {stage} got --row {row}; name a row for ablations, and for no other.")
    if row is not None and row not in params.ablations:
        raise ParamsError(f"{file}: ablations has no row {row}; use one of {', '.join(params.ablations)}.")
    folders = Folders(root, params.study)
    dataset = folders.clips / "dataset.json"
    if stage == "features" and dataset.is_file():  # what training would refuse is said before hours of extraction
        classes = json.loads(dataset.read_text(encoding="utf-8")).get("classes")
        for name in params.training.flip_except if classes else ():
            if name not in classes:
                raise ParamsError(f"{file}: training.flip_except names {name!r}, no class of the data set; remove it.")
    name = stage if row is None else f"{stage}-{row}"
    target = folders.report / "notebooks" / f"{name}.ipynb"
    if stage == "efficiency":  # of the models, not of a study
        target = root / "reports/efficiency/notebook.ipynb"
    execute(notebook_of(stage, root), target, {"params": file} | ({} if row is None else {"row": row}), root)
    return target


def refresh(only: str | None = None, root: Path = ROOT) -> None:
    """Re-execute the notebooks at their defaults and store them in place, as nbval wants them."""
    for stage in (*STAGES, *GUIDES) if only is None else (only,):
        source = notebook_of(stage, root)
        print(f"{source.relative_to(root)}", flush=True)
        execute(source, source, {}, root)


def sources(study: str, root: Path = ROOT) -> None:
    """Write the code cells of each notebook, without prose and outputs, to build/<study>/notebooks/<stage>.json."""
    for stage in STAGES:
        path, plain = notebook_of(stage, root), []
        try:
            cells = nbformat.read(path, as_version=4).cells
        except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
            reason = str(error).splitlines()[0][:100]
            raise NotebookError(f"{path.name}: not a notebook ({reason}); restore it from Git.") from error
        for cell in cells:
            if cell.cell_type == "code":
                # nbval's tags say what a test compares; they do not change what runs.
                tags = [tag for tag in cell.metadata.get("tags", []) if not tag.startswith("nbval")]
                plain.append({"source": cell.source, "tags": tags})
        text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
        write_text(root / "build" / study / "notebooks" / f"{stage}.json", text)


def compose_study(name: str, root: Path = ROOT) -> Path:
    """Write build/<name>/dvc.yaml and params.yaml of the study params/<name>.yaml; return the former.

    They are the repository's dvc.yaml and the overlay laid over its base: each study has its own dvc.lock, and none
    touches what another has made. Raises ParamsError.
    """
    params, folder = load(f"params/{name}.yaml", root=root), root / "build" / name
    if params.study != name:
        raise ParamsError(f"params/{name}.yaml: study is {params.study} but must be {name}; change it.")
    file = f"build/{name}/params.yaml"
    values = compose(f"params/{name}.yaml", root)
    pipeline = YAML(typ="safe", pure=True).load(root / "dvc.yaml")
    absent = [stage for stage in TRAINED if stage not in params.runs]  # a study of audio alone
    pipeline["stages"] = {stage: body for stage, body in pipeline["stages"].items() if stage not in absent}
    for part in ("media", "annotations"):  # so that DVC sees files that came or changed; where they are away all stays
        if (given := getattr(params.download, part)) is not None:
            there, listed = _files(workspace(given)), folder / f"{part}.txt"
            if there or not listed.exists():
                write_text(listed, "\n".join(there))
            for stage in ("download", "features"):  # an array may differ where the manifest does not
                pipeline["stages"][stage]["deps"].append(f"build/{name}/{part}.txt")
    for stage in pipeline["stages"].values():
        stage = stage.get("do", stage)
        stage["deps"] = [path for path in stage["deps"] if path.rpartition("/")[2] not in absent]
        stage["wdir"] = "../.."
        stage["cmd"] += f" --params {file}"
        stage["params"] = [{file: stage["params"]}]
    for path, content in ((root / file, values), (folder / "dvc.yaml", pipeline)):
        stream = StringIO()
        YAML(typ="safe", pure=True).dump(content, stream)
        write_text(path, f"# Written by `make reproduce STUDY={name}` from dvc.yaml and params/.\n{stream.getvalue()}")
    return folder / "dvc.yaml"


def _files(place: Path) -> list[str]:
    """A line for each file at or below `place`: name, bytes, time of change. Links are followed, to a folder once."""
    found, seen = [] if place.is_dir() else [place], set()
    for folder, folders, names in os.walk(place, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
        else:
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        seen.add(real)
    facts = [(path.relative_to(place), path.stat()) for path in sorted(found) if os.path.exists(path)]
    return [f"{str(path)!a} {facts.st_size} {facts.st_mtime_ns}" for path, facts in facts]


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
    return CoalesceStreamsPreprocessor().preprocess(notebook, {})[0]


def _unfinished(draft: Path) -> str:
    """Name the cell that was running when papermill last wrote its draft."""
    cells = nbformat.read(draft, as_version=4).cells if draft.exists() else []
    code = [cell.metadata.get("papermill", {}) for cell in cells if cell.cell_type == "code"]
    begun = sum(state.get("status", "pending") != "pending" for state in code)
    return f"code cell [{begun}]" if begun else "its start"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, return the exit status: 0, 1 (failed, said in a line or two) or 130."""
    parser = argparse.ArgumentParser(prog="python -m study.run", description="Run a stage of the pipeline.")
    parser.add_argument("stage", choices=[*STAGES, "sources", "compose", "notebooks"])
    parser.add_argument("name", nargs="?", help="with compose: the study, a file of params/")
    parser.add_argument("--row", help="row of the table ablations in the parameter file")
    parser.add_argument("--params", default="params.yaml", help="parameter file (params.yaml)")
    parser.add_argument("--only", choices=[*STAGES, *GUIDES], help="with notebooks: this one alone")
    given = parser.parse_args(arguments)
    if (given.stage == "compose") != (given.name is not None):
        parser.error("compose takes the name of a study, and nothing else does")
    # Either ends the stage and its kernel; SIGINT too, which a background job of a shell is started to ignore.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        if given.stage == "sources":
            sources(load(given.params).study)
        elif given.stage == "compose":
            print(compose_study(given.name).relative_to(ROOT))
        elif given.stage == "notebooks":
            refresh(given.only)
        else:
            run(given.stage, given.row, given.params)
    except (ParamsError, NotebookError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{given.stage}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
