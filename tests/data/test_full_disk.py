"""A disk that fills up at any moment, from the files to the predictions: one sentence, and with space the same end.

The disk is a tmpfs in a mount namespace of its own. FULL says how many times it fills up (`make faults`: 30).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from odd_media import Track, encode, tone
from toy_features import SETTINGS, make_params, make_run

from mmtlib.config import ROOT

FULL = int(os.environ.get("FULL", "1"))
NAMESPACE = ["unshare", "--mount", "--map-root-user"]
WORK = """
import contextlib, io, json, os, shutil, subprocess, sys
from pathlib import Path

disk, params, left = map(Path, sys.argv[1:4])
shares = [float(share) for share in sys.argv[4:]]  # of what the work writes, before the disk is full


def space(size: int, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "none", disk], check=True)


def used() -> int:
    return shutil.disk_usage(disk).used


def work() -> tuple[str, str]:
    for command in ("download", "features", "train"):
        sys.argv = ["mmt", command, "--params", str(params)] + ["--workers", "1"] * (command == "train")
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                main()
            except SystemExit as ended:
                if ended.code:
                    return command, errors.getvalue()
    return "", ""


space(2**28)
shutil.copytree("mmtlib", disk / "mmtlib")
sys.path.insert(0, str(disk))
os.environ["PYTHONPATH"] = str(disk)  # of the process that trains
from mmtlib.__main__ import main

assert work() == ("", "")
whole = used()
shutil.copytree(disk / "runs", left / "alone")
for share in shares:
    for folder in ("data", "runs"):
        shutil.rmtree(disk / folder)
    begun = used()  # Python's compiled modules among it
    space(int(begun + share * (whole - begun)), "remount")
    failed = work()
    space(2**28, "remount")
    assert work() == ("", "")
    shutil.copytree(disk / "runs", left / str(share))
    (left / f"{share}.json").write_text(json.dumps(failed))
"""


@pytest.fixture
def params(tmp_path) -> Path:
    """A parameter file of two tiny models, and a few clips."""
    for label, hz in (("high", 1500), ("low", 500)):
        (tmp_path / "media" / label).mkdir(parents=True)
        for number in range(8):
            encode(tmp_path / "media" / label / f"{number}.wav", Track("pcm_s16le", 8000, tone(1.0, 8000, hz + number)))
    values = make_params(other=make_run("mat_t", epochs=1, lr=1.0e-3)).model_dump(mode="json")
    del values["ablations"]["ast_t"]
    values |= {"pretrain_mvit": None, "train_mmt": None, "features": SETTINGS | {"workers": 1}}
    values["download"] = {"source": "folder", "media": str(tmp_path / "media"), "val_share": 0.3, "workers": 1}
    (tmp_path / "params.json").write_text(json.dumps(values))
    return tmp_path / "params.json"


def predictions(folder: Path) -> dict[str, pd.DataFrame]:
    """By the key of the run, with which its folder's name begins."""
    return {file.parent.name.split("-")[0]: pd.read_parquet(file) for file in folder.glob("*/*.parquet")}


def can_have_namespaces() -> None:
    """Skips the test where it has none."""
    if not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be had here")


def test_a_full_disk_is_said_in_one_sentence_and_loses_nothing(params, tmp_path):
    can_have_namespaces()
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    shares = ((np.arange(FULL) + np.random.default_rng(0).uniform(0.1, 0.9, FULL)) / FULL).tolist()
    command = [*NAMESPACE, sys.executable, "-c", WORK, *map(str, (disk, params, left, *shares))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = predictions(left / "alone")
    assert len(wanted) == 2
    room = "free space there, and run this again: what is finished is kept"
    full = rf"{re.escape(str(disk))}/\S+: No space left on device; {room}"
    needed = r"The arrays need [\d.]+ GiB, [\d.]+ are free; free some disk"
    for share in shares:
        failed, said = json.loads((left / f"{share}.json").read_text())
        assert failed, f"the disk was not full at {share}"
        assert re.fullmatch(rf"(?:{full}|{needed})\.\n", said), said
        found = predictions(left / str(share))
        assert found.keys() == wanted.keys()
        for key, table in wanted.items():
            pd.testing.assert_frame_equal(found[key], table, obj=key)


SHARED = """
import sys
from mmtlib import __main__ as command
from mmtlib.cluster import run_all

command.app = lambda: list(run_all(abs, list(range(99)), 2, what="numbers"))
command.main()
"""


def test_a_machine_without_shared_memory_is_told_in_one_sentence():
    can_have_namespaces()
    shell = ["sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$0" -c "$1"', sys.executable, SHARED]
    done = subprocess.run([*NAMESPACE, *shell], capture_output=True, text=True, check=False)
    told = "a temporary file or /dev/shm: Read-only file system; make that folder writable, or work in another one.\n"
    assert (done.returncode, done.stderr) == (1, told)
