"""The accounting, against independent formulas and against exact summation of small mechanisms."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from fractions import Fraction
from pathlib import Path

import mpmath
import pytest

from dpmepf.artifacts import accounting
from dpmepf.artifacts.accounting import (
    PrivacyParameterError,
    calibrate_discrete_sigma,
    calibrate_sigma,
    discrete_gaussian_delta,
    discrete_gaussian_epsilon,
    gaussian_delta,
    gaussian_epsilon,
    noise_multiplier_lower_bound,
)
from dpmepf.artifacts.artifact import LARGEST_SIZE
from dpmepf.artifacts.ledger import LARGEST_DIMENSION, plan_release
from dpmepf.artifacts.relation import NeighbouringRelation

PROOF = Path(accounting.__file__).with_name("PROOF.md")
CORNERS = list(itertools.product([1e-6, 1.0, 1e4], [1e-300, 1e-12, 0.5, 1 - 1e-12]))


def quadrature_delta(epsilon: float, mu: float) -> mpmath.mpf:
    """δ as ∫ max(0, p - e^ε p') dx for N(μ, 1) against N(0, 1): no cancellation, no error function."""
    with mpmath.workdps(30):
        loss = lambda x: mu * x - mpmath.mpf(mu) ** 2 / 2  # noqa: E731
        density = lambda x: mpmath.npdf(x, mu) * -mpmath.expm1(epsilon - loss(x))  # noqa: E731
        start = mpmath.mpf(epsilon) / mu + mpmath.mpf(mu) / 2
        return mpmath.quad(density, [start, start + 1, start + 4, start + 12, start + 40])


@pytest.mark.parametrize(("epsilon", "mu"), [(1e-6, 1e-3), (0.1, 0.02), (1.0, 0.268), (1.0, 3.0), (50.0, 4.0)])
def test_delta_equals_the_integral_of_the_privacy_loss(epsilon: float, mu: float) -> None:
    delta = gaussian_delta(epsilon, sensitivity=mu, sigma=1.0)
    assert delta == pytest.approx(float(quadrature_delta(epsilon, mu)), rel=1e-12)


@pytest.mark.parametrize(("epsilon", "delta"), CORNERS)
def test_sigma_is_the_smallest_float_that_meets_the_target_even_at_the_corners(epsilon: float, delta: float) -> None:
    sigma = calibrate_sigma(epsilon, delta, sensitivity=1.0)
    assert gaussian_delta(epsilon, sensitivity=1.0, sigma=sigma) <= delta
    assert gaussian_delta(epsilon, sensitivity=1.0, sigma=math.nextafter(sigma, 0.0)) > delta


@pytest.mark.parametrize(("epsilon", "delta"), [*itertools.product([1e-6, 1.0, 1e4], [1e-300, 1e-12, 0.5, 0.999])])
def test_the_discrete_sigma_is_never_below_the_continuous_one_and_within_a_thousandth(
    epsilon: float, delta: float
) -> None:
    sensitivity = 2.0**24
    continuous = calibrate_sigma(epsilon, delta, sensitivity=sensitivity)
    discrete = calibrate_discrete_sigma(epsilon, delta, sensitivity=sensitivity, coordinates=153_610)
    assert continuous <= discrete <= continuous * 1.001
    assert discrete_gaussian_delta(epsilon, sensitivity=sensitivity, sigma=discrete, coordinates=153_610) <= delta


def test_epsilon_inverts_delta_and_is_rounded_up() -> None:
    epsilon = gaussian_epsilon(1e-5, sensitivity=1.0, sigma=2.0)
    assert gaussian_delta(epsilon, sensitivity=1.0, sigma=2.0) <= 1e-5
    assert gaussian_delta(math.nextafter(epsilon, 0.0), sensitivity=1.0, sigma=2.0) > 1e-5


def test_epsilon_is_zero_when_delta_covers_the_total_variation_distance() -> None:
    assert gaussian_epsilon(0.5, sensitivity=1.0, sigma=1.0) == 0.0
    assert discrete_gaussian_epsilon(0.5, sensitivity=100.0, sigma=100.0, coordinates=3) == 0.0


def test_a_delta_below_the_smallest_float_is_reported_as_that_float_and_not_as_zero() -> None:
    assert gaussian_delta(1e6, sensitivity=1.0, sigma=1e20) == 5e-324


def test_another_modules_working_precision_does_not_weaken_the_accounting() -> None:
    expected = calibrate_sigma(1e-6, 1e-300, sensitivity=1.0)
    with mpmath.workdps(3):
        assert calibrate_sigma(1e-6, 1e-300, sensitivity=1.0) == expected


def test_calibration_takes_less_than_50_milliseconds() -> None:
    def cost(epsilon: float, delta: float) -> float:
        start = time.process_time()
        calibrate_discrete_sigma(epsilon, delta, sensitivity=2.0**24, coordinates=153_610)
        return time.process_time() - start

    assert statistics.median(cost(epsilon, delta) for epsilon, delta in CORNERS) < 0.05


def test_sigma_below_one_lattice_step_is_refused_and_never_calibrated() -> None:
    with pytest.raises(PrivacyParameterError, match="at least 1"):
        discrete_gaussian_delta(1.0, sensitivity=1.0, sigma=0.99, coordinates=1)
    assert calibrate_sigma(10.0, 0.5, sensitivity=2.0) < 1
    assert calibrate_discrete_sigma(10.0, 0.5, sensitivity=2.0, coordinates=1) >= 1


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 2e6])
def test_calibration_refuses_an_epsilon_out_of_range(epsilon: float) -> None:
    with pytest.raises(PrivacyParameterError, match="epsilon"):
        calibrate_sigma(epsilon, 1e-5, sensitivity=1.0)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_calibration_refuses_a_delta_out_of_range(delta: float) -> None:
    with pytest.raises(PrivacyParameterError, match="delta"):
        calibrate_discrete_sigma(1.0, delta, sensitivity=100.0, coordinates=1)


@pytest.mark.parametrize(
    ("sensitivity", "sigma"), [(0.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.nan), (1.0, 1e30)]
)
def test_delta_refuses_a_noise_level_out_of_range(sensitivity: float, sigma: float) -> None:
    with pytest.raises(PrivacyParameterError, match=r"sensitivity|sigma"):
        gaussian_delta(1.0, sensitivity=sensitivity, sigma=sigma)


def test_the_noise_multiplier_is_rounded_down() -> None:
    for sensitivity in (3.0, 7.0, 2.0**24 + 0.1, 23844904.045288045):
        multiplier = noise_multiplier_lower_bound(sensitivity=sensitivity, sigma=88956553.36064106)
        assert Fraction(multiplier) * Fraction(sensitivity) <= Fraction(88956553.36064106)
        assert multiplier == pytest.approx(88956553.36064106 / sensitivity, rel=1e-15)


# Exact summation: what PROOF.md, section 3, bounds.


def discrete_gaussian(sigma: float, reach: int) -> dict[int, mpmath.mpf]:
    weights = {n: mpmath.exp(-(mpmath.mpf(n) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for n in range(-reach, reach + 1)}
    total = mpmath.fsum(weights.values())
    return {n: weight / total for n, weight in weights.items()}


def rounded_gaussian(sigma: float, reach: int) -> dict[int, mpmath.mpf]:
    def above(x: float) -> mpmath.mpf:
        return mpmath.erfc(x / (mpmath.sqrt(2) * sigma)) / 2

    return {n: above(abs(n) - 0.5) - above(abs(n) + 0.5) for n in range(-reach, reach + 1)}


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.5, 5.0])
def test_lemma_1_bounds_the_ratio_of_the_rounded_to_the_discrete_gaussian(sigma: float) -> None:
    with mpmath.workdps(60):
        reach = int(14 * sigma)
        p, q = discrete_gaussian(sigma, 2 * reach), rounded_gaussian(sigma, reach)
        ratios = {n: mpmath.log(q[n] / p[n]) for n in q}
        assert all(ratio >= -1 / (24 * mpmath.mpf(sigma) ** 2) for ratio in ratios.values())
        normaliser = 4 * mpmath.exp(-2 * (mpmath.pi * sigma) ** 2)
        assert all(ratio <= normaliser + n**2 / (24 * mpmath.mpf(sigma) ** 4) for n, ratio in ratios.items())
        assert max(ratios.values()) > 0.5 * reach**2 / (24 * sigma**4)  # the bound is of the right size


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.5, 5.0])
def test_the_surcharges_in_use_bound_the_ratio_wherever_the_theorem_says(sigma: float) -> None:
    with mpmath.workdps(60):
        delta = mpmath.mpf(1) / 100
        below, above = accounting._lattice_surcharge(mpmath.mpf(0), delta, [(mpmath.mpf(sigma), 1)])
        radius = sigma * (1 + math.sqrt(2 * (math.log(100) + 40))) + 0.5  # T for t = -ln delta + 40
        reach = int(radius)
        p, q = discrete_gaussian(sigma, 3 * reach), rounded_gaussian(sigma, reach)
        ratios = [mpmath.log(q[n] / p[n]) for n in q]
        assert -below <= min(ratios) < -0.9 * below
        assert 0.5 * above < max(ratios) <= above


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("coordinates", [1, 7])
def test_beyond_the_radius_is_no_more_than_the_tail_that_the_theorem_allows(coordinates: int, count: int) -> None:
    """Of all lattices together, by lemma 3; the radius is read back from what lemma 1 charges inside of it."""
    sigma, delta, epsilon = mpmath.mpf(3), mpmath.mpf("1e-5"), mpmath.mpf(2)
    with mpmath.workdps(40):
        _, above = accounting._lattice_surcharge(epsilon, delta, [(sigma, coordinates)] * count)
        normaliser = coordinates * 4 * mpmath.exp(-2 * (mpmath.pi * sigma) ** 2)
        radius = mpmath.sqrt((above / count - normaliser) * 24 * sigma**2)  # T/σ
        beyond = mpmath.exp(-((radius - mpmath.sqrt(coordinates) * (1 + 1 / (2 * sigma))) ** 2) / 2)
        allowed = delta * mpmath.exp(-epsilon - 40)
        assert 0.999999 * allowed < count * beyond < 1.000001 * allowed


@pytest.mark.parametrize("coordinates", [1, 7])
def test_the_lattice_is_paid_for_on_every_coordinate(coordinates: int) -> None:
    """Lemma 2 is nearly reached at the origin, where the discrete Gaussian exceeds the rounded one most."""
    with mpmath.workdps(40):
        ratio = mpmath.log(discrete_gaussian(2.0, 40)[0] / rounded_gaussian(2.0, 40)[0])
        below, _ = accounting._lattice_surcharge(mpmath.mpf(0), mpmath.mpf("0.01"), [(mpmath.mpf(2), coordinates)])
        assert coordinates * ratio <= below < 1.1 * coordinates * ratio


@pytest.mark.parametrize("sigma", [1.0, 3.5])
def test_lemma_3_bounds_the_tail_of_the_rounded_gaussian(sigma: float) -> None:
    q = rounded_gaussian(sigma, int(14 * sigma))
    for t in (0.5, 2.0, 8.0):
        radius = sigma * (1 + math.sqrt(2 * t)) + 0.5
        assert mpmath.fsum(mass for n, mass in q.items() if abs(n) > radius) <= math.exp(-t)


@pytest.mark.parametrize("sigma", [2.0, 3.0, 5.0])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 3.0])
def test_the_claimed_delta_covers_the_exact_one_in_one_dimension(sigma: float, shift: int, epsilon: float) -> None:
    with mpmath.workdps(40):
        p = discrete_gaussian(sigma, int(20 * sigma))
        exact = mpmath.fsum(max(mass - mpmath.exp(epsilon) * p.get(n + shift, 0), 0) for n, mass in p.items())
    claimed = discrete_gaussian_delta(epsilon, sensitivity=shift, sigma=sigma, coordinates=1)
    assert exact <= claimed


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_the_claimed_delta_approaches_the_exact_one_on_a_finer_lattice(epsilon: float) -> None:
    with mpmath.workdps(40):
        p = discrete_gaussian(200.0, 2400)
        exact = mpmath.fsum(max(mass - mpmath.exp(epsilon) * p.get(n + 200, 0), 0) for n, mass in p.items())
    claimed = discrete_gaussian_delta(epsilon, sensitivity=200.0, sigma=200.0, coordinates=1)
    assert exact <= claimed <= 1.001 * exact


def test_the_claimed_delta_covers_the_exact_one_for_a_diagonal_shift_in_two_dimensions() -> None:
    sigma, epsilon = 2.0, 0.5
    with mpmath.workdps(30):
        p = discrete_gaussian(sigma, 24)
        factor = mpmath.exp(epsilon)
        exact = mpmath.fsum(max(p[m] * p[n] - factor * p.get(m + 1, 0) * p.get(n + 1, 0), 0) for m in p for n in p)
    assert exact <= discrete_gaussian_delta(epsilon, sensitivity=math.sqrt(2), sigma=sigma, coordinates=2)


def test_the_continuous_delta_alone_would_not_always_cover_the_discrete_mechanism() -> None:
    """The surcharge is needed: on a coarse lattice the discrete mechanism's δ exceeds Theorem 8's."""
    with mpmath.workdps(40):
        p = discrete_gaussian(1.0, 40)
        epsilons = [0.1 * step for step in range(40)]
        exact = [
            mpmath.fsum(max(mass - mpmath.exp(epsilon) * p.get(n + 1, 0), 0) for n, mass in p.items())
            for epsilon in epsilons
        ]
    continuous = [gaussian_delta(epsilon, sensitivity=1.0, sigma=1.0) for epsilon in epsilons]
    claimed = [discrete_gaussian_delta(epsilon, sensitivity=1.0, sigma=1.0, coordinates=1) for epsilon in epsilons]
    assert any(truth > delta for truth, delta in zip(exact, continuous, strict=True))
    assert all(truth <= delta for truth, delta in zip(exact, claimed, strict=True))


def test_the_search_finds_the_smallest_float_from_either_side() -> None:
    for threshold in (0.0, 1e-18, 0.3, 7.0, 1e12):
        for near in (0.0, 0.29, 7.0, 1e13):
            found = accounting._smallest_float(lambda x, threshold=threshold: x >= threshold, near, least=0.0)
            assert found == threshold


@pytest.mark.parametrize(
    ("feature_dimension", "class_count", "epsilon", "quoted"),
    [
        (15_360, 10, 1.0, "5e-11 (D = 15,360, K = 10, ε = 1)"),
        (15_360, 1000, 10.0, "6e-8 (K = 1,000, ε = 10)"),
        (LARGEST_DIMENSION, LARGEST_SIZE // LARGEST_DIMENSION, 10.0, "3e-5 (D = 2²², K = 8, ε = 10)"),
    ],
)
def test_what_the_lattice_costs_where_releases_depend_on_outcomes_is_as_the_proof_quotes_it(
    feature_dimension: int, class_count: int, epsilon: float, quoted: str
) -> None:
    """e^H δ₀(ε - H) - δ₀(ε) as a share of δ₀(ε), with lemmas 2 and 3 for a release that takes the whole budget."""
    ledger = plan_release(
        epsilon=epsilon,
        delta=1e-6,
        relation=NeighbouringRelation.ADD_OR_REMOVE_ONE,
        feature_dimension=feature_dimension,
        class_count=class_count,
        non_negative_features=True,
    )
    with mpmath.workdps(50):
        sigma, d = mpmath.mpf(ledger.sigma), ledger.coordinates
        mu = mpmath.sqrt(ledger.sensitivity_squared) / sigma
        tail = epsilon - mpmath.log(ledger.delta) + 40
        radius = sigma * (mpmath.sqrt(d) + mpmath.sqrt(2 * tail)) + mpmath.sqrt(d) / 2
        above = 4 * d * mpmath.exp(-2 * (mpmath.pi * sigma) ** 2) + radius**2 / (24 * sigma**4)
        surcharge = d / (24 * sigma**2) + above
        continuous, shifted = (
            mpmath.ncdf(mu / 2 - shift / mu) - mpmath.exp(shift) * mpmath.ncdf(-mu / 2 - shift / mu)
            for shift in (epsilon, epsilon - surcharge)
        )
        found = float(mpmath.exp(surcharge) * shifted / continuous - 1)
    assert float(f"{found:.0e}") == float(quoted.split()[0]), found
    assert quoted in " ".join(PROOF.read_text("utf-8").split())
