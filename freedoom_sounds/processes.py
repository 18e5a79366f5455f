"""Tasks in processes of their own: one that stalls or takes its process down with it is tried again in a new one."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from multiprocessing import get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool

from freedoom_sounds.classes import EngineError, GenerationError

STALL_SECONDS = 60.0  # that a task may take; the process is then killed
ATTEMPTS = 3  # processes that one task may bring down


def run(work: Callable[[Any], Any], tasks: Sequence[Any], *, workers: int) -> Iterator[tuple[Any, int]]:
    """Do `work`, a function that can be imported, for every task; yields (result, number of its attempt) in any order.

    However this ends (all done, an error, Ctrl-C, this process killed), the processes end, too.

    Raises what `work` raises, EngineError only in the last attempt; GenerationError where a task stalled or ended
    its process in the last attempt, too.
    """
    with ProcessPool(workers, context=get_context("spawn")) as pool:
        try:
            waiting = {pool.schedule(work, [task], timeout=STALL_SECONDS): (task, 1) for task in tasks}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    task, attempt = waiting.pop(future)
                    try:
                        yield future.result(), attempt
                    except (EngineError, ProcessExpired, TimeoutError) as error:
                        if attempt < ATTEMPTS:
                            waiting[pool.schedule(work, [task], timeout=STALL_SECONDS)] = task, attempt + 1
                        elif isinstance(error, EngineError):
                            raise
                        else:
                            text = f"{task}: the engine stalled or ended {ATTEMPTS} times; see its output above"
                            raise GenerationError(text) from error
        except BaseException:
            pool.stop()
            raise
