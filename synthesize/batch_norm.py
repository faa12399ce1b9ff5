"""Batch norm over the images of all processes that train a generator, on any device.

torch's own, SyncBatchNorm, is for GPUs alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpmepf.synthesize.parallel import ALONE, TrainingProcesses


class WholeBatchNorm(nn.BatchNorm2d):
    """Batch norm without gain and bias, whose statistics in training are those of the images of all `processes`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.processes = ALONE

    def forward(self, x: Tensor) -> Tensor:
        """Return N×C×H×W images of this process, of which the number may differ between processes, normalised."""
        if self.processes.count == 1 or not self.training:
            return super().forward(x)
        images = x.float()
        pixels = images.new_tensor([images[:, 0].numel()])
        sums = _SumOver.of(self.processes, torch.cat([images.sum(dim=(0, 2, 3)), pixels]))  # C + 1
        mean, count = sums[:-1] / sums[-1], sums[-1]
        deviations = images - mean[:, None, None]
        squares = _SumOver.of(self.processes, deviations.square().sum(dim=(0, 2, 3)))  # C
        self._remember(mean, squares / (count - 1))
        return (deviations * (squares / count + self.eps).rsqrt()[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch's batch norm does."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def share_batch_norm(module: nn.Module, processes: TrainingProcesses) -> None:
    """Let the batch norms in `module` normalise over the images of all `processes`."""
    for part in module.modules():
        if isinstance(part, WholeBatchNorm):
            part.processes = processes


class _SumOver(torch.autograd.Function):
    """Sum over processes. What each makes of it adds to the loss, so that its gradient is a sum over processes too.

    As torch.distributed.nn.functional.all_reduce, which is deprecated without a public successor.
    """

    @classmethod
    def of(cls, processes: TrainingProcesses, tensor: Tensor) -> Tensor:
        total: Tensor = cls.apply(processes, tensor)
        return total

    @staticmethod
    def forward(context: Any, processes: TrainingProcesses, tensor: Tensor) -> Tensor:
        context.processes = processes
        total = tensor.clone()
        processes.sum_([total])
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, Tensor]:
        total = gradient.clone()
        context.processes.sum_([total])
        return None, total
