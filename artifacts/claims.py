"""Trusted core: whether what a ledger claims follows from the mechanism it describes and the arrays it comes with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpmepf.artifacts import accounting, sensitivity
from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.merged_ledger import MergedLedger, sum_sigma
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.errors import DpmepfError


@dataclass(frozen=True, kw_only=True)
class Check:
    """One claim, recomputed."""

    name: str
    holds: bool
    detail: str
    """What was found, and when it does not hold, what it should be."""


def check_claims(artifact: Artifact) -> tuple[Check, ...]:
    """Recompute every claim of the ledger; of a merged one, those of every release and of their sum.

    Guarantee:
        If all checks hold, a release made as the ledger says is (epsilon, delta)-DP under its relation.
    Assumes:
        The noise was drawn as the ledger says: a consistent forgery cannot be told from the file alone. Merged releases
        are of disjoint records (`MergedLedger`).
    Source:
        PROOF.md, sections 1, 3 and 7.
    """
    ledger = artifact.ledger
    coordinates = artifact.coordinates
    shape = (
        _equal("feature dimension", ledger.feature_dimension, artifact.dimension, "columns of the noisy sums"),
        _equal("class count", ledger.class_count, len(artifact.classes), "classes in the file"),
    )
    if not isinstance(ledger, MergedLedger):
        return (*shape, *check_ledger(ledger, coordinates=coordinates))
    meaning = "what the noise of the releases in it adds up to"
    return (
        *shape,
        _equal("merged noise", ledger.noise_sigma, sum_sigma(ledger.releases), meaning),
        *(
            replace(check, name=f"release {number}: {check.name}")
            for number, release in enumerate(ledger.releases, 1)
            for check in check_ledger(release, coordinates=coordinates)
        ),
    )


def check_ledger(ledger: Ledger, *, coordinates: int) -> tuple[Check, ...]:
    """Recompute what the ledger claims of itself, for a release of `coordinates` noisy integers."""
    return (
        _lattice_check(ledger),
        _sensitivity_check(ledger),
        _epsilon_check(ledger, coordinates),
        _equal(
            "coarsening step",
            ledger.coarsening_exponent,
            sensitivity.coarsening_exponent(ledger.sigma),
            "the exponent of the largest power of two up to sigma/16",
        ),
        _opacus_check(ledger),
    )


def implied_sensitivity_squared(ledger: Ledger, relation: NeighbouringRelation) -> int:
    """Δ² under `relation` of the release that the ledger describes, whatever the ledger itself says it is."""
    return sensitivity.sensitivity_squared(
        ledger.lattice_exponent,
        ledger.count_weight_lattice,
        relation,
        non_negative_features=ledger.non_negative_features,
    )


def implied_sensitivity(ledger: Ledger, relation: NeighbouringRelation) -> float:
    """Δ under `relation` in lattice units, rounded up."""
    return sensitivity.sensitivity_upper_bound(implied_sensitivity_squared(ledger, relation))


def deciding_release(ledger: Ledger | MergedLedger) -> Ledger:
    """The release with the least noise: merged ones have sensitivity and size in common, and so none says less of its
    records (PROOF.md, section 7)."""
    return min(ledger.releases, key=lambda release: release.sigma)


def recomputed_epsilon(
    ledger: Ledger | MergedLedger, delta: float, relation: NeighbouringRelation, *, coordinates: int
) -> float:
    """ε at `delta` under `relation`, rounded up, of `coordinates` noisy integers, from the mechanism's parameters."""
    release = deciding_release(ledger)
    return accounting.discrete_gaussian_epsilon(
        delta, sensitivity=implied_sensitivity(release, relation), sigma=release.sigma, coordinates=coordinates
    )


def recomputed_delta(
    ledger: Ledger | MergedLedger, epsilon: float, relation: NeighbouringRelation, *, coordinates: int
) -> float:
    """δ at `epsilon`, as `recomputed_epsilon`."""
    release = deciding_release(ledger)
    return accounting.discrete_gaussian_delta(
        epsilon, sensitivity=implied_sensitivity(release, relation), sigma=release.sigma, coordinates=coordinates
    )


def _equal(name: str, claimed: float, recomputed: float, meaning: str) -> Check:
    holds = claimed == recomputed
    detail = f"{claimed}" if holds else f"the ledger claims {claimed}; {meaning}: {recomputed}"
    return Check(name=name, holds=holds, detail=detail)


def _sensitivity_check(ledger: Ledger) -> Check:
    claimed, relation = ledger.sensitivity_squared, ledger.relation
    meaning = "the square implied by lattice, count weight, relation and signs"
    if claimed == implied_sensitivity_squared(ledger, relation.other):
        meaning = f"that is the square for {relation.other.value}; for {relation.value}, which it names, it is"
    return _equal("sensitivity", claimed, implied_sensitivity_squared(ledger, relation), meaning)


def _lattice_check(ledger: Ledger) -> Check:
    name = "lattice"
    try:
        exponent = sensitivity.lattice_exponent(ledger.feature_dimension)
    except DpmepfError as error:
        return Check(name=name, holds=False, detail=str(error))
    expected = (exponent, sensitivity.count_weight_lattice(exponent))
    claimed = (ledger.lattice_exponent, ledger.count_weight_lattice)
    shown = f"step 2^-{claimed[0]}, count weight {claimed[1]}"
    if claimed == expected:
        return Check(name=name, holds=True, detail=shown)
    detail = f"the ledger claims {shown}; its dimension implies 2^-{expected[0]} and {expected[1]}"
    return Check(name=name, holds=False, detail=detail)


def _epsilon_check(ledger: Ledger, coordinates: int) -> Check:
    try:
        epsilon = recomputed_epsilon(ledger, ledger.delta, ledger.relation, coordinates=coordinates)
    except DpmepfError as error:
        return Check(name="epsilon", holds=False, detail=f"it cannot be recomputed: {error}")
    holds = epsilon <= ledger.epsilon
    detail = f"recomputed {epsilon!r}, claimed {ledger.epsilon!r}, at delta {ledger.delta!r}"
    return Check(name="epsilon", holds=holds, detail=detail)


def _opacus_check(ledger: Ledger) -> Check:
    bound = implied_sensitivity(ledger, ledger.relation)
    expected = accounting.noise_multiplier_lower_bound(sensitivity=bound, sigma=ledger.sigma)
    holds = ledger.noise_multiplier == expected
    detail = f"noise multiplier {ledger.noise_multiplier!r}" + ("" if holds else f"; sigma/sensitivity: {expected!r}")
    return Check(name="Opacus state", holds=holds, detail=detail)
