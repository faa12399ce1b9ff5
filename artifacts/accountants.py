"""The same release as other people's accountants see it. Nothing here is trusted: the claim rests on accounting.py.

They are imported where they are used: Opacus brings PyTorch along, which takes seconds and 600 MiB.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from dpmepf.artifacts import accounting
from dpmepf.artifacts.claims import deciding_release, implied_sensitivity, recomputed_epsilon
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.merged_ledger import MergedLedger
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.errors import DpmepfError

EXACT = "exact"
_LARGEST_PRV_EPSILON = 50.0  # its grid grows with epsilon; far beyond, it would fill the memory
_PRV_EPSILON_ERROR = 0.01


class AccountantUnavailableError(DpmepfError):
    """An accountant that cannot judge this release, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one accountant says about the artifact under one relation."""

    accountant: str
    relation: NeighbouringRelation
    epsilon: float | None
    note: str
    """Why there is no epsilon, or what to know about it; may be empty."""


def estimate_epsilons(ledger: Ledger | MergedLedger, delta: float, *, coordinates: int) -> tuple[Estimate, ...]:
    """ε at `delta` under both relations by every accountant at hand, the ledger's own relation first."""
    return tuple(
        estimate
        for relation in (ledger.relation, ledger.relation.other)
        for estimate in _under(relation, ledger, delta, coordinates)
    )


def _under(
    relation: NeighbouringRelation, ledger: Ledger | MergedLedger, delta: float, coordinates: int
) -> tuple[Estimate, ...]:
    exact = _estimate(EXACT, relation, lambda: recomputed_epsilon(ledger, delta, relation, coordinates=coordinates))
    release = deciding_release(ledger)
    multiplier = accounting.noise_multiplier_lower_bound(
        sensitivity=implied_sensitivity(release, relation), sigma=release.sigma
    )
    return (
        exact,
        _estimate("Opacus RDP", relation, lambda: _opacus_rdp(multiplier, delta)),
        _estimate("Opacus PRV", relation, lambda: _opacus_prv(multiplier, delta, exact.epsilon)),
        _estimate("Google dp_accounting", relation, lambda: _google(multiplier, delta)),
    )


def _estimate(accountant: str, relation: NeighbouringRelation, compute: Callable[[], float]) -> Estimate:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            epsilon: float | None = float(compute())
            note = ""
        except DpmepfError as error:
            epsilon, note = None, f"not available: {error}"
        except Exception as error:  # a foreign accountant may fail in any way, and the audit goes on
            epsilon, note = None, f"not available: {type(error).__name__}: {error}"
    if epsilon is not None and not math.isfinite(epsilon):
        epsilon, note = None, "not available: no finite epsilon"
    if caught and epsilon is not None:
        note = "warned: " + "; ".join(dict.fromkeys(str(warning.message).split(".")[0] for warning in caught))
    return Estimate(accountant=accountant, relation=relation, epsilon=epsilon, note=note)


def _opacus_rdp(multiplier: float, delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.load_state_dict({"history": [(multiplier, 1.0, 1)], "mechanism": "rdp"})
    return float(accountant.get_epsilon(delta))


def _opacus_prv(multiplier: float, delta: float, exact: float | None) -> float:
    if exact is None or exact > _LARGEST_PRV_EPSILON:
        raise AccountantUnavailableError(f"its grid is too large for epsilon above {_LARGEST_PRV_EPSILON:g}")
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.load_state_dict({"history": [(multiplier, 1.0, 1)], "mechanism": "prv"})
    epsilon = float(accountant.get_epsilon(delta, eps_error=_PRV_EPSILON_ERROR))
    if epsilon < exact * (1 - 1e-6):  # its upper bound cannot lie below the exact value
        raise AccountantUnavailableError(f"its result {epsilon:.4g} is below the exact value")
    return epsilon


def _google(multiplier: float, delta: float) -> float:
    try:
        import dp_accounting
    except ImportError:
        raise AccountantUnavailableError("dp-accounting is not installed (pip install 'dpmepf[accounting]')") from None
    return float(dp_accounting.get_epsilon_gaussian(multiplier, delta, tol=1e-12))
