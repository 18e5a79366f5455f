"""The notebooks: executed, thin, and at the study `smoke`. `pytest --nbval` compares outputs."""

import ast
import re

import nbformat
import papermill
import pytest

from mmtlib.config import ROOT, load
from study import run

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMOKE = load("params/smoke.yaml")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_one_notebook_for_each_stage_numbered_in_order():
    wanted = [f"{number:02d}_{stage}" for number, stage in enumerate(run.STAGES, start=1)]
    assert [path.stem for path in NOTEBOOKS] == [*wanted, *run.GUIDES]


def test_it_was_executed_from_top_to_bottom_without_error(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_it_shows_something_that_nbval_compares(code):
    compared = [cell for cell in code if "nbval-ignore-output" not in cell.metadata.get("tags", [])]
    assert [cell for cell in compared if any("text" in output for output in cell.outputs)]
    assert not [cell for cell in code if "nbval-skip" in cell.metadata.get("tags", [])]


def test_it_is_stored_as_make_notebooks_writes_it(path):
    # No timestamps, random ids, widget state or another kernel's name: `make notebooks` mends this.
    stored = path.read_text(encoding="utf-8")
    assert stored == nbformat.writes(run.scrub(nbformat.reads(stored, as_version=4))) + "\n"
    assert nbformat.reads(stored, as_version=4).metadata.kernelspec.name == "python3"
    assert len(stored) < 300_000


def test_it_begins_with_one_title_and_the_parameters(notebook):
    title, parameters = notebook.cells[:2]
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert "parameters" in parameters.metadata.get("tags", [])
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1


def test_it_opens_with_the_study_smoke_as_it_is(path, notebook):
    lines, defaults = notebook.cells[1].source.splitlines(), {}
    for statement in ast.parse(notebook.cells[1].source).body:
        (target,) = statement.targets
        defaults[target.id] = ast.literal_eval(statement.value)
        written = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
        assert re.search(r"  # \S", written), f"say meaning and unit beside: {written}"
    if path.stem not in run.GUIDES:
        row = {"row": next(iter(SMOKE.ablations))} if path.stem[3:] == "ablations" else {}
        assert defaults == {"params": "params/smoke.yaml", "changes": {}} | row
    # It reads the cell line by line, stumbles over a `=` in a comment, and would print a warning in every run.
    assert set(papermill.inspect_notebook(path)) == set(defaults)


def test_the_change_that_its_parameters_suggest_is_one_that_can_be_made(path, notebook):
    suggested = re.search(r"for instance (\{.*\})", notebook.cells[1].source)
    if path.stem in run.GUIDES and not suggested:
        return
    changes = ast.literal_eval(suggested[1])
    changed = load("params/smoke.yaml", changes=changes)
    assert changed != SMOKE
    assert next(iter(changes)).split(".")[0] == path.stem[3:]


def test_it_holds_no_logic(code):
    """Notebooks call, show and explain; what could be wrong stands in mmtlib, where a test reaches it."""
    banned = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.Try, ast.While)
    for cell in code:
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, banned), ast.unparse(node)
            assert not (isinstance(node, ast.Attribute) and node.attr == "environ"), ast.unparse(node)


def test_the_sanitizer_leaves_every_stored_digit_alone():
    """A rule in nbval.cfg may hide an address, not a result."""
    rules = re.findall(r"^regex: (.*)$", (ROOT / "notebooks" / "nbval.cfg").read_text(), re.MULTILINE)
    assert rules
    for rule in rules:
        assert not re.search(rule, "top-1 71.3 %, 1.65 M parameters, 0.28 GMAC, (8, 1, 208, 128), 0x1p-3")
