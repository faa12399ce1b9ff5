"""Several processes, started by `torchrun`, make one release. Untrusted transport: what is merged, the core checks.

Every process embeds a share of the images. Their exact sums go to the first process, which alone asks the register,
draws noise and writes. The sums are private and not encrypted on their way: between machines, that network has to be
trusted. Where all processes are on one machine they meet on its loopback interface.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch

from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON
from dpmepf.embed.summing import ClassSums, PartialSums
from dpmepf.shared.console import console
from dpmepf.shared.errors import DpmepfError, UsageError

# A process that ends is noticed at once, whatever it was doing: its connections close, and torchrun stops the others.
# This is for machines that vanish, and longer than the first may have to wait for the slowest.
LONGEST_WAIT = timedelta(hours=6)
_LOOPBACK = "lo"


class ProcessesError(DpmepfError):
    """Another process of the run ended, or they do not work on the same."""


class FirstProcessLostError(ProcessesError):
    """The process that releases has the sums and cannot be reached: it alone knows, and says, what it did."""


class StoppedByLauncherError(KeyboardInterrupt):
    """torchrun stops a process because another one failed. As Ctrl-C, nothing on the way may take it for an error."""

    def __init__(self) -> None:
        super().__init__("another process of this run failed or was stopped")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of this run, as this one sees them; they have been joined (`joined`)."""

    rank: int  # of this process, from 0
    count: int  # at least 2
    local_rank: int  # of this process, among those on this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that releases."""
        return self.rank == 0

    def share(self, owners: npt.NDArray[np.int64]) -> slice:
        """Which of N images are this process's: about N / count in a row, all or none of an owner's.

        owners: int64 [N] that never fall: whose image each is. The shares of all processes follow each other.
        """
        return slice(self._cut(owners, self.rank), self._cut(owners, self.rank + 1))

    def _cut(self, owners: npt.NDArray[np.int64], rank: int) -> int:
        place = len(owners) * rank // self.count
        return place if place == len(owners) else int(np.searchsorted(owners, owners[place]))

    def require_same(self, fingerprint: bytes) -> None:
        """Stop unless all processes pass the same 32 bytes."""
        import torch.distributed as dist

        own = torch.frombuffer(bytearray(fingerprint), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.count)]
        with _losses_said_plainly():
            dist.all_gather(every, own)
        if not all(torch.equal(other, own) for other in every):
            raise ProcessesError(
                "the processes of this run do not see the same images, persons, encoder or options, so that nothing "
                "was released: start them with the same command and versions, on the same files"
            )

    def hand_over(self, sums: ClassSums) -> None:
        """Give `sums` to the first process, and wait until it has those of all processes.

        From then on it is the first that answers Ctrl-C and torchrun: it alone knows what was released.
        """
        import torch.distributed as dist

        part = sums.hand_over(process=self.rank)
        first, last = part.persons or (0, -1)
        header = [part.process, part.non_negative, part.unit_of_privacy == ONE_PERSON, part.images, first, last]
        with _losses_said_plainly():
            dist.send(torch.tensor(header, dtype=torch.int64), 0)
            dist.send(torch.from_numpy(part.totals), 0)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            dist.recv(torch.empty(1), 0)
        except RuntimeError:
            raise FirstProcessLostError("the first process of this run cannot be reached: see what it says") from None

    def collect(self, sums: ClassSums) -> None:
        """Merge into `sums`, of the first process, those of all others, and let these end.

        Raises: ProcessesError unless all have handed theirs over; SummingError for sums that do not fit.
        """
        import torch.distributed as dist

        for rank in range(1, self.count):
            header = torch.empty(6, dtype=torch.int64)
            totals = torch.empty((sums.class_count, sums.dimension + 1), dtype=torch.int64)
            with _losses_said_plainly():
                dist.recv(header, rank)
                dist.recv(totals, rank)
            process, non_negative, by_person, images, first, last = header.tolist()
            if process != rank:
                raise ProcessesError("sums came from another process than they say, so that nothing was released")
            sums.merge(
                PartialSums(
                    process=rank,
                    non_negative=bool(non_negative),
                    unit_of_privacy=ONE_PERSON if by_person else ONE_IMAGE,
                    images=images,
                    persons=(first, last) if first <= last else None,
                    totals=totals.numpy(),
                )
            )
        with _losses_said_plainly():
            for rank in range(1, self.count):
                dist.send(torch.zeros(1), rank)


def launched_processes() -> Processes | None:
    """The processes that torchrun started together with this one; None if this one works alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not os.environ.keys() >= {"TORCHELASTIC_RUN_ID", *names} or os.environ["WORLD_SIZE"] == "1":
        return None
    rank, count, local_rank = (int(os.environ[name]) for name in names)
    return Processes(rank=rank, count=count, local_rank=local_rank)


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes that torchrun started, if it did, and let one of them speak: the first, or who fails first.

    Raises: ProcessesError if another one ended; UsageError if torchrun would start the run again by itself.
    """
    processes = launched_processes()
    console.quiet = processes is not None and not processes.first
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise UsageError("torchrun --max-restarts is not allowed: a release that was charged would be made again")
    if processes is None:
        yield
        return
    import torch.distributed as dist

    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"] and _has_loopback():
        os.environ["GLOO_SOCKET_IFNAME"] = _LOOPBACK
    with _losses_said_plainly():
        store, rank, count = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=LONGEST_WAIT)
    signal.signal(signal.SIGTERM, _stopped_by_launcher)  # from now on there is something to say
    try:
        yield
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        console.quiet = isinstance(error, FirstProcessLostError) or not _fails_first(store)
        if isinstance(error, StoppedByLauncherError):  # outside of `stopping_plainly`, which says what was released
            raise ProcessesError(str(error)) from None
        raise
    finally:
        dist.destroy_process_group()


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


@contextmanager
def _losses_said_plainly() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # gloo's own text is of sockets
        raise ProcessesError("another process of this run ended or cannot be reached: nothing was released") from None
