"""What the generator has to match: each class's mean features, estimated from the noisy sums and noisy counts.

Everything here is post-processing of the release and costs no privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dpmepf.shared.errors import DpmepfError

if TYPE_CHECKING:
    from dpmepf.artifacts.artifact import Artifact

# How much the length of a class's mean features differs from the average length over classes at least, as a share.
LEAST_LENGTH_SPREAD = 0.05


@dataclass(frozen=True, kw_only=True)
class ClassTargets:
    """Noisy mean features of each class.

    Fields:
        means: float32 K×D, noisy feature sums divided by `counts`.
        counts: float64 K, estimated number of records, positive.
        noise_variance: float64 K, variance of the noise in each coordinate of the class's row of `means`.
    """

    means: Tensor
    counts: np.ndarray
    noise_variance: np.ndarray

    def __post_init__(self) -> None:
        class_count = self.means.shape[0]
        if self.counts.shape != (class_count,) or self.noise_variance.shape != (class_count,):
            raise ValueError(f"{class_count} rows of means need as many counts and variances")
        if not bool(torch.isfinite(self.means).all()) or not (self.counts > 0).all():
            raise DpmepfError("the artifact's mean features are not finite: it is damaged, ask for it again")

    @property
    def class_weights(self) -> np.ndarray:
        """Weight of each class in the objective, float64 K, mean 1: smaller where its mean is mostly noise.

        The squared length of a mean of features is at most 1, that of its noise D·variance; 1/(1 + noise) leaves
        well-known classes alone and keeps an almost empty class from steering the parameters that all classes share.
        """
        weights = 1.0 / (1.0 + self.means.shape[1] * self.noise_variance)
        return weights / weights.mean()

    @property
    def relative_noise(self) -> float:
        """Typical length of the noise in a class's mean over that of what classes differ by; inf where that is hidden.

        The squared distance of a released mean from the centre of all is on average what classes differ by and what
        noise adds. A single class differs from no other, so it is inf there, too.
        """
        noise = self.means.shape[1] * self.noise_variance
        weights = self.class_weights / len(noise)
        centre = torch.from_numpy(weights).float() @ self.means
        distances = (self.means - centre).square().sum(dim=1).double().numpy()
        differences = distances - (1 - 2 * weights) * noise - (weights**2 * noise).sum()
        difference = float(np.median(differences))
        return math.sqrt(float(np.median(noise)) / difference) if difference > 0 else math.inf


def class_targets(artifact: Artifact) -> ClassTargets:
    """Return the class means that `artifact` tells of, usable however few records a class has."""
    sums = artifact.feature_sums()
    counts = estimated_counts(
        sums,
        artifact.counts(),
        noise_std_features=artifact.noise_std_features,
        noise_std_counts=artifact.noise_std_counts,
    )
    return ClassTargets(
        means=torch.from_numpy((sums / counts[:, None]).astype(np.float32)),
        counts=counts,
        noise_variance=(artifact.noise_std_features / counts) ** 2,
    )


def class_sizes(artifact: Artifact) -> np.ndarray:
    """Return the number of records of each class, as far as `artifact` tells: float64 K, possibly negative.

    Each class has an estimate of its own (`_size_estimates`). Where these differ by no more than their errors explain,
    they are shrunk towards their mean, so that noise alone does not make classes large, small or empty.
    """
    estimates, precisions = _size_estimates(
        artifact.feature_sums(),
        artifact.counts(),
        noise_std_features=artifact.noise_std_features,
        noise_std_counts=artifact.noise_std_counts,
    )
    if len(estimates) == 1:
        return estimates
    between = _variance_between(estimates, precisions)
    mean = np.average(estimates, weights=1.0 / (between + 1.0 / precisions))
    return mean + between / (between + 1.0 / precisions) * (estimates - mean)


def length_in_common(artifact: Artifact) -> float | None:
    """Return how long the mean features of all images are: 1 if all have the same, near 0 if nothing in common.

    None where the noise in that mean is expected to be as long as the mean can be.
    """
    sums, records = artifact.feature_sums(), float(artifact.counts().sum())
    noise_std = artifact.noise_std_features * math.sqrt(len(sums))  # of the sum over all classes
    if records <= noise_std * math.sqrt(sums.shape[1]):
        return None
    return min(float(_lengths_without_noise(sums.sum(axis=0, keepdims=True), noise_std)[0]) / records, 1.0)


def estimated_counts(
    sums: np.ndarray, noisy_counts: np.ndarray, *, noise_std_features: float, noise_std_counts: float
) -> np.ndarray:
    """Return a positive estimate of each class's number of records from its noisy sum and its noisy count.

    Features have norm at most 1, so no count is below the length of the sum; and none is below the noise of a count,
    so that an empty class's mean is bounded noise. Else it is that of `_size_estimates`, which see for the arguments.

    Returns:
        float64 K, at least 1.
    """
    estimates, _ = _size_estimates(
        sums, noisy_counts, noise_std_features=noise_std_features, noise_std_counts=noise_std_counts
    )
    lengths = _lengths_without_noise(sums, noise_std_features)
    return np.maximum.reduce([estimates, lengths, np.full_like(estimates, max(noise_std_counts, 1.0))])


def _lengths_without_noise(sums: np.ndarray, noise_std_features: float) -> np.ndarray:
    squared = (sums**2).sum(axis=1) - sums.shape[1] * noise_std_features**2
    return np.sqrt(np.maximum(squared, 0.0))


def _size_estimates(
    sums: np.ndarray, noisy_counts: np.ndarray, *, noise_std_features: float, noise_std_counts: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return an estimate of each class's number of records, and its precision, the reciprocal of its variance.

    The length of a class's feature sum, which the noise hardly hides, is its count times the length of its mean
    features, and that length is similar for every class: how similar, the classes tell (`_length_spread`). So each
    count is estimated twice, from the noisy count and from the length, and the two are averaged by their precision:
    with thousands of records the noisy count decides, with a hundred or fewer the length does.

    Args:
        sums: float64 K×D, noisy feature sums.
        noisy_counts: float64 K, noisy numbers of records, possibly negative.
        noise_std_features, noise_std_counts: standard deviation of the noise in one sum coordinate, one count.

    Returns:
        float64 K each; estimates are possibly negative.
    """
    dimension = sums.shape[1]
    squared_noise_length = dimension * noise_std_features**2
    lengths = _lengths_without_noise(sums, noise_std_features)
    # Norm of a mean of features: pooled over classes, and at most 1 whatever the noise makes of it.
    mean_length = float(np.clip(lengths.sum() / max(noisy_counts.sum(), 1.0), 0.1, 1.0))

    # Var ‖s + noise‖² = 4‖s‖²·v + 2D·v² with v the variance of a coordinate; divided by the slope (2‖s‖)².
    # Below (2D)^(1/4) standard deviations a length drowns in noise and the slope no longer describes it.
    slope_lengths = np.maximum(lengths, (2.0 * dimension) ** 0.25 * noise_std_features + 1e-12)
    noise_of_lengths = noise_std_features**2 + squared_noise_length * noise_std_features**2 / (2.0 * slope_lengths**2)
    spread = _length_spread(lengths, noise_of_lengths, noisy_counts, noise_std_counts)
    length_variance = (spread * lengths) ** 2 + noise_of_lengths
    count_precision = 1.0 / max(noise_std_counts, 1e-9) ** 2
    length_precision = mean_length**2 / np.maximum(length_variance, 1e-18)
    if len(noisy_counts) == 1:  # the only class's length says nothing that its count did not
        length_precision = np.zeros(1)
    precision = count_precision + length_precision
    return (count_precision * noisy_counts + length_precision * lengths / mean_length) / precision, precision


def _length_spread(
    lengths: np.ndarray, length_variance: np.ndarray, noisy_counts: np.ndarray, noise_std_counts: float
) -> float:
    """How much the lengths of the classes' mean features differ, as a share of their average.

    A length over a noisy count differs between classes by this and by noise of known variance. Activations as they are
    have means of much the same length, whitened ones need not.

    Args:
        lengths, length_variance: float64 K, of the feature sums, and the variance of their noise.
        noisy_counts, noise_std_counts: as in `estimated_counts`.
    """
    known = (noisy_counts > 3 * noise_std_counts) & (lengths > 3 * np.sqrt(length_variance))
    if known.sum() < 2:
        return LEAST_LENGTH_SPREAD
    ratios = lengths[known] / noisy_counts[known]
    ratios /= ratios.mean()
    variances = (noise_std_counts / noisy_counts[known]) ** 2 + length_variance[known] / lengths[known] ** 2
    between = _variance_between(ratios, 1.0 / np.maximum(variances, 1e-12))
    return max(math.sqrt(between), LEAST_LENGTH_SPREAD)


def _variance_between(values: np.ndarray, precisions: np.ndarray) -> float:
    """Variance of what `values` (two at least) are estimates of, whose errors have variances 1/`precisions`.

    Source: DerSimonian and Laird, Meta-analysis in clinical trials, 1986.
    """
    deviation = float(precisions @ (values - np.average(values, weights=precisions)) ** 2)
    excess = deviation - (len(values) - 1)
    return max(excess / float(precisions.sum() - (precisions @ precisions) / precisions.sum()), 0.0)
