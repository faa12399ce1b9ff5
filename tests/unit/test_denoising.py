"""Denoised means are nearer to the truth than released ones, by far where noise drowns them, and never further."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dpmepf.synthesize.denoising import PrincipalComponents, denoised_means

DIMENSION = 1500
DIRECTIONS = 12
CLASSES = 6


def images_and_means(*, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of images that vary in a few of many directions, and class means that lie in the same ones."""
    random = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(DIMENSION, DIRECTIONS, generator=random))
    centre = torch.rand(DIMENSION, generator=random) / DIMENSION**0.5
    spread = torch.logspace(0, -1, DIRECTIONS)
    means = centre + (torch.randn(CLASSES, DIRECTIONS, generator=random) * spread) @ basis.T
    # what has been generated so far: right in how images vary, wrong in where classes are
    features = centre + (0.3 + torch.randn(CLASSES, 60, DIRECTIONS, generator=random) * spread) @ basis.T
    return features, means


def released(means: Tensor, noise_variance: np.ndarray, *, seed: int = 1) -> Tensor:
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
    return means + torch.from_numpy(noise_variance).float().sqrt()[:, None] * noise


def squared_error(means: Tensor, truth: Tensor) -> np.ndarray:
    return (means - truth).square().sum(dim=1).double().numpy()


@pytest.mark.parametrize("noise_energy", [0.1, 2.5, 50.0])
def test_noise_outside_the_directions_in_which_images_vary_is_removed(noise_energy: float) -> None:
    features, means = images_and_means()
    noise_variance = np.full(CLASSES, noise_energy / DIMENSION)
    noisy = released(means, noise_variance)
    denoised, error_variance = denoised_means(noisy, noise_variance, features)
    error = squared_error(denoised, means).mean()
    assert error < 0.1 * squared_error(noisy, means).mean()
    # what no method that knows the directions could much improve on: the noise within them, and the centre's
    assert error < 3 * (DIRECTIONS + 100) * noise_variance[0]
    assert 0.3 < error_variance * DIMENSION / error < 3


def test_images_of_the_wrong_kind_do_no_harm() -> None:
    """Directions at random: each block then shrinks as its own signal allows, as plain James-Stein would."""
    _, means = images_and_means()
    features = torch.randn(CLASSES, 60, DIMENSION, generator=torch.Generator().manual_seed(5))
    for noise_energy in (0.1, 2.5, 50.0):
        noise_variance = np.full(CLASSES, noise_energy / DIMENSION)
        noisy = released(means, noise_variance)
        denoised, _ = denoised_means(noisy, noise_variance, features)
        assert squared_error(denoised, means).mean() < 1.05 * squared_error(noisy, means).mean()


def test_precise_means_stay_as_they_are() -> None:
    features, means = images_and_means()
    for variance in (0.0, 1e-12):
        denoised, error_variance = denoised_means(means, np.full(CLASSES, variance), features)
        torch.testing.assert_close(denoised, means, atol=1e-5, rtol=0)
        assert error_variance <= 1.01 * variance + 1e-15


def test_a_class_without_records_gets_the_centre_and_spoils_no_other() -> None:
    features, means = images_and_means()
    noise_variance = np.full(CLASSES, 0.01 / DIMENSION)
    alone, _ = denoised_means(released(means, noise_variance), noise_variance, features)
    noise_variance[2] = 1000.0
    denoised, _ = denoised_means(released(means, noise_variance), noise_variance, features)
    others = [index for index in range(CLASSES) if index != 2]
    assert squared_error(denoised, means)[others].mean() < 2 * squared_error(alone, means)[others].mean()
    centre = means[others].mean(dim=0)
    assert float((denoised[2] - centre).square().sum()) < 0.1


@pytest.mark.parametrize("sizes", [[20_000, 150, 150, 150, 150, 150], [6_700, 1_100, 1_100, 500, 330, 115]])
def test_classes_with_few_records_keep_what_they_differ_by_from_one_that_has_most(sizes: list[int]) -> None:
    """One class makes up nearly all of the centre, and deviates from it by nothing: that says nothing of the others."""
    features, means = images_and_means()
    noise_variance = (8.0 / np.array(sizes)) ** 2
    noisy = released(means, noise_variance)
    denoised, _ = denoised_means(noisy, noise_variance, features)
    rare = slice(1, None)
    assert squared_error(denoised, means)[0] < 0.01
    # nearer to the truth than the frequent class's mean, to which a class without signal would shrink
    of_frequent = squared_error(means[:1].expand_as(means), means)[rare]
    assert squared_error(denoised, means)[rare].mean() < 0.4 * of_frequent.mean()
    distances = squared_error(denoised, denoised[:1].expand_as(denoised))[rare]
    assert (distances > 0.3 * of_frequent).all()


def test_one_class_is_its_own_centre() -> None:
    features, means = images_and_means()
    noise_variance = np.array([2.5 / DIMENSION])
    noisy = released(means[:1], noise_variance)
    denoised, _ = denoised_means(noisy, noise_variance, features)
    assert squared_error(denoised, means[:1])[0] < 0.1 * squared_error(noisy, means[:1])[0]


def test_components_are_those_within_classes() -> None:
    """Differences between generated classes may be learned noise and must not count as variation."""
    features, _ = images_and_means()
    shifts = 100 * torch.randn(CLASSES, 1, DIMENSION, generator=torch.Generator().manual_seed(9))
    shifted = PrincipalComponents(features + shifts)
    vectors = torch.randn(3, DIMENSION, generator=torch.Generator().manual_seed(2))
    projected = shifted.combine(shifted.coordinates(vectors))
    of_original = PrincipalComponents(features)
    torch.testing.assert_close(projected, of_original.combine(of_original.coordinates(vectors)), atol=1e-2, rtol=0)


def test_images_that_do_not_vary_leave_plain_shrinkage() -> None:
    _, means = images_and_means()
    noise_variance = np.full(CLASSES, 50.0 / DIMENSION)
    constant = torch.full((CLASSES, 4, DIMENSION), 0.02)
    noisy = released(means, noise_variance)
    denoised, _ = denoised_means(noisy, noise_variance, constant)
    assert bool(torch.isfinite(denoised).all())
    assert squared_error(denoised, means).mean() < squared_error(noisy, means).mean()
