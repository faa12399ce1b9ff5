"""Several processes, started by `torchrun`, do one piece of work: they meet, and one of them speaks.

What crosses between them is not encrypted: between machines, that network has to be trusted. Where all processes are on
one machine they meet on its loopback interface.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, Self

import click
import torch

from dpmepf.shared.console import console
from dpmepf.shared.devices import choose_device
from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.image_workers import own_cores

# A process that ends is noticed at once, whatever it was doing: its connections close, and torchrun stops the others.
# This is for machines that vanish, and longer than the first may have to wait for the slowest.
LONGEST_WAIT = timedelta(hours=6)
SECONDS_TO_SPEAK = 10  # for the first of several processes, before torchrun stops it
_LOOPBACK = "lo"


class ProcessesError(DpmepfError):
    """Another process of the run ended, or they do not work on the same."""


class FirstProcessLostError(ProcessesError):
    """The first process has what the others did and cannot be reached: it alone knows, and says, what it did."""


class StoppedByLauncherError(KeyboardInterrupt):
    """torchrun stops a process because another one failed. As Ctrl-C, nothing on the way may take it for an error."""

    def __init__(self) -> None:
        super().__init__("another process of this run failed or was stopped")


@dataclass(frozen=True, kw_only=True)
class LaunchedProcesses:
    """The processes of this run, as this one sees them; where they are several, they have been joined (`joined`)."""

    rank: int  # of this process, from 0
    count: int
    local_rank: int  # of this process, among those on this machine

    @classmethod
    def of_torchrun(cls) -> Self | None:
        """The processes that torchrun started together with this one; None if this one works alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not os.environ.keys() >= {"TORCHELASTIC_RUN_ID", *names} or os.environ["WORLD_SIZE"] == "1":
            return None
        rank, count, local_rank = (int(os.environ[name]) for name in names)
        return cls(rank=rank, count=count, local_rank=local_rank)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device called `name`; each of several processes on a machine takes a GPU of its own.

        Raises:
            UsageError: there is no such device here, or not one for each process.
        """
        device = choose_device(name)
        if self.count == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise UsageError(f"--device {name} is for one process: with --device cuda each of several takes its own")
        if self.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"this machine has {torch.cuda.device_count()} GPUs, and each process takes one: start no more on it, "
                "or choose --device cpu"
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)  # nccl's, too
        return device

    def same(self, fingerprint: bytes) -> bool:
        """Whether all processes pass the same bytes, equally many.

        Raises: RuntimeError if one cannot be reached (`losses_said_plainly`).
        """
        import torch.distributed as dist

        own = torch.frombuffer(bytearray(fingerprint), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(every, own)
        return all(torch.equal(other, own) for other in every)


def started_again_on_failure() -> bool:
    """Whether torchrun would start this program again by itself, and what it did would be done twice."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


class SpeakingOnce(click.Command):
    """Of several processes that cannot read their options, the first says so."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            processes = LaunchedProcesses.of_torchrun()
            if processes is None or processes.first:
                raise
            time.sleep(SECONDS_TO_SPEAK)
            raise click.exceptions.Exit(error.exit_code) from None


@contextmanager
def joined(*, nothing: str, not_again: str, backend: str = "gloo") -> Iterator[None]:
    """Connect the processes that torchrun started, if it did, and let one of them speak: the first, or who fails first.

    Args:
        nothing: what a process that ends so early leaves undone, a clause of the message.
        not_again: why torchrun may not start the run again by itself, a clause of the message.
        backend: torch.distributed's.

    Raises: ProcessesError if another one ended; UsageError if torchrun would start the run again by itself.
    """
    processes = LaunchedProcesses.of_torchrun()
    console.quiet = processes is not None and not processes.first
    if started_again_on_failure():
        raise UsageError(f"torchrun --max-restarts is not allowed: {not_again}")
    if processes is None:
        yield
        return
    import torch.distributed as dist

    # torch.optim imports this, and its functions keep the group there is when they are defined, as a default argument:
    # after that, no threads of gloo's would end before the interpreter, which then aborts now and then.
    import torch.distributed.nn  # noqa: F401

    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"] and _has_loopback():
        os.environ["GLOO_SOCKET_IFNAME"] = _LOOPBACK
    with losses_said_plainly(nothing):
        store, rank, count = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST_WAIT)
    _use_cores()
    signal.signal(signal.SIGTERM, _stopped_by_launcher)  # from now on there is something to say
    try:
        yield
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        console.quiet = isinstance(error, FirstProcessLostError) or not _fails_first(store)
        if isinstance(error, StoppedByLauncherError):  # where nobody on the way said what became of the run
            raise ProcessesError(str(error)) from None
        raise
    finally:
        dist.destroy_process_group()


def _use_cores() -> None:
    """Compute on this process's part of the cores; torchrun says one, unless somebody has set another number."""
    if os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(own_cores())


@contextmanager
def losses_said_plainly(consequence: str) -> Iterator[None]:
    """Around collectives, whose own errors are of sockets: raise ProcessesError, with `consequence` as last clause."""
    try:
        yield
    except RuntimeError:
        raise ProcessesError(f"another process of this run ended or cannot be reached: {consequence}") from None


def _fails_first(store: torch.distributed.Store) -> bool:
    try:
        return store.add("dpmepf/failures", 1) == 1
    except RuntimeError:  # torchrun is gone
        return True


def _stopped_by_launcher(*_: object) -> NoReturn:
    # A scheduler's signal may follow torchrun's: it would cut off what is said.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise StoppedByLauncherError


def _has_loopback() -> bool:
    return _LOOPBACK in {name for _, name in socket.if_nameindex()}
