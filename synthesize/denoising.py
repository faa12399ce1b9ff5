"""Released class means with most of their noise taken out: empirical Bayes in the directions in which images vary.

With few records the noise in a class's released mean is longer than the mean itself, and a generator that is trained
towards such a mean learns the noise: its images lose their variety and grow artefacts. But the noise points in all
D directions equally, while class means lie in the few directions in which images vary at all. Those directions, the
principal components, are measured on generated images, within classes, so that what a generator has learned already
of the noise in the means does not count as variation.

In blocks of components, from the largest on, the mean square s + N of the released coordinates shows how much signal s
there is beside the noise N, and each coordinate shrinks by s/(s + N): James and Stein (1961) by blocks (Cai, Annals of
Statistics 27, 1999). Where the release is precise, N is small and nothing changes.

Deviations are from a centre in which precise classes weigh more. A class that makes up most of the centre deviates from
it by little, whatever it differs from the others by: its signal counts for that much less (`signal_shares`).

Only the release and generated images enter: post-processing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

FIRST_BLOCK = 40  # coordinates, over all classes: fewer tell too little of their mean square
BLOCK_GROWTH = 1.5
SMALLEST_EIGENVALUE = 1e-4  # as a share of the largest; below, float32 does not tell components apart
SMALLEST_NOISE = 1e-18


class PrincipalComponents:
    """Directions of most variation within classes, orthonormal, as combinations of the images they come from.

    Args:
        features: k×n×D of n ≥ 2 images of each of k classes.
    """

    def __init__(self, features: Tensor) -> None:
        self.deviations = (features - features.mean(dim=1, keepdim=True)).flatten(0, 1)  # N x D
        eigenvalues, vectors = torch.linalg.eigh((self.deviations @ self.deviations.T).double())
        eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
        kept = eigenvalues > SMALLEST_EIGENVALUE * eigenvalues[0].clamp_min(0.0)
        self.combinations = (vectors[:, kept] / eigenvalues[kept].sqrt()).float()  # N x components

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Return K×components coordinates of K×D vectors, those of the largest component first."""
        return (vectors @ self.deviations.T) @ self.combinations

    def combine(self, coordinates: Tensor) -> Tensor:
        """Return the K×D vectors with K×components `coordinates`."""
        return (coordinates @ self.combinations.T) @ self.deviations


def denoised_means(means: Tensor, noise_variance: np.ndarray, features: Tensor) -> tuple[Tensor, float]:
    """Estimate the true class means from released ones and from how images vary.

    The precision-weighted centre of the means is shrunk towards the mean of `features`, deviations of the classes from
    the centre towards zero.

    Args:
        means: K×D released class means.
        noise_variance: float64 K, variance of the noise in each coordinate of a class's row.
        features: k×n×D of generated images, n ≥ 2 of each of k classes.

    Returns:
        K×D estimates and the typical variance of their error in one coordinate.
    """
    components = PrincipalComponents(features)
    noise = np.maximum(noise_variance, SMALLEST_NOISE)
    centre_noise = 1.0 / (1.0 / noise).sum()
    weights = centre_noise / noise
    centre = torch.as_tensor(weights, dtype=means.dtype, device=means.device) @ means
    prior = features.mean(dim=(0, 1))
    shift, shift_error = _shrink((centre - prior)[None], np.array([centre_noise]), components, np.ones(1))
    # A deviation's noise: Var(m_c − centre) = N_c − N_centre = N_c·(1 − w_c), for Cov(m_c, centre) = N_centre. Where
    # true means are d_c from their expectation, of variance s, d_c − Σ w_k d_k has ((1 − w_c)² + Σ_{k≠c} w_k²)·s.
    of_others = np.where(np.eye(len(weights), dtype=bool), 0.0, weights)  # 1 − w_c as a sum: it may be next to nothing
    signal_shares = of_others.sum(axis=1) ** 2 + (of_others**2).sum(axis=1)
    deviations, errors = _shrink(means - centre, noise * of_others.sum(axis=1), components, signal_shares)
    return prior + shift + deviations, float(np.median(errors + shift_error)) / means.shape[1]


def _shrink(
    vectors: Tensor, noise: np.ndarray, components: PrincipalComponents, signal_shares: np.ndarray
) -> tuple[Tensor, np.ndarray]:
    """Return K×D vectors shrunk towards zero, and the expected squared lengths of their errors (K).

    `signal_shares` (K): variance of each vector's signal, as a multiple of one that is the same for all.
    """
    noise = np.maximum(noise, SMALLEST_NOISE)
    precisions = signal_shares / noise**2
    total = max(float(precisions @ signal_shares), sys.float_info.min)  # a single class is its own centre: no signal
    coordinates = components.coordinates(vectors)
    rest = vectors - components.combine(coordinates)
    shrunk = torch.empty_like(coordinates)
    errors = np.zeros(len(vectors))

    def shares(part: Tensor, dimension: int) -> Tensor:
        """Shrinkage of each class's part, of `dimension` degrees of freedom."""
        excess = part.square().sum(dim=1).double().cpu().numpy() / max(dimension, 1) - noise
        signal = signal_shares * max(float(precisions @ excess) / total, 0.0)
        share = signal / (signal + noise)
        errors[:] += dimension * share * noise
        return torch.as_tensor(share, dtype=part.dtype, device=part.device)[:, None]

    for block in _blocks(coordinates.shape[1], first=-(-FIRST_BLOCK // len(vectors))):
        part = coordinates[:, block]
        shrunk[:, block] = part * shares(part, part.shape[1])
    rest = rest * shares(rest, vectors.shape[1] - coordinates.shape[1])
    return components.combine(shrunk) + rest, errors


def _blocks(count: int, *, first: int) -> Iterator[slice]:
    """Slices that cover `count` components, the first of `first`, each half as large again as the one before."""
    start, size = 0, float(first)
    while start < count:
        yield slice(start, start + int(size))
        start += int(size)
        size *= BLOCK_GROWTH
