"""Several processes train one generator on the batches of one: each has a share of the images, and sums are of all.

Every process draws the same latent vectors and classes from the same seed, and sends its share of them through the
generator and the encoder. Only sums over images cross: of features and of what the metric learns from, of the
generator's batch norm (`batch_norm`), and of gradients. Each process then moves its own copy of the weights by the same
bits.

torch's DistributedDataParallel would only sum the gradients, and divide them by the number of processes for a loss that
is a mean over images; ours is not, and the division would have to be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpmepf.shared.processes import LaunchedProcesses, ProcessesError, losses_said_plainly

LOST = "the training stopped"


class TrainingProcesses(LaunchedProcesses):
    """The processes that train one generator; of a single one (`ALONE`), every method leaves all as it is.

    Each method but `share` and `device` waits for the others, which have to call it too.

    Raises:
        ProcessesError: another process ended.
    """

    def share(self, count: int) -> slice:
        """Which of `count` rows are this process's: equally many in each, or one more; all together, every row once."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating-point tensors, of the same shapes everywhere, by their sums: the same bits in all."""
        self._replace(tensors, _all_reduce)

    def take_from_first_(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating-point tensors, of the same shapes everywhere, by those of the first process."""
        self._replace(tensors, _broadcast)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        flags = torch.tensor([float(flag)])
        self.sum_([flags])
        return bool(flags > 0)

    def wait_for_first(self) -> None:
        """Wait until the first process is here; that one goes on at once."""
        self.take_from_first_([torch.zeros(1)])

    def require_same(self, fingerprint: bytes) -> None:
        """Stop unless all processes pass the same bytes."""
        if self.count == 1:
            return
        with losses_said_plainly("nothing was written"):
            same = self.same(fingerprint)
        if not same:
            raise ProcessesError(
                "the processes of this run do not see the same artifact, settings, checkpoint or kind of device: start "
                "them with the same command and versions, on the same files"
            )

    @torch.no_grad()
    def _replace(self, tensors: Sequence[Tensor], collective: Callable[[Tensor], None]) -> None:
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with losses_said_plainly(LOST):
            collective(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


ALONE = TrainingProcesses(rank=0, count=1, local_rank=0)


def _all_reduce(flat: Tensor) -> None:
    torch.distributed.all_reduce(flat)


def _broadcast(flat: Tensor) -> None:
    torch.distributed.broadcast(flat, src=0)
