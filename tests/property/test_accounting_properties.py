"""Claims about the accounting over random privacy parameters."""

from __future__ import annotations

import random

import mpmath
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmepf.artifacts.accounting import (
    calibrate_discrete_sigma,
    calibrate_sigma,
    discrete_gaussian_delta,
    discrete_gaussian_epsilon,
    gaussian_delta,
    gaussian_epsilon,
)
from dpmepf.artifacts.claims import implied_sensitivity_squared
from dpmepf.artifacts.ledger import Ledger, plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.sensitivity import coarsening_exponent, lattice_exponent, sensitivity_upper_bound

epsilons = st.floats(-6, 4).map(lambda exponent: 10.0**exponent)
deltas = st.floats(-300, -1e-6).map(lambda exponent: 10.0**exponent)
RELATIONS = st.sampled_from(list(NeighbouringRelation))


def independent_delta(epsilon: float, sigma: float) -> mpmath.mpf:
    """Theorem 8 in 120 digits, written again."""
    with mpmath.workdps(120):
        x, half = epsilon * mpmath.mpf(sigma), 1 / (2 * mpmath.mpf(sigma))
        return mpmath.ncdf(half - x) - mpmath.exp(epsilon) * mpmath.ncdf(-half - x)


def test_recomputed_delta_never_exceeds_the_claim_over_2000_random_targets() -> None:
    chance = random.Random(20240611)
    for index in range(2000):
        epsilon = 10 ** chance.uniform(-6, 4)
        delta = 10 ** (chance.uniform(-300, -1e-9) if index % 2 else chance.uniform(-15, -1e-3))
        sigma = calibrate_sigma(epsilon, delta, sensitivity=1.0)
        assert independent_delta(epsilon, sigma) <= delta
        assert independent_delta(epsilon, sigma * (1 - 1e-12)) > delta  # so sigma is the optimum, not merely enough


@settings(max_examples=200)
@given(epsilon=st.floats(0, 3), sigma=st.floats(0.3, 3))
def test_a_reported_delta_is_never_below_the_true_one(epsilon: float, sigma: float) -> None:
    """Nor above it by more than a float's last place: rounding to nearest would be below in half of all cases."""
    truth = independent_delta(epsilon, sigma)
    reported = gaussian_delta(epsilon, sensitivity=1.0, sigma=sigma)
    assert truth <= reported <= truth * (1 + mpmath.mpf(2) ** -51)


@settings(max_examples=100)
@given(epsilon=epsilons, delta=deltas, coordinates=st.integers(1, 10**7), exponent=st.integers(16, 26))
def test_the_discrete_release_meets_its_target_and_its_epsilon_is_recomputed_within_the_claim(
    epsilon: float, delta: float, coordinates: int, exponent: int
) -> None:
    sensitivity = 2.0**exponent
    sigma = calibrate_discrete_sigma(epsilon, delta, sensitivity=sensitivity, coordinates=coordinates)
    release = {"sensitivity": sensitivity, "sigma": sigma, "coordinates": coordinates}
    assert sigma >= calibrate_sigma(epsilon, delta, sensitivity=sensitivity)
    assert discrete_gaussian_delta(epsilon, **release) <= delta
    assert discrete_gaussian_epsilon(delta, **release) <= epsilon


@settings(max_examples=100)
@given(delta=deltas, multiplier=st.floats(-3, 6).map(lambda exponent: 10.0**exponent))
def test_epsilon_of_delta_meets_delta(delta: float, multiplier: float) -> None:
    epsilon = gaussian_epsilon(delta, sensitivity=1.0, sigma=multiplier)
    if epsilon <= 1e6:
        assert gaussian_delta(epsilon, sensitivity=1.0, sigma=multiplier) <= delta


@settings(max_examples=50)
@given(epsilon=epsilons, delta=deltas, factor=st.floats(1.0001, 3))
def test_more_noise_never_costs_more_privacy(epsilon: float, delta: float, factor: float) -> None:
    sigma = calibrate_sigma(epsilon, delta, sensitivity=1.0)
    assert gaussian_delta(epsilon, sensitivity=1.0, sigma=sigma * factor) <= delta


@settings(max_examples=60)
@given(
    epsilon=epsilons,
    delta=deltas,
    relation=RELATIONS,
    dimension=st.integers(1, 2**22),
    class_count=st.integers(1, 100),
    non_negative=st.booleans(),
)
def test_a_planned_ledger_survives_json_and_implies_its_own_sensitivity(
    epsilon: float, delta: float, relation: NeighbouringRelation, dimension: int, class_count: int, non_negative: bool
) -> None:
    ledger = plan_release(
        epsilon=epsilon,
        delta=delta,
        relation=relation,
        feature_dimension=dimension,
        class_count=class_count,
        non_negative_features=non_negative,
    )
    assert Ledger.from_dict(ledger.to_dict()) == ledger
    assert implied_sensitivity_squared(ledger, relation) == ledger.sensitivity_squared


@given(dimension=st.integers(1, 2**30))
def test_a_sum_of_squares_of_bounded_coordinates_always_fits_int64(dimension: int) -> None:
    exponent = lattice_exponent(dimension)
    assert dimension * 4**exponent <= 2**62
    assert 16 <= exponent <= 26


@given(squared=st.integers(1, 2**60))
def test_the_sensitivity_bound_is_never_below_the_root(squared: int) -> None:
    root = sensitivity_upper_bound(squared)
    assert (
        int(root * 2**60) ** 2 >= squared * 2**120
        if root < 1
        else (root.as_integer_ratio()[0]) ** 2 >= (squared * root.as_integer_ratio()[1] ** 2)
    )


@given(sigma=st.floats(1, 2**56))
def test_the_stored_step_is_the_largest_power_of_two_up_to_a_sixteenth_of_sigma(sigma: float) -> None:
    exponent = coarsening_exponent(sigma)
    assert exponent == 0 or 16 * 2**exponent <= sigma
    assert 16 * 2 ** (exponent + 1) > sigma
