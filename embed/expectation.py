"""What to expect of a release before it is made, from its ledger and a public guess of the number of records."""

from __future__ import annotations

import math

from dpmepf.artifacts.ledger import Ledger


def noise_to_signal(ledger: Ledger, *, records: int) -> float:
    """Expected length of the noise on a class's feature sum, relative to the longest sum that class can have.

    Args:
        ledger: from `plan_release`.
        records: a public guess of the number of records, at least 1, taken to be spread evenly over the classes.
    """
    noise_length = noise_per_feature(ledger) * math.sqrt(ledger.feature_dimension)
    return noise_length * ledger.class_count / records


def noise_per_feature(ledger: Ledger) -> float:
    """σ of one coordinate of a class's feature sum, in feature units (one record's features have length at most 1)."""
    return ledger.sigma / 2.0**ledger.lattice_exponent


def noise_per_count(ledger: Ledger) -> float:
    """σ of a class count, in records."""
    return ledger.sigma / ledger.count_weight_lattice
