"""The noise is the discrete Gaussian with the σ asked for. Each test states its false-alarm rate and fails on a bug."""

import math

import numpy as np
import pytest
from scipy import stats

from dpmepf.embed.noise import add_discrete_gaussian_noise

FALSE_ALARM = 1e-6


def noise(count: int, sigma: float) -> np.ndarray:
    return add_discrete_gaussian_noise(np.zeros(count, dtype=np.int64), sigma=sigma)


def sigma_is_plausible(draws: np.ndarray, sigma: float) -> bool:
    """Σn²/σ² is χ² with N degrees of freedom (at large σ): rejects σ rightly claimed with probability FALSE_ALARM."""
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], len(draws))
    return bool(low < np.sum((draws / sigma) ** 2) < high)


def shape_is_plausible(draws: np.ndarray, sigma: float) -> bool:
    """Pearson's χ² of the counts of each integer within 3σ, and of the rest, against exp(−n²/2σ²)."""
    integers = np.arange(-40 * math.ceil(sigma), 40 * math.ceil(sigma) + 1)
    mass = np.exp(-(integers**2) / (2 * sigma**2))
    mass /= mass.sum()
    near = np.abs(integers) <= 3 * sigma
    observed = np.array([np.count_nonzero(draws == n) for n in integers[near]])
    expected = len(draws) * np.append(mass[near], mass[~near].sum())
    observed = np.append(observed, len(draws) - observed.sum())
    return bool(stats.chisquare(observed, expected).pvalue > FALSE_ALARM)


@pytest.mark.parametrize("sigma", [3.7e7, 123456.789])
def test_sigma_is_the_scale_asked_for(sigma: float) -> None:
    """60,000 draws tell σ from 1.03 σ practically always; false alarm 1e-6."""
    draws = noise(60_000, sigma)
    assert sigma_is_plausible(draws, sigma)
    assert not sigma_is_plausible(draws, 1.03 * sigma)
    assert not sigma_is_plausible(draws, sigma / 1.03)


@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_every_integer_is_as_frequent_as_the_discrete_gaussian_says(sigma: float) -> None:
    """False alarm 1e-6."""
    assert shape_is_plausible(noise(40_000, sigma), sigma)


def test_the_shape_test_rejects_a_rounded_continuous_gaussian() -> None:
    """Planted bug: rounding a continuous Gaussian of σ = 1 has variance 1 + 1/12 and is not the discrete Gaussian."""
    rounded = np.round(np.random.default_rng(0).standard_normal(40_000)).astype(np.int64)
    assert not shape_is_plausible(rounded, 1.0)


def test_coordinates_are_independent_across_chunks() -> None:
    """Correlation of neighbouring draws and of chunks: |r|·√N is standard normal; false alarm 2e-6 for both."""
    draws = noise(2 * (1 << 14), 1e5) / 1e5
    limit = stats.norm.isf(FALSE_ALARM / 2)
    first, second = np.split(draws, 2)
    assert abs(np.mean(draws[:-1] * draws[1:])) * math.sqrt(len(draws) - 1) < limit
    assert abs(np.mean(first * second)) * math.sqrt(len(first)) < limit


@pytest.mark.slow
def test_sigma_is_within_a_third_of_a_per_cent_over_many_draws() -> None:
    """2,000,000 draws; false alarm 1e-6."""
    draws = noise(2_000_000, 2.0**26)
    assert sigma_is_plausible(draws, 2.0**26)
    assert not sigma_is_plausible(draws, 1.005 * 2.0**26)


def distribution_is_plausible(draws: np.ndarray, sigma: float) -> bool:
    """Kolmogorov-Smirnov against N(0, σ²), of which the discrete Gaussian of a large σ is 1/σ away at most."""
    return bool(stats.kstest(draws / sigma, "norm").pvalue > FALSE_ALARM)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "plausible"), [(1.0, True), (0.95, False), (1.05, False)])
def test_kolmogorov_smirnov_and_variance_accept_sigma_and_reject_five_per_cent_less_or_more(
    factor: float, plausible: bool
) -> None:
    """400,000 draws each; false alarm 1e-6 for each statistic. At 5 % the largest gap is 0.012, the limit 0.0043."""
    sigma = 2.0**26
    draws = noise(400_000, factor * sigma)
    assert distribution_is_plausible(draws, sigma) is plausible
    assert sigma_is_plausible(draws, sigma) is plausible
