from pathlib import Path

from mmtlib.config import ROOT, workspace


def test_a_relative_workspace_is_taken_from_the_root_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workspace("build/smoke") == ROOT / "build" / "smoke"
    assert workspace(".") == ROOT
    assert workspace(tmp_path) == tmp_path.resolve()


def test_the_root_holds_the_pipeline():
    assert Path(__file__).resolve().parents[1] == ROOT
    assert (ROOT / "dvc.yaml").is_file()
