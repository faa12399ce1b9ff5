"""Public whitening: what the activations of all images have in common counts less, and so does what varies most.

A feature vector has norm 1 however it is made, and the noise of a release is measured against that. Activations are
positive, and much alike for all images: half to three quarters of the squared norm is that of their common mean, and
much of the rest varies in few directions. Of public images both are known, so that they need not be released. What
is left differs between classes by more of the norm, which is less noise at the same ε.

One layer's activations a at C channels and P positions, u = √P·a/‖a‖, become W(u − μ), scaled to norm 1, where μ is
the mean of u's channels over public images and positions, and W = (Σ + ρI)^(−1/2) with their covariance Σ over the same
and ρ = `RIDGE` · its mean variance (zero-phase whitening; Bell and Sejnowski 1997). Since only directions matter, that
is W a − (‖a‖/√P) Wμ, scaled to norm 1. It is measured at 2×2 positions of every layer, and taken for any number:
averages over the image have a little more of the common mean left than they would by a measurement of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

RIDGE = 0.1
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def each_image_alone() -> Iterator[None]:
    """Whiten each image by a product of its own: others in the batch cannot change the order of additions.

    What is released needs that. It takes longer than one product for all (`product_of_all`).
    """
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


class Whitening(nn.Module):
    """Of one layer: buffers `matrix` (W, C×C) and `shift` (Wμ, C); identity and zero until measured."""

    matrix: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, activations: Tensor) -> Tensor:
        """Return N×C×P float32, whose directions are whitened features, of N×C×… activations of any scale and type."""
        with torch.autocast(activations.device.type, enabled=False):  # bfloat16 is too coarse for small variances
            activations = activations.float().flatten(2)
            lengths = activations.flatten(1).norm(dim=1) / math.sqrt(activations.shape[2])
            if _alone.get():
                # (W a)ᵀ = aᵀ Wᵀ, as activations lie channels last: faster.
                each = self.matrix.T.expand(len(activations), -1, -1)
                products = torch.bmm(activations.transpose(1, 2), each).transpose(1, 2)
            else:
                products = product_of_all(self.matrix, activations)
            return products - lengths[:, None, None] * self.shift[:, None]

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Learn from the activations of public images, batches of N×C×…, together at least one image.

        Where they are all zero there is nothing to learn, and all stays as it is.
        """
        channels = len(self.shift)
        count, sums = 0, torch.zeros(channels, dtype=torch.float64)
        moments = torch.zeros(channels, channels, dtype=torch.float64)
        for batch in batches:
            units = nn.functional.normalize(batch.float().flatten(1), dim=1).view(len(batch), channels, -1)
            units *= math.sqrt(units.shape[2])
            rows = channel_rows(units).double().cpu()
            count += len(rows)
            sums += rows.sum(dim=0)
            moments += rows.T @ rows
        mean = sums / count
        covariance = moments / count - torch.outer(mean, mean)
        mean_variance = covariance.diagonal().mean()
        if mean_variance <= 0:
            return
        variances, directions = torch.linalg.eigh(covariance)
        variances = variances.clamp_min(0) + RIDGE * mean_variance
        matrix = directions @ torch.diag(variances.rsqrt()) @ directions.T
        matrix /= matrix.diagonal().mean()  # any scale does, and float16 holds this one
        self.matrix.copy_(matrix)
        self.shift.copy_(matrix @ mean)


def channel_rows(activations: Tensor) -> Tensor:
    """Return N·P×C, a row for each position, of N×C×P activations."""
    return activations.transpose(1, 2).reshape(-1, activations.shape[1])


def product_of_all(matrix: Tensor, activations: Tensor) -> Tensor:
    """Return N×C×P: the C×C `matrix` times each of N×C×P activations, by one product of matrices.

    Broadcasting makes it a product for each, and for the gradient a copy of the matrix for each: several times slower.
    """
    count, channels, positions = activations.shape
    return (channel_rows(activations) @ matrix.T).view(count, positions, channels).transpose(1, 2)
