"""Work on ranges of a source in other processes, answers in order.

The answer does not depend on the number of processes: a range is always the same piece of work. A process imports no
torch, so that it starts fast and stays small. Every start method works (fork, forkserver, spawn). A process that dies
ends the iteration with one sentence; Ctrl-C is left to the main process; when that is gone, its workers go too.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from dpmepf.shared.allocator import overwrite_freed_memory
from dpmepf.shared.errors import UsageError
from dpmepf.shared.image_errors import WorkerDiedError
from dpmepf.shared.image_source_types import ImageSource

T = TypeVar("T")

_MOST_DEFAULT_WORKERS = 16
_RANGES_AHEAD = 6  # per worker; what the consumer may find ready
_NICENESS = 10

# Set in a worker process only.
_work: tuple[Callable[[ImageSource, int, int], Any], ImageSource] | None = None
_abandoned: ctypes.c_bool | None = None  # shared with the main process


class AbandonedError(Exception):
    """Nobody waits for this range any more."""


def go_on() -> None:
    """Called between the images of a range. Raises AbandonedError in a worker whose iteration was left."""
    if _abandoned is not None and _abandoned.value:
        raise AbandonedError


def own_cores() -> int:
    """Cores that this process may use: its part of them where torchrun started several on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    return max(1, cores // processes)


def usable_cores() -> int:
    """Cores for worker processes: this process's own, at most 16."""
    return min(own_cores(), _MOST_DEFAULT_WORKERS)


def map_ranges(
    function: Callable[[ImageSource, int, int], T],
    source: ImageSource,
    ranges: Iterable[tuple[int, int]],
    *,
    workers: int,
    give_way: bool = False,
) -> Generator[T, None, None]:
    """Yield `function(source, start, stop)` for each of `ranges`, in order.

    Args:
        function: picklable (a module's function or a partial of one), as its answer.
        source: read by every worker for itself.
        ranges: pairs (start, stop).
        workers: number of processes; 0 works here.
        give_way: to whatever else needs the cores, as an encoder that runs on them.

    Raises:
        WorkerDiedError: a process was killed or could not start.
    """
    if workers < 0:
        raise UsageError(f"--workers {workers} is not allowed: it is 0 or more")
    if workers == 0:
        for start, stop in ranges:
            yield function(source, start, stop)
        return
    abandoned = multiprocessing.RawValue(ctypes.c_bool, False)
    others = multiprocessing.active_children()  # of whoever called
    executor = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(function, source, give_way, abandoned))
    pending: deque[Future[T]] = deque()
    try:
        for start, stop in ranges:
            pending.append(executor.submit(_run, start, stop))
            if len(pending) > _RANGES_AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise WorkerDiedError(
            "a process that decodes images stopped (often because memory is short): use fewer --workers; --workers 0 "
            "decodes in the main process"
        ) from None
    except KeyboardInterrupt:
        _kill_workers(others)
        raise
    finally:
        abandoned.value = True
        try:
            executor.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:  # an image is too large to wait for, or a network stands still
            _kill_workers(others)
            raise
        except RuntimeError:  # interrupted before it had begun, which is being raised
            _kill_workers(others)


def _kill_workers(others: Sequence[BaseProcess]) -> None:
    """An interrupted executor may wait for its workers for ever; `others` were there before."""
    for worker in multiprocessing.active_children():
        if worker not in others:
            worker.kill()


def _start_worker(
    function: Callable[[ImageSource, int, int], Any], source: ImageSource, give_way: bool, abandoned: ctypes.c_bool
) -> None:
    global _work, _abandoned
    _work, _abandoned = (function, source), abandoned
    overwrite_freed_memory()
    if give_way:
        with contextlib.suppress(OSError, AttributeError):  # a sandbox may forbid it, and not every platform has it
            os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the main process makes of it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(start: int, stop: int) -> Any:
    if _work is None:
        raise RuntimeError("a worker ran before it was started")
    go_on()
    function, source = _work
    return function(source, start, stop)
