"""Many clips or runs at once: by processes of this machine, or by the workers of a Dask scheduler on any others.

A number of workers starts a Dask cluster of so many processes here; an address ("tcp://host:8786") joins one that is
running, whose workers must have this package installed and see the same files under the same names.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from distributed import Client

_CHUNK = 8  # items of a task: few enough to balance, enough to hide what a task costs
_AHEAD = 4  # tasks asked for ahead of the results, for each thread of the workers
_PATIENCE_S = 30.0  # for a scheduler to answer, and for its first worker
_REPORT_S = 10.0

T, R = TypeVar("T"), TypeVar("R")


class ClusterError(RuntimeError):
    """Workers that cannot be had, or that die of their work; one sentence with the remedy."""


def cores() -> int:
    """Cores for this process; of several that share this machine (LOCAL_WORLD_SIZE, as torchrun sets it) its part."""
    from dask.system import cpu_count  # knows its affinity and a container's quota; slow to import

    return max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextmanager
def connect(workers: int | str) -> Iterator[Client]:
    """A client of `workers` new processes with a thread each (0: one for each core), or of the scheduler they name.

    The processes end with this one, even where it is killed. Raises ClusterError for a number below 0, and for an
    address at which there is no scheduler or none with a worker.
    """
    import dask.config  # slow to import, as are the next
    from distributed import Client, LocalCluster
    from distributed.comm.addressing import get_address_host_port

    if isinstance(workers, int):
        if workers < 0:
            raise ClusterError(f"workers is {workers}; give a count, 0 for one a core, or a scheduler's address.")
        multiprocessing.Lock()  # fails without /dev/shm, as Dask does, but Dask tells of it in pages
        # A worker may decode in processes of its own; memory is the system's to watch.
        # Dask has workers give freed memory back at once (MALLOC_TRIM_THRESHOLD_), which doubles the time of training.
        environment = {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1}
        settings = {"distributed.worker.daemon": False, "distributed.nanny.pre-spawn-environ": environment}
        with dask.config.set(settings):
            options = dict(threads_per_worker=1, memory_limit=None, dashboard_address=":0")
            here = LocalCluster(n_workers=workers or cores(), **options)
        with here, Client(here, set_as_default=False) as client:
            yield client
        return
    try:
        socket.create_connection(get_address_host_port(workers), _PATIENCE_S).close()
    except (OSError, ValueError) as error:
        told = "where no Dask scheduler answers; start one (`dask scheduler`) or give a number"
        raise ClusterError(f"workers is {workers}, {told}.") from error
    with Client(workers, set_as_default=False) as client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_S)
        except TimeoutError as error:
            remedy = f"dask worker {workers} --nthreads 1"
            raise ClusterError(f"The Dask scheduler {workers} has no worker; start some: {remedy}.") from error
        yield client


def run_all(function: Callable[[T], R], items: Sequence[T], workers: int | str, *, what: str) -> Iterator[R]:
    """function(item) of each item, in order, by `workers` as `connect` takes them; prints every ten seconds how far.

    The work of a worker that is lost is done again by others. One worker, or a handful of items, needs no second
    process. Raises ClusterError as `connect` does, and where some items end every worker that tries them.
    """
    if isinstance(workers, int):
        workers = min(workers or cores(), -(-len(items) // _CHUNK))
    alone = workers == 1 or not items
    with nullcontext() if alone else connect(workers) as client:
        results = map(function, items) if alone else spread(client, function, items)
        begin = last = time.monotonic()
        for count, result in enumerate(results, start=1):
            now = time.monotonic()
            if now - last >= _REPORT_S or count == len(items):
                last = now
                print(f"{count}/{len(items)} {what}, {count / max(now - begin, 1e-9):.0f} a second", flush=True)
            yield result


def spread(client: Client, function: Callable[[T], R], items: Sequence[T], chunk: int = _CHUNK) -> Iterator[R]:
    """function(item) of each item, in order, by a client's workers, `chunk` items at a time."""
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    parts = (items[first : first + chunk] for first in range(0, len(items), chunk))
    asked = ((part, client.submit(lambda items: [function(x) for x in items], part, pure=False)) for part in parts)
    for part, future in ahead(asked, lambda: _AHEAD * sum(client.nthreads().values())):
        try:
            results = future.result()
        except KilledWorker as error:
            names = ", ".join(str(getattr(item, "path", item)) for item in part)
            raise ClusterError(
                "Every process that worked on these died, of too little memory or of a file that crashes the decoder: "
                f"{names}; set workers to 1 to see which, and drop its row."
            ) from error
        except FutureCancelledError as error:
            raise ClusterError("The Dask scheduler went away; start it and run this again.") from error
        yield from results


def ahead(asked: Iterable[T], most: Callable[[], int]) -> Iterator[T]:
    """What is asked for, in order, `most()` items ahead of the caller: no more than these are held in memory."""
    waiting: deque[T] = deque()
    for item in asked:
        waiting.append(item)
        if len(waiting) > most():
            yield waiting.popleft()
    yield from waiting
