"""The runner, on toy notebooks in a folder of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mmtlib.config import ROOT, ParamsError, load
from mmtlib.data.dataset import FeatureDataset
from mmtlib.data.manifest import write_manifest
from mmtlib.data.media import write_clip
from study import run

SMOKE = ROOT / "params" / "smoke.yaml"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the smoke profile and, once asked for, a toy notebook for a stage."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copy(SMOKE, tmp_path / "params.yaml")
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def toy(checkout, stage, *cells, row=None, without=(), **extra):
    """Write the notebook of a stage: its parameters at wrong defaults, then `cells`."""
    values = {"workspace": "x", **run.stage_values(load(SMOKE), stage, row), **extra}
    lines = [f"{name} = None  # meaning, unit" for name in values if name not in without]
    code = [
        new_code_cell("\n".join(lines), id="p", metadata={"tags": ["parameters"]}),
        *(new_code_cell(cell, id=f"c{index}") for index, cell in enumerate(cells)),
    ]
    notebook = new_notebook(cells=[new_markdown_cell("# Toy\n\nNext: [2](02_features.ipynb).", id="t"), *code])
    path = checkout / "notebooks" / f"{run.STAGES.index(stage) + 1:02d}_{stage}.ipynb"
    nbformat.write(notebook, path)
    return path


def test_values_arrive_with_their_types_and_two_runs_give_the_same_bytes(checkout, capsys):
    text = SMOKE.read_text().replace("lr: 1.0e-3", "lr: 1e-3").replace("flip: true", "flip: false")
    (checkout / "params.yaml").write_text(text)
    checks = "assert lr == 0.001 and training['flip'] is False and seeds == [0] and workspace == 'work'"
    path = toy(checkout, "pretrain_mat", checks, "import os\nprint('cwd', os.path.basename(os.getcwd()))\nlr")
    before = path.read_bytes()
    copy = run.run("pretrain_mat", workspace="work", root=checkout)
    assert copy == checkout / "work" / "reports" / "notebooks" / "pretrain_mat.ipynb"
    assert "cwd notebooks" in capsys.readouterr().out  # shown live
    first = copy.read_bytes()
    run.run("pretrain_mat", workspace="work", root=checkout)
    assert copy.read_bytes() == first
    assert path.read_bytes() == before
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]  # no draft is left behind
    cells = nbformat.read(copy, as_version=4).cells
    assert "[2](../../../notebooks/02_features.ipynb)" in cells[0].source  # a link still leads to the neighbour
    assert [cell.execution_count for cell in cells if cell.cell_type == "code"] == [1, 2, 3, 4]


def test_a_parameter_that_only_one_side_knows_is_refused_before_anything_runs(checkout):
    toy(checkout, "download", "raise RuntimeError", without=["seed"])
    with pytest.raises(run.NotebookError, match=r"01_download\.ipynb: its parameters cell lacks seed"):
        run.run("download", root=checkout)
    toy(checkout, "download", "raise RuntimeError", sede=1)
    with pytest.raises(run.NotebookError, match=r"no field of params\.yaml is named sede; remove or rename"):
        run.run("download", root=checkout)
    assert not (checkout / "reports").exists()


def test_classes_that_must_not_be_mirrored_are_checked_before_features_are_extracted(checkout):
    toy(checkout, "features", "pass")
    (checkout / "data/clips").mkdir(parents=True)
    dataset = checkout / "data/clips/dataset.json"
    dataset.write_text('{"classes": ["turn_left", "purr"]}')
    with pytest.raises(ParamsError, match=r"training\.flip_except names 'turn_right', no class of the data set"):
        run.run("features", root=checkout)
    dataset.write_text('{"classes": ["turn_left", "turn_right"]}')
    assert run.run("features", root=checkout).is_file()


def test_a_row_of_the_table_is_injected_with_its_name(checkout):
    toy(checkout, "ablations", "assert (row, model, group) == ('mbt_t', 'mbt_t', 'baseline')", row="ast_t")
    copy = run.run("ablations", row="mbt_t", root=checkout)
    assert copy.name == "ablations-mbt_t.ipynb"


@pytest.mark.parametrize(
    ("stage", "row", "message"),
    [
        ("ablations", None, "stage ablations got --row None"),
        ("download", "ast_t", "stage download got --row ast_t"),
        ("ablations", "nope", "ablations has no row nope; use one of ast_t, mbt_t"),
    ],
)
def test_a_wrong_row_is_refused(stage, row, message):
    with pytest.raises(ParamsError, match=message):
        run.stage_values(load(SMOKE), stage, row)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "0 cells are tagged"),
        ([("a = 1", True), ("b = 2", True)], "2 cells are tagged"),
        ([("a = f(1)", True)], "write one `name = literal` a line"),
        ([("import os", True)], "line 1 is no plain assignment"),
        ([("a = b = 1", True)], "line 1 is no plain assignment"),
        ([("a = ", True)], "write one `name = literal` a line"),
    ],
)
def test_a_malformed_parameters_cell_is_refused(tmp_path, cells, message):
    tagged = [new_code_cell(code, metadata={"tags": ["parameters"]} if tag else {}) for code, tag in cells]
    nbformat.write(new_notebook(cells=tagged), tmp_path / "x.ipynb")
    with pytest.raises(run.NotebookError, match=message):
        run.cell_defaults(tmp_path / "x.ipynb")


def test_the_report_is_given_the_parameter_file_itself(checkout):
    toy(checkout, "report", "assert profile == 'params.yaml'")
    assert run.run("report", root=checkout).is_file()


def command(checkout, *arguments, **options):
    """Start the command line on a copy of the package, as DVC does in another checkout."""
    if not (checkout / "mmtlib").exists():
        (checkout / "mmtlib").mkdir()
        for name in ("__init__.py", "files.py", "params.py", "paths.py", "run.py"):
            shutil.copy(ROOT / "mmtlib" / name, checkout / "mmtlib" / name)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "study.run", *arguments], cwd=checkout, **pipes, **options)


# The kernel's part of papermill's last request, drawn out: the kernel is interrupted, to end it, while it is at it.
SLOW = """
import time
handlers = get_ipython().kernel.shell_handlers
answer = handlers["kernel_info_request"]
async def slowly(*request):
    await answer(*request)
    time.sleep(1)
handlers["kernel_info_request"] = slowly
"""


def test_a_failing_notebook_gives_two_lines_status_1_and_a_copy(checkout):
    toy(checkout, "download", SLOW + "print('so far')", "raise ValueError('bad clip\\nsecond line')")
    process = command(checkout, "download")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "so far\n")
    copy = checkout / "reports" / "notebooks" / "download.ipynb"
    assert err.splitlines() == [
        "notebooks/01_download.ipynb failed in code cell [4]: ValueError: bad clip",
        f"The executed copy is {copy.relative_to(checkout)}.",
    ]
    assert "so far" in copy.read_text()
    assert nbformat.read(copy, as_version=4).cells[-1].outputs[0].ename == "ValueError"


def test_a_bad_parameter_gives_one_line_and_status_1(checkout):
    (checkout / "params.yaml").write_text(SMOKE.read_text().replace("seeds: [0]", "seed: [0]"))
    process = command(checkout, "download")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("params.yaml: seed is not a known field; did you mean seeds")
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_leaves_no_kernel_and_runs_its_own_checkout(checkout, number):
    show = "import os, time, mmtlib\nprint(os.getpid(), mmtlib.__file__, flush=True)\ntime.sleep(60)"
    toy(checkout, "download", show)
    # A shell starts its background jobs with SIGINT ignored, the tests perhaps among them.
    ignoring = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    process = command(checkout, "download", start_new_session=True, preexec_fn=ignoring)
    kernel, file = process.stdout.readline().split()
    assert file == str(checkout / "mmtlib" / "__init__.py")
    os.killpg(process.pid, number)
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()  # not even a failed test leaves it, or its kernel, which watches it, behind
    assert (process.returncode, err) == (130, "download: interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(kernel), 0)


def test_a_kernel_that_dies_is_reported_with_its_cell(checkout):
    path = toy(checkout, "download", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(run.NotebookError, match=r"failed in code cell \[2\]: DeadKernelError: Kernel died"):
        run.execute(path, checkout / "copy.ipynb", {}, checkout)


def test_refresh_stores_outputs_in_place_and_a_failure_changes_nothing(checkout):
    path = toy(checkout, "download", "print('hello')")
    run.refresh("download", root=checkout)
    first = path.read_bytes()
    assert b"hello" in first
    run.refresh("download", root=checkout)
    assert path.read_bytes() == first
    path = toy(checkout, "download", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(run.NotebookError, match="ZeroDivisionError"):
        run.refresh("download", root=checkout)
    assert path.read_bytes() == before


def test_sources_hold_code_but_neither_prose_nor_outputs(checkout):
    for stage in run.STAGES:
        toy(checkout, stage, "print(1)", row="ast_t" if stage == "ablations" else None)
    run.sources(checkout)
    written = {file.stem: file.read_bytes() for file in (checkout / "build" / "notebooks").iterdir()}
    assert written.keys() == set(run.STAGES)
    assert [cell["source"] for cell in json.loads(written["report"])][1:] == ["print(1)"]

    path = run.notebook_of("report", checkout)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "# Other prose"
    notebook.cells[-1].outputs = [new_output("stream", text="1\n")]
    notebook.cells[-1].metadata["tags"] = ["nbval-ignore-output"]
    nbformat.write(notebook, path)
    run.sources(checkout)
    assert (checkout / "build" / "notebooks" / "report.json").read_bytes() == written["report"]

    notebook.cells[-1].source = "print(2)"
    nbformat.write(notebook, path)
    run.sources(checkout)
    assert (checkout / "build" / "notebooks" / "report.json").read_bytes() != written["report"]


def test_a_missing_or_broken_notebook_is_named(checkout):
    with pytest.raises(run.NotebookError, match="0 files are named NN_report"):
        run.notebook_of("report", checkout)
    (checkout / "notebooks" / "01_download.ipynb").write_text("no json")
    with pytest.raises(run.NotebookError, match=r"^01_download\.ipynb: not a notebook"):
        run.run("download", root=checkout)


def test_scrub_joins_what_a_stream_was_cut_into():
    pieces = [
        new_output("stream", name="stdout", text="a"),
        new_output("stream", name="stdout", text="b"),
        new_output("stream", name="stderr", text="c"),
    ]
    cell = new_code_cell("x", outputs=pieces, metadata={"execution": {"iopub.status.busy": "2020"}})
    clean = run.scrub(new_notebook(cells=[cell], metadata={"papermill": {"duration": 1}}))
    assert [(output.name, output.text) for output in clean.cells[0].outputs] == [
        ("stdout", "ab"),
        ("stderr", "c"),
    ]
    assert (clean.cells[0].metadata, "papermill" in clean.metadata) == ({}, False)


def test_usable_cores_are_within_what_the_machine_has():
    assert 1 <= run.usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("stage", run.STAGES)
def test_papermill_finds_every_parameter_that_a_notebook_has(stage):
    """It reads the cell line by line, stumbles over a `=` in a comment, and would print a warning in every run."""
    path = run.notebook_of(stage)
    assert set(papermill.inspect_notebook(path)) == set(run.cell_defaults(path))


def test_features_are_extracted_in_parts_from_the_command_line(checkout, monkeypatch, capsys):
    clips = checkout / "data/clips"
    clips.mkdir(parents=True)
    rows = []
    for number in range(3):
        frames = np.full((50, 64, 64, 3), 60 * number + 40, np.uint8)
        write_clip(clips / f"{number}.mp4", frames, 25, np.full((32000, 1), 900 * number + 90, np.int16), 16000)
        rows.append((f"c{number}", f"{number}.mp4", None, None, "a", "train"))
    columns = ["clip_id", "path", "start", "end", "label", "split"]
    write_manifest(pd.DataFrame(rows, columns=columns), clips / "manifest.csv")
    monkeypatch.setattr(run, "split_features", partial(run.split_features, root=checkout))
    for arguments in (["--shard", "0/2"], ["--shard", "1/2"], ["--merge"]):
        assert run.main(["features", *arguments]) == 0
    capsys.readouterr()
    assert len(FeatureDataset(checkout / "data/features", "train")) == 3
    assert run.main(["features", "--shard", "7/2"]) == 1
    assert "7" in capsys.readouterr().err
    for wrong in (["features", "--shard", "one"], ["download", "--merge"]):
        with pytest.raises(SystemExit):
            run.main(wrong)
