"""The command line `mmt`: its commands, on which files they work, and that a failure is one sentence."""

import errno
import json
import os
import re
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner

import mmtlib.__main__ as command
from freedoom_sounds.files import write_clip
from mmtlib import config
from mmtlib.config import ROOT, compose, load
from mmtlib.data.dataset import FeatureDataset
from mmtlib.folders import Folders

COMMANDS = ["download", "features", "train", "predict", "runs", "report"]


def call(*arguments: str):
    return CliRunner().invoke(command.app, arguments)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with a study `tiny` of files of one's own: two classes, two short clips of each in a split."""
    for split in ("train", "val", "test"):
        for number, label in enumerate(("high", "low")):
            for take in range(2):
                folder = tmp_path / "media" / split / label
                folder.mkdir(parents=True, exist_ok=True)
                frames = np.full((10, 32, 32, 3), 60 * number + 20 * take, np.uint8)
                sound = np.random.default_rng(take).normal(0, 3000, (16000, 1)).astype(np.int16)
                write_clip(folder / f"{split}-{label}-{take}.mp4", frames, 10, sound, 16000)
    values = compose("params.yaml")
    values["study"], values["training"]["flip_except"] = "tiny", []
    values["download"] = {"source": "folder", "media": str(tmp_path / "media"), "workers": 1}
    values["features"] |= {"frames": 2, "size": 16, "seconds": 0.5, "workers": 1}
    YAML(typ="safe", pure=True).dump(values, tmp_path / "params.yaml")
    (tmp_path / "tiny.yaml").write_text("{base: params.yaml, features: {size: 24}}")
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(config, "load", partial(load, root=tmp_path))
    return tmp_path


def test_help_lists_the_commands():
    found = call("--help")
    assert found.exit_code == 0
    listed = re.findall(r"^  ([a-z]+)  ", found.output.split("Commands:")[1], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_without_a_command_the_help_is_shown():
    assert "Commands:" in call().output


def test_download_and_features_leave_what_the_stages_leave(root):
    assert call("download").output.splitlines()[-1] == f"12 clips: {root / 'data/tiny/clips'}"
    manifest = pd.read_csv(root / "data/tiny/clips/manifest.csv")
    assert manifest.groupby("split").label.nunique().to_dict() == {"train": 2, "val": 2, "test": 2}
    result = call("features", "--params", "tiny.yaml", "--workers", "1")
    assert result.exception is None
    assert result.output.splitlines()[-1] == f"12 clips: {root / 'data/tiny/features'}"
    assert FeatureDataset(root / "data/tiny/features", "test").stats["frames"]["shape"][1:] == [2, 24, 24, 3]
    described = json.loads((root / "data/tiny/features/features.json").read_text())
    assert described["settings"]["size"] == 24


def test_train_takes_a_number_of_processes_or_an_address(root, monkeypatch):
    pytest.importorskip("mmtlib.cluster")
    from mmtlib.training import study

    seen = []
    monkeypatch.setattr(study, "train_all", lambda *given: seen.append(given))
    for workers in ([], ["--workers", "3"], ["--workers", "tcp://there:8786"]):
        assert call("train", *workers).exit_code == 0
    params = load("params.yaml", root)
    assert seen == [(params, Folders(root, "tiny"), workers) for workers in (0, 3, "tcp://there:8786")]


def test_runs_says_what_is_kept():
    found = call("runs", "--params", "params/freedoom.yaml")
    count = len(list((ROOT / "reports/freedoom/runs").glob("*.parquet")))
    assert found.exit_code == 0
    assert found.output.splitlines()[-1] == f"{count} of {count} runs are kept; 0 files are of other runs."
    assert re.search(r"^train_mmt seed 2 \| [0-9a-f]{16}\.parquet$", found.output, re.MULTILINE)


def test_another_package_adds_a_command_that_is_imported_when_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "guest.py").write_text("def hello(params):\n    print('hello', params)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command, "app", typer.Typer())
    command.app.command("other")(lambda: None)  # with one command alone there would be no names
    command.add("hello", "guest:hello")
    assert "guest" not in sys.modules
    assert call("hello", "--params", "x.yaml").output == "hello x.yaml\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs", "--params", "params/none.yaml"], r"params/none\.yaml: no such file in .*; name params\.yaml or .*\."),
        (["runs"], r"training\.kept is null, so no run is kept; .*"),
        (["features", "--params", "absent.yaml"], r".*manifest\.csv.*"),
        (["predict", "clip.mp4", "--model", "gone.safetensors"], r"gone\.safetensors does not exist.*"),
    ],
)
def test_a_failure_is_one_sentence(root, arguments, sentence, monkeypatch, capsys):
    (root / "absent.yaml").write_text("{base: params.yaml, study: absent}")
    monkeypatch.setattr(sys, "argv", ["mmt", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(sentence + r"\n", err)


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "free space there"), (errno.EROFS, "make that folder")])
def test_a_disk_that_cannot_be_written_is_named_with_the_remedy(number, remedy, monkeypatch, capsys):
    def fail():
        raise OSError(number, os.strerror(number), "/data/features/log_mel.npy")

    monkeypatch.setattr(command, "app", fail)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert re.fullmatch(rf"/data/features/log_mel\.npy: .+; {remedy}.*\.\n", capsys.readouterr().err)
