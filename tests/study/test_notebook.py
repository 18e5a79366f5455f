"""How a notebook begins: parameters and folders; what is missing is made in the study `smoke`, asked for in others."""

import shutil

import pandas as pd
import pytest

from mmtlib.config import ROOT, ParamsError, Trial, load
from mmtlib.folders import Folders
from mmtlib.training.stage import Trained
from study import notebook
from study.notebook import MissingStage, begin, to_show
from study.run import GUIDES, STAGES

FILE = "params/smoke.yaml"
SMALL = load(FILE)


@pytest.fixture
def root(tmp_path):
    """A repository with parameter files and nothing else."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


@pytest.fixture
def verbs(monkeypatch):
    """The stages' verbs, replaced by ones that leave the files only; the list of those that were called."""
    called = []

    def leave(stage, params, folders):
        called.append(stage)
        for path in notebook.outputs(stage, params, folders):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")

    monkeypatch.setattr(notebook, "_run", leave)
    return called


def test_every_stage_says_what_it_needs_and_only_earlier_ones():
    assert list(notebook.NEEDS) == [*STAGES, *GUIDES]
    for place, stage in enumerate(STAGES):
        assert set(notebook.NEEDS[stage]) <= set(STAGES[:place])


def test_it_begins_with_the_parameters_and_the_folders_of_their_study(root, verbs):
    assert begin("download", FILE, root=root) == (SMALL, Folders(root, "smoke"))
    assert begin("download", "params.yaml", root=root) == (load(), Folders(root, "quick"))
    params, _ = begin("download", FILE, {"pretrain_mat.epochs": 2}, root)
    assert (params.pretrain_mat.epochs, params.ablations["ast_t"].epochs) == (2, 2)
    with pytest.raises(ParamsError, match="did you mean epochs"):
        begin("download", FILE, {"pretrain_mat.epoch": 2}, root)
    assert verbs == []


def test_the_study_smoke_is_filled_in_order_and_once(root, verbs, capsys):
    begin("train_mmt", FILE, root=root)
    assert verbs == ["download", "features", "pretrain_mat", "pretrain_mvit"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{stage} has not run in the study smoke: it runs now" for stage in verbs]
    begin("train_mmt", FILE, root=root)
    assert len(verbs) == 4
    assert capsys.readouterr().out == ""
    begin("report", FILE, root=root)
    assert verbs[4:] == ["train_mmt", "ablations"]
    folders = {path.relative_to(root).parts[:2] for path in root.rglob("*") if path.is_file()}
    made = {parts for parts in folders if parts[0].startswith(("data", "models", "predictions"))}
    assert made == {("data", "smoke"), ("models", "smoke"), ("predictions", "smoke")}


def test_one_missing_file_is_enough_to_run_its_stage_again(root, verbs):
    begin("report", FILE, root=root)
    verbs.clear()
    Folders(root, "smoke").predictions("mbt_t", 0).unlink()
    begin("report", FILE, root=root)
    assert verbs == ["ablations"]
    verbs.clear()
    begin("train_mmt", FILE, {"seeds": [0, 1]}, root)
    assert verbs == ["pretrain_mat", "pretrain_mvit"]


@pytest.mark.parametrize(
    ("stage", "first", "run"),
    [
        ("features", "data/quick/clips/manifest.csv", "download"),
        ("pretrain_mat", "data/quick/features/features.json", "features"),
        ("train_mmt", "data/quick/features/features.json", "features"),
    ],
)
def test_another_study_is_left_alone_and_the_stage_to_run_is_named(root, verbs, stage, first, run):
    before = sorted(root.rglob("*"))
    with pytest.raises(MissingStage, match=rf"^{stage} needs {first}, .*\brun `.*{run}.*` first\.$"):
        begin(stage, "params.yaml", root=root)
    assert verbs == []
    assert sorted(root.rglob("*")) == before


def test_another_study_that_is_complete_passes(root, verbs):
    folders = Folders(root, "quick")
    for stage in STAGES[:4]:
        for path in notebook.outputs(stage, load(), folders):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    begin("train_mmt", "params.yaml", root=root)
    begin("download", "params.yaml", root=root)
    assert verbs == []


@pytest.mark.parametrize("stage", STAGES[: STAGES.index("report")])
def test_each_verb_is_called_with_its_section_and_leaves_what_the_next_stage_looks_for(tmp_path, monkeypatch, stage):
    """The real `_run` on verbs that note what they get: where they write is what `outputs` lists."""
    calls, folders = [], Folders(tmp_path, "smoke")

    def train(name, params, given):
        assert (params, given) == (SMALL, folders)
        for seed, _ in params.trials(name):
            calls.extend([given.weights(name, seed).with_suffix(".json"), given.predictions(name, seed)])

    def download(out, **values):
        assert values == SMALL.download.model_dump()
        calls.extend([out / "manifest.csv", out / "dataset.json"])

    def extract(manifest, out, **values):
        assert manifest == folders.clips / "manifest.csv"
        assert values == SMALL.features.model_dump()
        calls.append(out / "features.json")

    monkeypatch.setattr(notebook, "train_runs", train)
    monkeypatch.setattr(notebook, "download", download)
    monkeypatch.setattr(notebook, "extract_features", extract)
    notebook._run(stage, SMALL, folders)
    assert calls == notebook.outputs(stage, SMALL, folders)


# What is shown.


def trained(name: str) -> list[Trained]:
    folders = Folders(ROOT, "smoke")
    files = folders.weights(name, 0), folders.predictions(name, 0)
    return [Trained(Trial(0), *files, history=pd.DataFrame())]


@pytest.mark.parametrize("name", ["pretrain_mat", "train_mmt", *SMALL.ablations])
def test_the_study_smoke_shows_the_kept_results_of_the_full_one(name, capsys):
    full = load(notebook.FULL)
    shown = to_show(name, trained(name), SMALL)
    assert [one.trial.seed for one in shown] == [seed for seed, _ in full.trials(name)]
    assert capsys.readouterr().out == f"of the study freedoom, whose predictions are kept: {len(shown)} seeds\n"
    for one in shown:
        assert one.predictions.parent == ROOT / full.training.kept
        assert len(one.history) == full.runs[name].epochs
        assert one.scores.query("split == 'test'").top1.max() > 25


def test_another_study_shows_its_own():
    own = trained("pretrain_mat")
    assert to_show("pretrain_mat", own, load()) is own
