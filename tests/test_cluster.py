"""Work by processes and by a cluster at an address: in order, none lost, and failures in a sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed import Scheduler, SpecCluster

from mmtlib import cluster
from mmtlib.cluster import ClusterError, connect, cores, run_all
from mmtlib.config import ROOT


def pid_of(number: int) -> tuple[int, int]:
    time.sleep(0.01)
    return number, os.getpid()


def crash_at_20(number: int) -> int:
    if number == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse_20(number: int) -> int:
    if number == 20:
        raise ValueError("20 is refused")
    return number


@pytest.fixture(scope="module")
def client():
    with connect(2) as client:
        yield client


@pytest.fixture(scope="module")
def address(client):
    return client.scheduler.address


def test_one_worker_and_a_handful_of_items_stay_in_this_process(capsys):
    for items, workers in ((range(40), 1), (range(8), 2), (range(0), "tcp://nowhere:1")):
        found = list(run_all(pid_of, items, workers, what="numbers"))
        assert found == [(number, os.getpid()) for number in items]
    assert "40/40 numbers, " in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 3])
def test_there_are_as_many_workers_as_are_asked_for_whatever_the_cores(workers):
    with connect(workers) as client:
        assert list(client.nthreads().values()) == [1] * workers


def test_many_items_are_shared_and_come_in_order(address):
    for workers in (2, address):
        numbers, pids = zip(*run_all(pid_of, range(100), workers, what="numbers"), strict=True)
        assert numbers == tuple(range(100))
        assert len(set(pids)) == 2
        assert os.getpid() not in pids


def test_the_work_of_a_worker_that_is_lost_is_done_again(address):
    found = run_all(pid_of, range(300), address, what="numbers")
    first = next(found)
    os.kill(first[1], signal.SIGKILL)
    assert [first[0], *(number for number, _ in found)] == list(range(300))


def test_what_kills_every_worker_is_named_in_a_sentence(address):
    with pytest.raises(ClusterError, match=r"died, .*: 16, 17, .*, 23; set workers to 1 to see which.*\.$"):
        list(run_all(crash_at_20, range(40), address, what="numbers"))


def test_an_error_of_the_function_is_its_own(address):
    for workers in (1, address):
        with pytest.raises(ValueError, match="20 is refused"):
            list(run_all(refuse_20, range(40), workers, what="numbers"))


def test_workers_that_cannot_be_had_are_named(monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE_S", 1.0)
    for workers in ("tcp://127.0.0.1:1", "nonsense"):
        with pytest.raises(ClusterError, match=f"workers is {workers}, where no Dask scheduler answers; start one"):
            list(run_all(pid_of, range(40), workers, what="numbers"))
    with pytest.raises(ClusterError, match="workers is -1; give a count"):
        list(run_all(pid_of, range(40), -1, what="numbers"))
    options = {"port": 0, "dashboard_address": ":0"}
    with (
        SpecCluster({}, {"cls": Scheduler, "options": options}) as empty,
        pytest.raises(ClusterError, match="has no worker; start some: dask worker tcp"),
    ):
        list(run_all(pid_of, range(40), empty.scheduler_address, what="numbers"))


def test_ranks_on_one_machine_share_its_cores(monkeypatch):
    whole = cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(4 * whole))
    assert (cores(), whole >= 1) == (1, True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_do_not_outlive_a_killed_parent():
    code = (
        "import os, time\n"
        "from mmtlib.cluster import connect\n"
        "if __name__ == '__main__':\n"
        "    with connect(1) as client:\n"
        "        print(client.submit(os.getpid).result(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()

    def alive() -> bool:
        try:
            return "\nState:\tZ" not in Path(f"/proc/{worker}/status").read_text()
        except OSError:
            return False

    deadline = time.monotonic() + 10
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive()
