"""In which metric mean features are compared: relative to how much images of one class vary.

In the Euclidean distance a few directions, along which all images vary much, drown the many in which classes differ.
The within-class (Mahalanobis) metric of linear discriminant analysis divides every direction by its variance within
classes: A = (S + ρI)⁻¹ for each layer, where S is the covariance of its channels within classes, pooled over classes
and positions and measured on the generated images themselves, and ρ = ridge · (mean variance) + (variance of the
released noise), so that directions which the noise hides count less.

Only the release and generated images enter: post-processing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpmepf.shared.feature_map import Segment
from dpmepf.shared.whitening import channel_rows, product_of_all

MEMORY = 0.95  # share of the previous covariance in the next
FIRST_INVERSIONS = 5  # at each of the first steps, and then
INVERT_EVERY = 20  # steps
ROUNDING = 1e-5  # of a mean square: what float32 sums of squares cannot tell from 0, and must not be divided by
SMALLEST_RIDGE = 1e-12


class WithinClassMetric:
    """A running estimate of A; Euclidean until the first `learn`.

    Args:
        segments: parts of a feature vector.
        ridge: ρ as a share of the mean variance, > 0; the larger, the closer to Euclidean.
        noise_variance: of one coordinate of a released mean.
    """

    def __init__(self, segments: Sequence[Segment], *, ridge: float, noise_variance: float) -> None:
        self.segments = tuple(segments)
        self.ridge = ridge
        self.noise_variance = noise_variance
        self.covariances: list[Tensor] = []
        self.inverses: list[Tensor] = []
        self.steps = 0

    def second_moments(self, features: Tensor) -> list[Tensor]:
        """Sums over rows of N×D `features` and positions of f fᵀ: channels×channels for each segment."""
        with _float32(features):
            return [rows.T @ rows for rows in map(channel_rows, self._parts(features))]

    def learn(self, second_moments: list[Tensor], means: Tensor, per_class: int) -> None:
        """Take in a batch: its summed second moments and its class means (classes×D), `per_class` images of each."""
        degrees_of_freedom = len(means) * (per_class - 1)
        if degrees_of_freedom < 1:
            return
        of_means = self.second_moments(means)
        batch = [
            (moment - per_class * of_mean) / (degrees_of_freedom * segment.positions)
            + _rounding_error(of_mean / (len(means) * segment.positions))
            for segment, moment, of_mean in zip(self.segments, second_moments, of_means, strict=True)
        ]
        if self.covariances:
            batch = [torch.lerp(new, old, MEMORY) for new, old in zip(batch, self.covariances, strict=True)]
        self.covariances = batch
        if self.steps < FIRST_INVERSIONS or self.steps % INVERT_EVERY == 0:
            self.inverses = self._inverses()
        self.steps += 1

    def apply(self, vectors: Tensor) -> Tensor:
        """N×D vectors times A, whose scale makes the mean squared deviation within classes 1."""
        if not self.inverses:
            return vectors
        parts = zip(self.inverses, self._parts(vectors), strict=True)
        with _float32(vectors):
            return torch.cat([product_of_all(inverse, part).flatten(1) for inverse, part in parts], dim=1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "covariances": self.covariances,
            "inverses": self.inverses,
            "steps": self.steps,
            "noise_variance": self.noise_variance,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.covariances = [covariance.to(device) for covariance in state["covariances"]]
        self.inverses = [inverse.to(device) for inverse in state["inverses"]]
        self.steps = int(state["steps"])
        self.noise_variance = float(state["noise_variance"])

    def _parts(self, vectors: Tensor) -> list[Tensor]:
        return [segment.of(vectors) for segment in self.segments]  # N x channels x positions

    def _inverses(self) -> list[Tensor]:
        inverses, deviation = [], 0.0
        for segment, covariance in zip(self.segments, self.covariances, strict=True):
            mean_variance = float(covariance.diagonal().mean())
            ridge = max(self.ridge * mean_variance + self.noise_variance, SMALLEST_RIDGE)
            identity = torch.eye(segment.channels, device=covariance.device)
            factor, failed = torch.linalg.cholesky_ex(covariance + ridge * identity)
            if failed:  # features are not finite, which the loss will show
                return self.inverses
            inverse = torch.cholesky_inverse(factor)
            inverses.append(inverse)
            deviation += float((inverse * covariance).sum()) * segment.positions
        return [inverse / deviation for inverse in inverses] if deviation > 0 else []


def _rounding_error(mean_square: Tensor) -> Tensor:
    return ROUNDING * mean_square.diagonal().mean() * torch.eye(len(mean_square), device=mean_square.device)


def _float32(tensor: Tensor) -> torch.autocast:
    """Suspend the training step's bfloat16, whose rounding exceeds the variances that are left after subtraction."""
    return torch.autocast(tensor.device.type, enabled=False)
