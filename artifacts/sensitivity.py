"""Trusted core: the integer lattice on which records are summed, and how far one record moves the sum.

One lattice step is 2^-k of a feature unit. Everything here is integer arithmetic but `sensitivity_upper_bound`.
Proofs: PROOF.md, sections 1 and 4.
"""

from __future__ import annotations

import math
from fractions import Fraction

from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.errors import UsageError

FINEST_LATTICE_EXPONENT = 26
COARSEST_LATTICE_EXPONENT = 16
COUNT_WEIGHT = Fraction(1, 10)
"""w: what a record adds to its class count, in feature units."""
COARSENING_RATIO = 16
"""The stored step is the largest power of two that is at most sigma / COARSENING_RATIO."""


def lattice_exponent(dimension: int) -> int:
    """k of the lattice step 2^-k, so fine that truncation loses nothing that matters and so coarse that int64 holds.

    A sum of `dimension` squares, each at most 2^2k, stays below 2^62.

    Args:
        dimension: D, the number of features of a record.

    Returns:
        k = min(26, (62 - ceil(log2 D)) // 2).

    Raises:
        UsageError: `dimension` is not positive, or so large that k would be below 16.
    """
    if dimension < 1:
        raise UsageError(f"the feature dimension is {dimension}; it must be at least 1")
    exponent = min(FINEST_LATTICE_EXPONENT, (62 - (dimension - 1).bit_length()) // 2)
    if exponent < COARSEST_LATTICE_EXPONENT:
        raise UsageError(
            f"the feature dimension {dimension} needs a lattice step of 2^-{exponent}, coarser than the allowed "
            f"2^-{COARSEST_LATTICE_EXPONENT}: choose fewer layers or stronger pooling"
        )
    return exponent


def count_weight_lattice(exponent: int) -> int:
    """W = floor(w 2^k), what a record adds to its class count in lattice units (rounded down, and used as rounded)."""
    return math.floor(COUNT_WEIGHT * 2**exponent)


def record_norm_squared(exponent: int, count_weight: int) -> int:
    """Λ² = 2^2k + W², the largest squared norm of one record's contribution, in lattice units, exactly."""
    return 4**exponent + count_weight**2


def sensitivity_squared(
    exponent: int, count_weight: int, relation: NeighbouringRelation, *, non_negative_features: bool
) -> int:
    """Δ²: how far the integer sums of two neighbouring data sets can lie apart, squared.

    Guarantee:
        ‖S(X) - S(X')‖² <= Δ² for every neighbouring X, X' under `relation`, in lattice units, as an exact integer.
    Assumes:
        Every contribution u has ‖u‖² <= Λ² (`record_norm_squared`); with `non_negative_features`, no entry of any u
        is negative. The release enforces both in integers.
    Source:
        Add or remove: ‖u‖. Replace: ‖u - u'‖² = ‖u‖² + ‖u'‖² - 2⟨u, u'⟩, at most 4Λ² by Cauchy-Schwarz and at most
        2Λ² when ⟨u, u'⟩ >= 0 (PROOF.md, section 1).

    Args:
        exponent: k of the lattice step 2^-k.
        count_weight: W, in lattice units.
        relation: which data sets are neighbours.
        non_negative_features: whether the release clamps negative features to zero.

    Returns:
        Λ², 2Λ² or 4Λ².
    """
    replaced = 2 if non_negative_features else 4
    multiplier = 1 if relation is NeighbouringRelation.ADD_OR_REMOVE_ONE else replaced
    return multiplier * record_norm_squared(exponent, count_weight)


def sensitivity_upper_bound(squared: int) -> float:
    """The square root of Δ², rounded up to the next float: never below the true sensitivity."""
    root = math.sqrt(squared)
    while Fraction(root) ** 2 < squared:
        root = math.nextafter(root, math.inf)
    return root


def coarsening_exponent(sigma: float) -> int:
    """s of the stored step 2^s: the largest power of two that is at most sigma/16, and at least 2^0.

    Guarantee:
        None is needed: noisy values are coarsened after the noise is added, which is post-processing.

    Args:
        sigma: the noise's standard deviation in lattice units.
    """
    _, exponent = math.frexp(sigma / COARSENING_RATIO)  # sigma/16 = m 2^e with 1/2 <= m < 1
    return max(0, exponent - 1)
