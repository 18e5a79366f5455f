"""SIGKILL at random moments, from the files to the predictions: a run that goes on ends where one left alone does.

KILLS says how many there are (`make faults`: 60).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from odd_media import Track, encode, grey, tone
from toy_features import make_params

from mmtlib.folders import Folders
from mmtlib.training.stage import train_runs

KILLS = int(os.environ.get("KILLS", "1"))
EACH = min(3, KILLS)  # of a run
WORK = """
import sys, time
from pathlib import Path
from toy_features import SETTINGS, make_params
from mmtlib.data.download import download
from mmtlib.data.features import extract_features
from mmtlib.folders import Folders
from mmtlib.training.stage import train_runs

params = make_params()
folders = Folders(Path(sys.argv[1]), params.study)
print("begun", flush=True)
download(folders.clips, source="folder", media=sys.argv[2], val_share=0.3, workers=1)
extract_features(folders.clips / "manifest.csv", folders.features, **SETTINGS, workers=1)
for name in params.runs:
    train_runs(name, params, folders)
"""


def start(root: Path, media: Path) -> subprocess.Popen:
    """The work in a process of its own, when it has loaded what it needs."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WORK, str(root), str(media)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n", process.communicate()[1]
    return process


def finish(root: Path, media: Path) -> None:
    """Let the work end."""
    process = start(root, media)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def files(root: Path) -> set[str]:
    """What the work has left so far, but for what it is writing."""
    walked = os.walk(root)  # which passes over a folder that is renamed meanwhile
    return {f"{folder}/{name}" for folder, _, names in walked for name in names if not name.startswith(".")}


def outcome(root: Path) -> dict[str, pd.DataFrame]:
    """The predictions, and the list of clips; nothing is trained for them."""
    params = make_params()
    folders = Folders(root, params.study)
    found = {name: pd.read_parquet(train_runs(name, params, folders)[0].predictions) for name in params.runs}
    return found | {"index": pd.read_csv(folders.features / "index.csv")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, int, dict[str, pd.DataFrame]]:
    """Files, how many the work leaves that nothing disturbs, and what is in them."""
    media, root = tmp_path_factory.mktemp("media"), tmp_path_factory.mktemp("alone")
    for label, shade in (("high", 220), ("low", 40)):
        (media / label).mkdir()
        for number in range(8):
            sound = tone(1.0, 8000, 500 + shade * 5 + number, 0.4)
            tracks = Track("libx264", 10, grey(np.full(10, shade + number))), Track("aac", 8000, sound)
            encode(media / label / f"{number}.mp4", *tracks)
    finish(root, media)
    return media, len(files(root)), outcome(root)


@pytest.mark.parametrize("seed", range(-(-KILLS // EACH)))
def test_work_that_is_killed_goes_on_to_the_same_end(alone, tmp_path, capsys, seed):
    """Killed when so many files are there, and a moment later: by progress, since the clock is another each time."""
    media, count, wanted = alone
    rng, seen = np.random.default_rng(seed), set()
    for least in sorted(rng.integers(0, count - 4, EACH)):  # so that enough is left to do
        process = start(tmp_path, media)
        while len(seen) < least and process.poll() is None:
            seen |= files(tmp_path)
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(tmp_path, media)
    found = outcome(tmp_path)
    assert capsys.readouterr().out.count("was trained already") == len(wanted) - 1
    for name, table in wanted.items():
        pd.testing.assert_frame_equal(found[name], table, obj=name)
