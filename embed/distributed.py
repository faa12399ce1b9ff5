"""Several processes, started by `torchrun`, make one release. Untrusted transport: what is merged, the core checks.

Every process embeds a share of the images. Their exact sums go to the first process, which alone asks the register,
draws noise and writes. The sums are private and not encrypted on their way: between machines, that network has to be
trusted. Where all processes are on one machine they meet on its loopback interface.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON
from dpmepf.embed.summing import ClassSums, PartialSums
from dpmepf.shared import processes
from dpmepf.shared.processes import FirstProcessLostError, LaunchedProcesses, ProcessesError

NOTHING = "nothing was released"


class Processes(LaunchedProcesses):
    """The processes of one release, at least 2; the first releases."""

    def share(self, owners: npt.NDArray[np.int64]) -> slice:
        """Which of N images are this process's: about N / count in a row, all or none of an owner's.

        owners: int64 [N] that never fall: whose image each is. The shares of all processes follow each other.
        """
        return slice(self._cut(owners, self.rank), self._cut(owners, self.rank + 1))

    def _cut(self, owners: npt.NDArray[np.int64], rank: int) -> int:
        place = len(owners) * rank // self.count
        return place if place == len(owners) else int(np.searchsorted(owners, owners[place]))

    def require_same(self, fingerprint: bytes) -> None:
        """Stop unless all processes pass the same 32 bytes, `run_fingerprint`."""
        self._require(
            fingerprint,
            "do not see the same images, persons, encoder or options, so that nothing was released: start them with "
            "the same command and versions, on the same files",
        )

    def require_same_features(self, probe: bytes) -> None:
        """Stop unless the encoder makes the same of public images in all processes: 32 bytes, a hash of all bits.

        A record more may move another's image from one process to the next.
        """
        self._require(
            probe,
            "compute other features of the same images, so that nothing was released: start them on processors or GPUs "
            "of one kind, with as many threads each, or one process alone",
        )

    def _require(self, own: bytes, otherwise: str) -> None:
        with processes.losses_said_plainly(NOTHING):
            same = self.same(own)
        if not same:
            raise ProcessesError(f"the processes of this run {otherwise}")

    def hand_over(self, sums: ClassSums) -> None:
        """Give `sums` to the first process, and wait until it has those of all processes.

        From then on it is the first that answers Ctrl-C and torchrun: it alone knows what was released.
        """
        import torch.distributed as dist

        part = sums.hand_over(process=self.rank)
        first, last = part.persons or (0, -1)
        header = [part.process, part.non_negative, part.unit_of_privacy == ONE_PERSON, part.images, first, last]
        with processes.losses_said_plainly(NOTHING):
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
            with processes.losses_said_plainly(NOTHING):
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
        with processes.losses_said_plainly(NOTHING):
            for rank in range(1, self.count):
                dist.send(torch.zeros(1), rank)


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes that torchrun started: `dpmepf.shared.processes.joined`, for a release."""
    with processes.joined(nothing=NOTHING, not_again="a release that was charged would be made again"):
        yield
