"""Noise multipliers that must never change: as designed, and by Google's dp_accounting where it is installed."""

from __future__ import annotations

import pytest

from dpmepf.artifacts.accounting import calibrate_discrete_sigma, calibrate_sigma, gaussian_delta
from dpmepf.artifacts.ledger import plan_release
from dpmepf.artifacts.relation import NeighbouringRelation

SIGMAS = [(1.0, 3.730632), (2.0, 1.993812), (10.0, 0.499889)]  # at sensitivity 1, delta 1e-5


@pytest.mark.parametrize(("epsilon", "sigma"), SIGMAS)
def test_sigma_at_sensitivity_1_and_delta_1e_5_is_the_published_value(epsilon: float, sigma: float) -> None:
    assert calibrate_sigma(epsilon, 1e-5, sensitivity=1.0) == pytest.approx(sigma, abs=5e-7)


@pytest.mark.parametrize(("epsilon", "sigma"), SIGMAS)
def test_the_discrete_sigma_of_a_default_release_is_the_published_value(epsilon: float, sigma: float) -> None:
    unit = 2.0**24
    assert calibrate_discrete_sigma(epsilon, 1e-5, sensitivity=unit, coordinates=153_610) / unit == pytest.approx(
        sigma, abs=5e-7
    )


def test_a_planned_default_release_has_these_parameters_exactly() -> None:
    ledger = plan_release(
        epsilon=1.0,
        delta=1e-5,
        relation=NeighbouringRelation.REPLACE_ONE,
        feature_dimension=15360,
        class_count=10,
        non_negative_features=True,
    )
    assert ledger.lattice_exponent == 24
    assert ledger.count_weight_lattice == 1677721
    assert ledger.sensitivity_squared == 2 * (4**24 + 1677721**2)
    assert ledger.coarsening_exponent == 22
    assert ledger.sigma == pytest.approx(88956553.36064, abs=1e-4)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-6, 1e-10])
def test_google_dp_accounting_agrees(epsilon: float, delta: float) -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    sigma = calibrate_sigma(epsilon, delta, sensitivity=1.0)
    assert sigma == pytest.approx(dp_accounting.get_sigma_gaussian(epsilon, delta, tol=1e-10), rel=1e-5)
    assert gaussian_delta(epsilon, sensitivity=1.0, sigma=sigma) <= delta
