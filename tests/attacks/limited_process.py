"""Calls a function on a file in a process of its own; watches time, memory and a forbidden folder; says how it went.

Time is what its processor took: on a loaded machine an innocent call takes long. One that waits for what never comes
takes none, and has a longer time by the clock.

Each call is a fork of one server that has imported the program once (multiprocessing's forkserver): a thousand calls
take seconds, not an hour.

Memory is what is resident in that process, Python included: watched from outside every few milliseconds, and the peak
asked of the kernel at the end. It is not limited by setrlimit on purpose: HDF5 reports an allocation that fails like
any other damage, so that an attempt to fill the memory would pass for an orderly refusal.

Reading outside is what the kernel says (inotify): the HDF5 library opens files in C, where Python's audit hooks see
nothing.
"""

from __future__ import annotations

import ctypes
import enum
import multiprocessing
import os
import resource
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from dpmepf.shared.errors import DpmepfError

SECONDS = 5.0  # of the processor
SECONDS_BY_THE_CLOCK = 60.0
MEMORY = 2**30  # bytes
_START_SECONDS = 120.0
_LOOK_SECONDS = 0.005
_PAGE, _TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["pytest", "click.testing", "opacus.accountants", "dpmepf.artifacts.audit_command", "dpmepf.synthesize.synthesis"]
)


class Ending(enum.StrEnum):
    """How a call ended; only the first two are in order."""

    RETURNED = "returned"
    REFUSED = "refused"
    """By an error of ours."""
    UNTYPED = "untyped exception"
    CRASH = "crash"
    HANG = "hang"
    MEMORY = "too much memory"
    OUTSIDE = "read outside"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended, and what there is to say about it."""

    ending: Ending
    error: str = ""
    """Name of the exception's type."""
    message: str = ""
    seconds: float = 0.0
    """Of the processor."""
    peak_memory: int = 0
    """Bytes."""

    @property
    def orderly(self) -> bool:
        return self.ending in (Ending.RETURNED, Ending.REFUSED)


def call_limited(function: Callable[[Path], str], path: Path, *, forbidden: Path | None = None) -> Outcome:
    """Call `function` on `path`, not touching the folder `forbidden`, with at most `MEMORY`.

    It may take `SECONDS` or `SECONDS_BY_THE_CLOCK`, whichever end first.

    `function` has to be defined at the top level of a module.
    """
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_call, args=(sender, function, path), daemon=True)
    with receiver, _opened_files(forbidden or path.parent / "nothing") as opened:
        process.start()
        sender.close()
        try:
            outcome = _watch(process, receiver)
        finally:
            process.kill()
            process.join()
            status = process.exitcode
            process.close()
        names = opened()
    if names:
        return replace(outcome, ending=Ending.OUTSIDE, message=f"opened {', '.join(sorted(names))}")
    return replace(outcome, message=f"exit status {status}") if outcome.ending is Ending.CRASH else outcome


def _call(sender: Connection, function: Callable[[Path], str], path: Path) -> None:
    """What the process does."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # should the watching process die
    warnings.simplefilter("error")
    sender.send("ready")
    began = time.process_time()
    try:
        outcome = Outcome(ending=Ending.RETURNED, message=function(path))
    except DpmepfError as error:
        outcome = Outcome(ending=Ending.REFUSED, error=type(error).__name__, message=str(error))
    except BaseException as error:  # anything else is what this is here to find
        outcome = Outcome(ending=Ending.UNTYPED, error=type(error).__name__, message=str(error))
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > MEMORY:
        outcome = replace(outcome, ending=Ending.MEMORY)
    sender.send(replace(outcome, seconds=seconds, peak_memory=peak))


def _watch(process: ForkServerProcess, receiver: Connection) -> Outcome:
    if not receiver.poll(_START_SECONDS) or receiver.recv() != "ready":
        raise RuntimeError("the process under limits did not start")
    began, spent = time.monotonic(), _processor_seconds(process.pid)
    while not receiver.poll(_LOOK_SECONDS):
        seconds, memory = _processor_seconds(process.pid) - spent, _resident(process.pid)
        if seconds > SECONDS or time.monotonic() - began > SECONDS_BY_THE_CLOCK:
            return Outcome(ending=Ending.HANG, seconds=seconds, peak_memory=memory)
        if memory > MEMORY:
            return Outcome(ending=Ending.MEMORY, seconds=seconds, peak_memory=memory)
    try:
        outcome: Outcome = receiver.recv()
    except EOFError:
        process.join()
        return Outcome(ending=Ending.CRASH)
    return outcome


def _processor_seconds(pid: int | None) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a program's name may have spaces
        return (int(fields[11]) + int(fields[12])) / _TICKS  # utime, stime
    except (OSError, IndexError):  # it has just ended
        return 0.0


def _resident(pid: int | None) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):  # it has just ended
        return 0


@contextmanager
def _opened_files(folder: Path) -> Iterator[Callable[[], set[str]]]:
    """Give a function that names what any process has opened in `folder` since."""
    if not folder.is_dir():
        yield set
        return
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "the folder cannot be watched")

    def names() -> set[str]:
        found = set()
        try:
            events = os.read(descriptor, 2**16)
        except BlockingIOError:
            return found
        while events:
            length = _EVENT.unpack_from(events)[3]
            found.add(os.fsdecode(events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")) or ".")
            events = events[_EVENT.size + length :]
        return found

    try:
        yield names
    finally:
        os.close(descriptor)
