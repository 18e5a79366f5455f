"""The runner, on toy notebooks in a folder of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from ruamel.yaml import YAML

from mmtlib.config import ROOT, ParamsError, load
from study import run

WHOLE = (ROOT / "params.yaml").read_text()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the parameter files and, once asked for, a toy notebook for a stage."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def toy(checkout, stage, *cells):
    """Write the notebook of a stage: its parameters at wrong defaults, then `cells`."""
    lines = ["params = None  # parameter file", "changes = {}  # what to change in it"]
    lines += ["row = None  # of the table"] * (stage == "ablations")
    code = [
        new_code_cell("\n".join(lines), id="p", metadata={"tags": ["parameters"]}),
        *(new_code_cell(cell, id=f"c{index}") for index, cell in enumerate(cells)),
    ]
    notebook = new_notebook(cells=[new_markdown_cell("# Toy\n\nNext: [2](02_features.ipynb).", id="t"), *code])
    path = checkout / "notebooks" / f"{run.STAGES.index(stage) + 1:02d}_{stage}.ipynb"
    nbformat.write(notebook, path)
    return path


def test_the_parameter_file_arrives_and_two_runs_give_the_same_bytes(checkout, capsys):
    checks = "assert (params, changes) == ('params/smoke.yaml', {})"
    path = toy(checkout, "pretrain_mat", checks, "import os\nprint('cwd', os.path.basename(os.getcwd()))\nparams")
    before = path.read_bytes()
    copy = run.run("pretrain_mat", file="params/smoke.yaml", root=checkout)
    assert copy == checkout / "reports" / "smoke" / "notebooks" / "pretrain_mat.ipynb"
    assert "cwd notebooks" in capsys.readouterr().out  # shown live
    first = copy.read_bytes()
    run.run("pretrain_mat", file="params/smoke.yaml", root=checkout)
    assert copy.read_bytes() == first
    assert path.read_bytes() == before
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]  # no draft is left behind
    cells = nbformat.read(copy, as_version=4).cells
    assert "[2](../../../notebooks/02_features.ipynb)" in cells[0].source  # a link still leads to the neighbour
    assert [cell.execution_count for cell in cells if cell.cell_type == "code"] == [1, 2, 3, 4]


def test_each_study_has_copies_of_its_own_and_the_benchmark_one_for_all(checkout, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "execute", lambda source, target, values, root: seen.append((target, values)))
    for stage in ("download", "efficiency"):
        toy(checkout, stage)
        for file in ("params.yaml", "params/smoke.yaml"):
            assert run.run(stage, file=file, root=checkout) == seen[-1][0]
    names = [target.relative_to(checkout / "reports").as_posix() for target, _ in seen]
    assert (
        names
        == ["quick/notebooks/download.ipynb", "smoke/notebooks/download.ipynb"] + ["efficiency/notebook.ipynb"] * 2
    )
    assert [values for _, values in seen] == [{"params": "params.yaml"}, {"params": "params/smoke.yaml"}] * 2


def test_classes_that_must_not_be_mirrored_are_checked_before_features_are_extracted(checkout):
    toy(checkout, "features", "pass")
    (checkout / "data/quick/clips").mkdir(parents=True)
    dataset = checkout / "data/quick/clips/dataset.json"
    dataset.write_text('{"classes": ["turn_left", "purr"]}')
    with pytest.raises(ParamsError, match=r"training\.flip_except names 'turn_right', no class of the data set"):
        run.run("features", root=checkout)
    dataset.write_text('{"classes": ["turn_left", "turn_right"]}')
    assert run.run("features", root=checkout).is_file()


def test_a_row_of_the_table_is_named(checkout):
    toy(checkout, "ablations", "assert (row, params) == ('mbt_t', 'params.yaml')")
    copy = run.run("ablations", row="mbt_t", root=checkout)
    assert copy.name == "ablations-mbt_t.ipynb"


@pytest.mark.parametrize(
    ("stage", "row", "message"),
    [
        ("ablations", None, "stage ablations got --row None"),
        ("download", "ast_t", "stage download got --row ast_t"),
        ("ablations", "nope", r"params\.yaml: ablations has no row nope; use one of ast_t, mbt_t"),
    ],
)
def test_a_wrong_row_is_refused(checkout, stage, row, message):
    toy(checkout, stage, "raise RuntimeError")
    with pytest.raises(ParamsError, match=message):
        run.run(stage, row=row, root=checkout)
    assert not (checkout / "reports").exists()


# The pipeline of another study.


def test_a_composed_pipeline_has_the_parameters_of_its_overlay_and_folders_of_its_own(checkout):
    path = run.compose_study("smoke", checkout)
    assert path == checkout / "build/smoke/dvc.yaml"
    assert load("build/smoke/params.yaml", checkout) == load("params/smoke.yaml")
    composed, plain = (YAML(typ="safe", pure=True).load(file)["stages"] for file in (path, checkout / "dvc.yaml"))
    assert composed.keys() == plain.keys()
    for name, whole in composed.items():
        stage, own = whole.get("do", whole), plain[name].get("do", plain[name])
        assert stage["wdir"] == "../.."
        assert stage["cmd"] == f"{own['cmd']} --params build/smoke/params.yaml"
        assert stage["params"] == [{"build/smoke/params.yaml": own["params"]}]
        assert (stage["deps"], stage["outs"]) == (own["deps"], own["outs"])
        assert all("/${study}/" in str(out) for out in stage["outs"])


def test_composing_again_changes_no_byte_and_another_study_touches_nothing(checkout):
    first = run.compose_study("smoke", checkout)
    before = {path: path.read_bytes() for path in first.parent.iterdir()}
    run.compose_study("smoke", checkout)
    run.compose_study("kinetics-sounds", checkout)
    assert {path: path.read_bytes() for path in first.parent.iterdir()} == before
    assert load("build/kinetics-sounds/params.yaml", checkout) == load("params/kinetics-sounds.yaml")


def test_files_that_came_or_changed_are_seen_and_those_that_are_away_change_nothing(checkout, monkeypatch):
    media, official, build = checkout / "media", checkout / "lists", checkout / "build/kinetics-sounds"
    given = load("params/kinetics-sounds.yaml", checkout).download
    monkeypatch.setattr(run, "workspace", {given.media: media, given.annotations: official}.get)

    def seen() -> tuple[str, str]:
        stages = YAML(typ="safe", pure=True).load(run.compose_study("kinetics-sounds", checkout))["stages"]
        listed = {f"build/kinetics-sounds/{part}.txt" for part in ("media", "annotations")}
        assert listed <= {*stages["download"]["deps"]} & {*stages["features"]["deps"]}
        return tuple((build / f"{part}.txt").read_text() for part in ("media", "annotations"))

    assert seen() == ("", "")
    media.mkdir()
    (media / "a.mp4").write_bytes(b"1")
    official.mkdir()
    (official / "train.csv").write_bytes(b"1")
    one = seen()
    assert one[0].startswith("'a.mp4' 1 ")
    assert one[1].startswith("'train.csv' 1 ")
    assert seen() == one
    (media / "a.mp4").write_bytes(b"12")
    two = seen()
    assert two[0] != one[0]
    assert two[1] == one[1]
    (official / "train.csv").write_bytes(b"12")
    assert seen()[0] == two[0]
    assert seen()[1] != two[1]
    (media / "sub").mkdir()
    (media / "sub/b.mp4").write_bytes(b"1")
    more = seen()
    assert "\n'sub/b.mp4' 1 " in more[0]
    media.rename(checkout / "away")
    assert seen() == more
    assert "media.txt" not in str(YAML(typ="safe", pure=True).load(run.compose_study("smoke", checkout))["stages"])


def test_links_in_a_circle_damaged_archives_and_a_list_of_one_file_are_listed(checkout, monkeypatch):
    media = checkout / "media"
    media.mkdir()
    given = load("params/kinetics-sounds.yaml", checkout).download
    monkeypatch.setattr(run, "workspace", {given.media: media, given.annotations: media / "clips.tar"}.get)
    (media / "self").symlink_to(media)
    (media / "gone.mp4").symlink_to(checkout / "nothing")
    (media / "clips.tar").write_bytes(b"no archive")
    (media / "two\nlines.mp4").write_bytes(b"")
    run.compose_study("kinetics-sounds", checkout)
    listed = {part: checkout / f"build/kinetics-sounds/{part}.txt" for part in ("media", "annotations")}
    facts = {part: re.sub(r" \d+$", "", path.read_text(), flags=re.M) for part, path in listed.items()}
    assert facts == {"media": "'clips.tar' 10\n'two\\nlines.mp4' 0", "annotations": "'.' 10"}


def test_a_study_that_is_not_called_like_its_file_is_refused(checkout):
    shutil.copy(checkout / "params/smoke.yaml", checkout / "params/other.yaml")
    with pytest.raises(ParamsError, match=r"^params/other\.yaml: study is smoke but must be other; change it\.$"):
        run.compose_study("other", checkout)
    with pytest.raises(ParamsError, match=r"^params/none\.yaml: no such file"):
        run.compose_study("none", checkout)
    assert not (checkout / "build").exists()


def test_the_command_line_takes_a_name_with_compose_and_with_nothing_else(capsys):
    for wrong in (["compose"], ["download", "smoke"], ["nothing"], ["notebooks", "--only", "nothing"]):
        with pytest.raises(SystemExit):
            run.main(wrong)
    capsys.readouterr()
    assert run.main(["compose", "none"]) == 1
    assert capsys.readouterr().err.startswith("params/none.yaml: no such file")


# The command line.


def command(checkout, *arguments, **options):
    """Start the command line on a copy of the package, as DVC does in another checkout."""
    for name in ("mmtlib", "study", "freedoom_sounds"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
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
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "so far\n")
    copy = checkout / "reports" / "quick" / "notebooks" / "download.ipynb"
    assert err.splitlines() == [
        "notebooks/01_download.ipynb failed in code cell [4]: ValueError: bad clip",
        f"The executed copy is {copy.relative_to(checkout)}.",
    ]
    assert "so far" in copy.read_text()
    assert nbformat.read(copy, as_version=4).cells[-1].outputs[0].ename == "ValueError"


def test_a_bad_parameter_gives_one_line_and_status_1(checkout):
    (checkout / "params.yaml").write_text(WHOLE.replace("seeds: [0]", "seed: [0]"))
    process = command(checkout, "download")
    out, err = process.communicate(timeout=120)
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
        toy(checkout, stage, "print(1)")
    run.sources("quick", checkout)
    written = {file.stem: file.read_bytes() for file in (checkout / "build" / "quick" / "notebooks").iterdir()}
    assert written.keys() == set(run.STAGES)
    assert [cell["source"] for cell in json.loads(written["report"])][1:] == ["print(1)"]

    path = run.notebook_of("report", checkout)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "# Other prose"
    notebook.cells[-1].outputs = [new_output("stream", text="1\n")]
    notebook.cells[-1].metadata["tags"] = ["nbval-ignore-output"]
    nbformat.write(notebook, path)
    run.sources("quick", checkout)
    assert (checkout / "build" / "quick" / "notebooks" / "report.json").read_bytes() == written["report"]

    notebook.cells[-1].source = "print(2)"
    nbformat.write(notebook, path)
    run.sources("quick", checkout)
    assert (checkout / "build" / "quick" / "notebooks" / "report.json").read_bytes() != written["report"]


def test_a_missing_or_broken_notebook_is_named(checkout):
    with pytest.raises(run.NotebookError, match="0 files are named NN_report"):
        run.notebook_of("report", checkout)
    (checkout / "notebooks" / "01_download.ipynb").write_text("no json")
    with pytest.raises(run.NotebookError, match=r"^01_download\.ipynb: not a notebook"):
        run.sources("quick", checkout)
    with pytest.raises(run.NotebookError, match=r"^notebooks/01_download\.ipynb failed in its start: NotJSONError"):
        run.run("download", root=checkout)


def test_scrub_joins_what_a_stream_was_cut_into():
    pieces = [
        new_output("stream", name="stdout", text="a"),
        new_output("stream", name="stdout", text="b"),
        new_output("stream", name="stderr", text="c"),
    ]
    cell = new_code_cell("x", outputs=pieces, metadata={"execution": {"iopub.status.busy": "2020"}})
    clean = run.scrub(new_notebook(cells=[cell], metadata={"papermill": {"duration": 1}}))
    assert [(output.name, output.text) for output in clean.cells[0].outputs] == [("stdout", "ab"), ("stderr", "c")]
    assert (clean.cells[0].metadata, "papermill" in clean.metadata) == ({}, False)
