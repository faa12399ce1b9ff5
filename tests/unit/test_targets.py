"""Class means from noisy sums and noisy counts stay usable however few records a class has."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from synthesis_stand_ins import StandInRelease

from dpmepf.shared.errors import DpmepfError
from dpmepf.synthesize.targets import ClassTargets, class_sizes, class_targets, estimated_counts, length_in_common

DIMENSION = 400


def noisy_release(
    counts: list[int], *, noise_std: float, seed: int = 0, length: float = 0.9, spread: float = 0.03
) -> StandInRelease:
    """Classes whose mean features have lengths that differ by `spread`, and noise as a release has it."""
    random = np.random.default_rng(seed)
    directions = random.random((len(counts), DIMENSION))
    norms = length * (1 + spread * random.standard_normal(len(counts)))
    means = directions / np.linalg.norm(directions, axis=1, keepdims=True) * norms[:, None]
    sums = np.array(counts)[:, None] * means + noise_std * random.standard_normal(means.shape)
    return StandInRelease(
        sums=sums,
        noisy_counts=np.array(counts) + 10 * noise_std * random.standard_normal(len(counts)),
        noise_std_features=noise_std,
        noise_std_counts=10 * noise_std,
        classes=tuple(str(index) for index in range(len(counts))),
    )


def test_with_thousands_of_records_the_mean_is_the_sum_over_the_noisy_count() -> None:
    release = noisy_release([6000] * 10, noise_std=2.0)
    targets = class_targets(release)  # type: ignore[arg-type]
    np.testing.assert_allclose(targets.counts, release.noisy_counts, rtol=0.003)
    np.testing.assert_allclose(targets.means, release.sums / targets.counts[:, None], rtol=1e-5)


def test_with_few_records_the_length_of_the_sum_sharpens_the_count() -> None:
    errors = []
    for seed in range(30):
        release = noisy_release([150] * 10, noise_std=2.0, seed=seed)
        estimate = class_targets(release).counts  # type: ignore[arg-type]
        errors.append((np.abs(release.noisy_counts - 150).mean(), np.abs(estimate - 150).mean()))
    noisy, estimated = np.mean(errors, axis=0)
    assert estimated < 0.6 * noisy


@pytest.mark.parametrize("records", [150, 500, 1000, 6000])
def test_where_lengths_differ_between_classes_a_count_is_no_worse_for_them(records: int) -> None:
    """Means of whitened features are short, and of different lengths."""
    errors = []
    for seed in range(30):
        release = noisy_release([records] * 10, noise_std=2.0, seed=seed, length=0.4, spread=0.2)
        estimate = class_targets(release).counts  # type: ignore[arg-type]
        errors.append((np.abs(release.noisy_counts - records).mean(), np.abs(estimate - records).mean()))
    noisy, estimated = np.mean(errors, axis=0)
    assert estimated < 1.1 * noisy


@pytest.mark.parametrize("noisy_count", [-500.0, -1.0, 0.0, 1e-9])
def test_a_class_whose_noisy_count_is_not_positive_does_not_blow_up(noisy_count: float) -> None:
    release = noisy_release([1000, 1000, 0], noise_std=2.0)
    release.noisy_counts[2] = noisy_count
    targets = class_targets(release)  # type: ignore[arg-type]
    assert torch.isfinite(targets.means).all()
    assert targets.counts[2] >= release.noise_std_counts
    assert float(targets.means[2].norm()) < 4 * DIMENSION**0.5 / 10  # noise over the noise of a count


def test_no_count_is_below_the_length_of_the_feature_sum() -> None:
    sums = np.zeros((2, DIMENSION))
    sums[:, 0] = 1000.0
    counts = estimated_counts(sums, np.array([10.0, 2000.0]), noise_std_features=1e-3, noise_std_counts=1e-2)
    assert (counts >= 999.99).all()


def test_the_only_class_keeps_its_noisy_count() -> None:
    release = noisy_release([300], noise_std=2.0)
    assert class_targets(release).counts[0] == pytest.approx(release.noisy_counts[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("records", [50, 200, 1000])
def test_classes_of_one_size_are_not_made_large_small_or_empty_by_noise(records: int) -> None:
    noisy, known = [], []
    for seed in range(20):
        release = noisy_release([records] * 50, noise_std=4.0, seed=seed)
        noisy.append(np.std(release.noisy_counts))
        known.append(np.std(class_sizes(release)))  # type: ignore[arg-type]
        assert np.mean(class_sizes(release)) == pytest.approx(records, rel=0.15, abs=15)  # type: ignore[arg-type]
    assert np.mean(known) < 0.25 * np.mean(noisy)


def test_sizes_that_noise_does_not_explain_are_kept() -> None:
    counts = [6000, 5000, 3000, 1000, 400, 0]
    release = noisy_release(counts, noise_std=2.0)
    np.testing.assert_allclose(class_sizes(release), counts, atol=60)  # type: ignore[arg-type]
    assert class_sizes(noisy_release([300], noise_std=2.0)).shape == (1,)  # type: ignore[arg-type]


def test_a_rare_class_beside_a_large_one_has_its_own_size() -> None:
    errors = []
    for seed in range(20):
        release = noisy_release([20_000, 150, 150, 150], noise_std=2.0, seed=seed)
        errors.append(np.abs(class_sizes(release)[1:] - 150).mean())  # type: ignore[arg-type]
    assert np.mean(errors) < 15  # the noise of a count is 20


def test_a_class_that_is_mostly_noise_weighs_little_and_well_known_classes_weigh_the_same() -> None:
    weights = class_targets(noisy_release([5000, 5000, 30], noise_std=2.0)).class_weights  # type: ignore[arg-type]
    assert weights.mean() == pytest.approx(1.0)
    assert weights[2] < 0.5 * weights[0]
    assert weights[1] == pytest.approx(weights[0], rel=0.01)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.8])
def test_noise_is_told_in_proportion_to_what_classes_differ_by(ratio: float) -> None:
    """Five directions of length 2, the centre of which is 4/5 of that, in squares, from each; an almost empty sixth."""
    noise_std = ratio * np.sqrt(0.8) * 2 / np.sqrt(DIMENSION)
    random, variances = np.random.default_rng(0), np.array([noise_std**2] * 5 + [100.0])
    means = np.vstack([2 * np.eye(5, DIMENSION), np.zeros(DIMENSION)])
    means += np.sqrt(variances)[:, None] * random.standard_normal(means.shape)
    targets = ClassTargets(means=torch.from_numpy(means).float(), counts=np.ones(6), noise_variance=variances)
    assert targets.relative_noise == pytest.approx(ratio, rel=0.15)


def test_a_class_alone_differs_from_no_other() -> None:
    means = torch.ones(1, 9)
    assert ClassTargets(means=means, counts=np.ones(1), noise_variance=np.ones(1)).relative_noise == np.inf


def test_means_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DpmepfError, match="not finite"):
        ClassTargets(means=torch.tensor([[float("nan")]]), counts=np.ones(1), noise_variance=np.zeros(1))


@pytest.mark.parametrize("counts", [[600] * 10, [5000, 300, 20], [4000]])
@pytest.mark.parametrize("shared", [0.2, 0.6])
def test_what_all_images_have_in_common_is_told_from_noise(shared: float, counts: list[int]) -> None:
    """Means with a part that all share, and each a part of its own, which add up to nothing over all images."""
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.standard_normal((DIMENSION, len(counts) + 1)))[0].T
    own = directions[1:] * 0.3
    own -= np.average(own, axis=0, weights=counts)
    release = noisy_release(counts, noise_std=0.0)
    release.sums = np.array(counts)[:, None] * (shared * directions[0] + own)
    assert length_in_common(release) == pytest.approx(shared)  # type: ignore[arg-type]
    release.noise_std_features = 0.3 * sum(counts) / np.sqrt(release.sums.size)  # noise of length 0.3 in the mean
    for seed in range(5):
        noise = np.random.default_rng(seed).standard_normal(release.sums.shape) * release.noise_std_features
        noisy = dataclasses.replace(release, sums=release.sums + noise)
        assert length_in_common(noisy) == pytest.approx(shared, abs=0.06)  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [[3, 2], [0, 0], [-5, 2]])
def test_what_noise_hides_is_not_guessed(counts: list[int]) -> None:
    release = noisy_release([1, 1], noise_std=1.0)
    release.noisy_counts = np.array(counts, float)
    assert length_in_common(release) is None  # type: ignore[arg-type]
