"""dvc.yaml against the code it names, and a smoke run of the whole pipeline in a folder of its own."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from ruamel.yaml import YAML

from mmtlib.config import ROOT, Params
from study import run

# What decides no result, and what it imports: a field added for one stage, or a picture, must not run the
# others again. How a stage is started, checked and stored (its values DVC tracks as params); what fills a
# smoke workspace, and that alone; what only draws in notebooks.
PLUMBING = {f"mmtlib/{name}.py" for name in ("__init__", "files", "gallery", "params", "paths", "run", "smoke")}
PIPELINE, BENCH = (YAML(typ="safe", pure=True).load(ROOT / name)["stages"] for name in ("dvc.yaml", "bench/dvc.yaml"))


def stage(name: str) -> dict:
    """Return a stage of dvc.yaml; of a table, the template of its rows."""
    found = (PIPELINE | BENCH)[name]
    return found.get("do", found)


def outputs(name: str) -> list[str]:
    """Return the paths that a stage writes."""
    return [next(iter(out)) if isinstance(out, dict) else out for out in stage(name)["outs"]]


def file_of(module: str, root: Path) -> Path | None:
    """Return the file of a module or package, if it is one of ours."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports(code: str) -> list[tuple[str, str | None]]:
    """List (module, name) of each `from mmtlib.x import name`, (module, None) of each `import mmtlib.x`."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module, alias.name) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] == "mmtlib"]


def defining_file(module: str, name: str | None, root: Path) -> Path | None:
    """Return the file that `name` comes from: a submodule, or where a package's __init__ takes it from."""
    if name is not None and (file := file_of(f"{module}.{name}", root)):
        return file
    file = file_of(module, root)
    if name is not None and file is not None and file.name == "__init__.py":
        for source, passed_on in imports(file.read_text()):
            if passed_on == name:
                return defining_file(source, name, root)
    return file


def closure(code: str, root: Path = ROOT) -> set[str]:
    """Return the files of mmtlib that code imports and what they import in turn, without the plumbing."""
    plumbing = {None, *(root / name for name in PLUMBING)}
    reached: set[Path] = set()
    fresh = {defining_file(*item, root) for item in imports(code)} - plumbing
    while fresh:
        reached |= fresh
        found = {defining_file(*item, root) for file in fresh for item in imports(file.read_text())}
        fresh = found - reached - plumbing
    return {file.relative_to(root).as_posix() for file in reached}


def test_the_closure_follows_re_exports_submodules_and_imports_in_functions(tmp_path):
    files = {
        "mmtlib/__init__.py": "",
        "mmtlib/data/__init__.py": "from mmtlib.data.table import read\nfrom mmtlib.data.other import unused",
        "mmtlib/data/table.py": "import os\nimport mmtlib.low",
        "mmtlib/data/other.py": "",
        "mmtlib/low.py": "def f():\n    from mmtlib import lazy",
        "mmtlib/lazy.py": "from mmtlib.low import f\nfrom mmtlib import smoke",
        "mmtlib/smoke.py": "import mmtlib.data.other",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    wanted = {"mmtlib/data/table.py", "mmtlib/low.py", "mmtlib/lazy.py"}
    assert closure("from mmtlib.data import read\nimport pandas", tmp_path) == wanted


def test_stages_are_those_of_the_runner_in_order():
    assert [*PIPELINE, *BENCH] == ["sources", *run.STAGES]
    assert BENCH["efficiency"]["wdir"] == ".."  # its paths are read here as those of the repository


@pytest.mark.parametrize("name", run.STAGES)
def test_a_stage_depends_on_its_code_cells_and_exactly_the_modules_they_import(name):
    notebook = nbformat.read(run.notebook_of(name), as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    wanted = {f"build/notebooks/{name}.json", *closure(code)}
    listed = {dep for dep in stage(name)["deps"] if dep.startswith(("build/", "mmtlib"))}
    lines = "\n".join(f"      - {dep}" for dep in sorted(wanted))
    assert listed == wanted, f"in dvc.yaml, the deps of {name} that are code must be\n{lines}"


@pytest.mark.parametrize("name", run.STAGES)
def test_a_stage_tracks_exactly_the_sections_its_notebook_is_given(name):
    own = "ablations.${key}" if name == "ablations" else name
    wanted = Params.model_fields if name == "report" else {own, *run.SHARED.get(name, ())}
    wanted = {*wanted, *run.ENCODERS} if name in ("train_mmt", "ablations") else wanted
    assert sorted(stage(name)["params"]) == sorted(wanted)


@pytest.mark.parametrize("name", run.STAGES)
def test_a_stage_neither_depends_on_a_notebook_nor_leaves_without_outputs(name):
    outs = outputs(name)
    assert outs
    assert not [path for path in [*stage(name)["deps"], *outs] if path.endswith(".ipynb") or path == "mmtlib"]
    assert not [path for path in [*stage(name)["deps"], *outs] if path.startswith("runs")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what the pipeline needs, without Git, its profile the smoke one."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "build", "_vizdoom*")
    for name in ("mmtlib", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", "bench/dvc.yaml", ".dvcignore", ".dvc/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "params" / "smoke.yaml", folder / "params.yaml")
    dvc(folder, "config", "--local", "core.no_scm", "true")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC in a folder with this environment's programs first, and return what it prints."""
    programs = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def ran(output: str) -> list[str]:
    """Name the stages that DVC says it ran."""
    prefix = "Running stage '"
    return [line.removeprefix(prefix).rstrip(":'") for line in output.splitlines() if line.startswith(prefix)]


def test_the_pipeline_runs_once_and_then_has_nothing_to_do(checkout):
    rows = YAML(typ="safe", pure=True).load(checkout / "params.yaml")["ablations"]
    wanted = set(PIPELINE) - {"ablations"} | {f"ablations@{row}" for row in rows}
    assert set(ran(dvc(checkout, "repro"))) == wanted
    copies = {path.stem for path in (checkout / "reports" / "notebooks").glob("*.ipynb")}
    assert copies == set(run.STAGES) - {"ablations", "efficiency"} | {f"ablations-{row}" for row in rows}

    # DVC removes what it lists before a run, and the benchmark's files lie in the same folders: file by file.
    written = {path for path in (checkout / "reports").rglob("*.*") if path.suffix != ".ipynb"}
    assert {path.relative_to(checkout).as_posix() for path in written} == set(outputs("report"))
    assert ran(dvc(checkout, "repro", "--dry", "bench/dvc.yaml")) == ["bench/dvc.yaml:efficiency"]

    lock = (checkout / "dvc.lock").read_bytes()
    assert ran(dvc(checkout, "repro")) == []
    assert (checkout / "dvc.lock").read_bytes() == lock

    # Prose and stored outputs are not what a model is trained from.
    path = run.notebook_of("pretrain_mat", checkout)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\nOne sentence more."
    notebook.cells[-1].metadata["tags"] = ["nbval-ignore-output"]
    nbformat.write(notebook, path)
    assert ran(dvc(checkout, "repro")) == ["sources"]
