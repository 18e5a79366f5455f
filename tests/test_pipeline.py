"""dvc.yaml against the code it names, and the whole pipeline, run for the study `smoke` in a checkout of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from ruamel.yaml import YAML

from mmtlib.config import ROOT, Params
from study import run
from study.notebook import NEEDS

PIPELINE, BENCH = (YAML(typ="safe", pure=True).load(ROOT / name)["stages"] for name in ("dvc.yaml", "bench/dvc.yaml"))
FOLDERS = [f"{kind}/${{study}}" for kind in ("build", "data", "models", "predictions", "reports")]

# What the values of a stage come from, beside its own section: seeds, folds and recipe of training, what a run starts
# from, what a row of the table inherits.
TRAINED = {"seeds", "folds", "training"}
SECTIONS = {stage: {stage} for stage in run.STAGES} | {
    "pretrain_mat": {"pretrain_mat"} | TRAINED,
    "pretrain_mvit": {"pretrain_mvit"} | TRAINED,
    "train_mmt": {"train_mmt", "pretrain_mat", "pretrain_mvit"} | TRAINED,
    "ablations": {"ablations", "train_mmt", "pretrain_mat", "pretrain_mvit"} | TRAINED,
    "report": set(Params.model_fields) - {"study"},
}


def stage(name: str) -> dict:
    """Return a stage of dvc.yaml; of a table, the template of its rows."""
    found = (PIPELINE | BENCH)[name]
    return found.get("do", found)


def outputs(name: str) -> list[str]:
    """Return the paths that a stage writes."""
    return [next(iter(out)) if isinstance(out, dict) else out for out in stage(name)["outs"]]


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def code_of(name: str) -> str:
    cells = nbformat.read(run.notebook_of(name), as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def test_stages_are_those_of_the_runner_in_order():
    assert [*PIPELINE, *BENCH] == ["sources", *run.STAGES]
    assert BENCH["efficiency"]["wdir"] == ".."  # its paths are read here as those of the repository


@pytest.mark.parametrize("name", run.STAGES)
def test_a_stage_tracks_the_sections_that_its_values_come_from_and_no_other(name):
    tracked, study = set(stage(name)["params"]), {"study"} if name in PIPELINE else set()
    assert tracked - {"study"} == SECTIONS[name]
    assert study <= tracked
    used = set(re.findall(r"\bvalues\.(\w+)", code_of(name))) & Params.model_fields.keys()
    assert used - {"study"} <= tracked, "read by its notebook"


@pytest.mark.parametrize("name", run.STAGES)
def test_a_stage_depends_on_its_code_cells_on_code_that_is_there_and_on_what_it_reads(name):
    deps = stage(name)["deps"]
    study = "${study}" if name in PIPELINE else "quick"
    assert any(dep.endswith(f"/notebooks/{name}.json") for dep in deps)
    code = [dep for dep in deps if "${" not in dep and dep.split("/")[0] not in ("build", "reports")]
    assert code
    assert not [dep for dep in code if not (ROOT / dep).exists()]
    for earlier in NEEDS[name]:
        for out in (out.replace("${study}", study).split("/${key}")[0] for out in outputs(earlier)):
            reads = any(within(dep, out) or within(out, dep) for dep in deps)
            # A training stage has the models of its encoders, not their predictions.
            assert reads or out.startswith("predictions/"), f"{name} reads {out}"


@pytest.mark.parametrize("name", ["sources", *run.STAGES])
def test_outputs_lie_in_the_folders_of_the_study_and_no_notebook_and_no_checkpoint_among_them(name):
    outs = outputs(name)
    assert outs
    allowed = FOLDERS if name in PIPELINE else ["reports/efficiency"]
    assert [out for out in outs if any(within(out, folder) for folder in allowed)] == outs
    deps = stage(name)["deps"] if name != "sources" else []  # which reads all notebooks
    assert not [
        path for path in [*deps, *outs] if path.endswith(".ipynb") or path.split("/")[0] in ("notebooks", "runs")
    ]
    assert not [path for path in [*deps, *outs] if path == "mmtlib"], "every change would run it again"


def test_no_two_stages_write_the_same_path():
    outs = [out for name in [*PIPELINE, *BENCH] for out in outputs(name)]
    assert not [(a, b) for a in outs for b in outs if a is not b and within(a, b)]


# A run of everything.

COPIED = ("mmtlib", "study", "freedoom_sounds", "notebooks", "params", "reports/freedoom/runs", "reports/efficiency")
FILES = ("params.yaml", "dvc.yaml", "bench/dvc.yaml", "pyproject.toml", "README.md")
HIDDEN = (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore")


def environment(folder: Path) -> dict[str, str]:
    """This environment's programs first, and the checkout's packages."""
    programs = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


def call(folder: Path, *command: str) -> str:
    """Run a command in a folder and return what it prints."""
    pipes = {"capture_output": True, "text": True, "check": False}
    result = subprocess.run(command, cwd=folder, env=environment(folder), **pipes)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def python(folder: Path, *arguments: str) -> str:
    return call(folder, sys.executable, "-m", *arguments)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A Git checkout of what the pipeline needs, all of it committed."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_vizdoom*")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in (*FILES, *HIDDEN):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    call(folder, "git", "init", "--quiet")
    call(folder, "git", "add", "--all")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    call(folder, "git", *who, "commit", "--quiet", "--message", "All")
    return folder


def ran(output: str) -> list[str]:
    """Name the stages that DVC says it ran, without the file that they are in."""
    return [name.rsplit(":", 1)[-1] for name in re.findall(r"^Running stage '(.*)':", output, re.MULTILINE)]


def changed(folder: Path, pipeline: str) -> set[str]:
    """Name the stages that DVC would run."""
    found = json.loads(python(folder, "dvc", "status", "--json", pipeline))
    return {name.rsplit(":", 1)[-1] for name in found}


def test_a_study_runs_once_then_has_nothing_to_do_and_leaves_no_trace_in_git(checkout):
    pipeline = python(checkout, "study.run", "compose", "smoke").strip()
    assert pipeline == "build/smoke/dvc.yaml"
    rows = YAML(typ="safe", pure=True).load(checkout / "build/smoke/params.yaml")["ablations"]
    wanted = set(PIPELINE) - {"ablations"} | {f"ablations@{row}" for row in rows}
    assert set(ran(python(checkout, "dvc", "repro", pipeline))) == wanted
    copies = {path.stem for path in (checkout / "reports/smoke/notebooks").glob("*.ipynb")}
    assert copies == set(run.STAGES) - {"ablations", "efficiency"} | {f"ablations-{row}" for row in rows}
    assert call(checkout, "git", "status", "--porcelain") == ""

    # Nothing of another study, and all that was written is an output, so that DVC removes what an older code left.
    for kind in ("data", "models", "predictions"):
        assert [path.name for path in (checkout / kind).iterdir() if path.is_dir()] == ["smoke"]
    outs = [out.replace("${study}", "smoke") for out in outputs("report")]
    written = {path.relative_to(checkout).as_posix() for path in (checkout / "reports/smoke").rglob("*.*")}
    others = {path for path in written if not any(within(path, out) for out in outs)}
    assert {Path(path).parent.name for path in others} == {"notebooks"}

    lock = (checkout / "build/smoke/dvc.lock").read_bytes()
    assert ran(python(checkout, "dvc", "repro", pipeline)) == []
    assert (checkout / "build/smoke/dvc.lock").read_bytes() == lock

    # Prose and stored outputs are not what a model is trained from.
    path = run.notebook_of("pretrain_mat", checkout)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\nOne sentence more."
    notebook.cells[-1].metadata["tags"] = ["nbval-ignore-output"]
    nbformat.write(notebook, path)
    assert ran(python(checkout, "dvc", "repro", pipeline)) == ["sources"]

    # A changed comment runs a stage again, but what it trains is finished already: its outputs stay as they are.
    module = checkout / "mmtlib/training/experiment.py"
    module.write_text(f"{module.read_text()}\n# One comment more.\n")
    stages = {"pretrain_mat", "pretrain_mvit", "train_mmt", *(f"ablations@{row}" for row in rows)}
    assert changed(checkout, pipeline) == stages
    again = python(checkout, "dvc", "repro", f"{pipeline}:train_mmt")
    assert set(ran(again)) == {"pretrain_mat", "pretrain_mvit", "train_mmt"}
    assert again.count("was trained already") == 3
    assert "epoch " not in again
    assert changed(checkout, pipeline) == stages - set(ran(again))
