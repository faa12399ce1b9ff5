"""Trusted core: the ledger of a merged artifact: the ledgers of all releases in it, and what they claim together.

As JSON, an object with `schema_version` 2, `noise_sigma`, and `releases`, a list of ledgers as ledger.py has them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dpmepf.artifacts.errors import LedgerError, UnsupportedVersionError
from dpmepf.artifacts.ledger import SCHEMA_PARTS, UNNAMED, Ledger, check_version, folded_name
from dpmepf.artifacts.relation import NeighbouringRelation

SCHEMA_VERSION = 2
LARGEST_RELEASES = 32
"""An audit recomputes each; of a forged one that takes up to 60 ms."""
COMMON = {
    "relation": "neighbouring relation",
    "unit_of_privacy": "unit of privacy",
    "feature_dimension": "feature dimension",
    "class_count": "number of classes",
    "lattice_exponent": "lattice exponent",
    "count_weight_lattice": "count weight",
    "non_negative_features": "clamping of negative features",
}
"""What releases must have in common to be added up, and for their claims to be one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedLedger:
    """Releases whose noisy integers were added up. It has no sigma: each release's own is what protects its records.

    Guarantee:
        If each release is (epsilon, delta)-DP at its own ledger's values, all of them together, and so their sum, are
        at the values here, the largest of each, under `relation` and for `unit_of_privacy`.
    Assumes:
        No record, or person, is in the data of two releases; which release it is in does not depend on other records;
        under replace-one, a record is replaced within its release. These are the custodians' word: no file shows it.
    Source:
        Parallel composition (McSherry 2009, theorem 4); PROOF.md, section 7.
    Raises (on construction):
        LedgerError: fewer than 2 or more than `LARGEST_RELEASES` releases, one of them twice, releases that differ in
            what they must have in common, or a `noise_sigma` that no sum can have.
    """

    releases: tuple[Ledger, ...]
    noise_sigma: float
    """Standard deviation of the sum of the releases' noise, before coarsening; lattice units. A claim that `claims.py`
    recomputes, so that a release that was left out is missed."""

    epsilon: float = dataclasses.field(init=False)
    delta: float = dataclasses.field(init=False)
    coarsening_exponent: int = dataclasses.field(init=False)
    """The finest of the releases': of that step every stored integer is a multiple, and by it divided."""
    relation: NeighbouringRelation = dataclasses.field(init=False)
    unit_of_privacy: str = dataclasses.field(init=False)
    feature_dimension: int = dataclasses.field(init=False)
    class_count: int = dataclasses.field(init=False)
    lattice_exponent: int = dataclasses.field(init=False)
    count_weight_lattice: int = dataclasses.field(init=False)
    non_negative_features: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        releases = self.releases
        _check_number(len(releases))
        numbers: dict[str, int] = {}
        for number, release in enumerate(releases, 1):
            if release.release_id in numbers:
                raise LedgerError(
                    f"ledger: releases {numbers[release.release_id]} and {number} are the same one, "
                    f"{release.release_id}: its records would be in two of them"
                )
            numbers[release.release_id] = number
            difference = mismatch(releases[0], release)
            if difference is not None:
                raise LedgerError(f"ledger: release {number} cannot have been merged with release 1: {difference}")
        if type(self.noise_sigma) is not float or not (math.isfinite(self.noise_sigma) and self.noise_sigma > 0):
            raise LedgerError(f"ledger: noise_sigma is {ascii(self.noise_sigma)[:80]}; allowed is a number above 0")
        joint = {name: getattr(releases[0], name) for name in COMMON} | {
            "epsilon": max(release.epsilon for release in releases),
            "delta": max(release.delta for release in releases),
            "coarsening_exponent": min(release.coarsening_exponent for release in releases),
        }
        for name, value in joint.items():
            object.__setattr__(self, name, value)

    @property
    def assumption(self) -> str:
        """What the claim rests on that no file can show, and what in this one speaks against it."""
        replaced = self.relation is NeighbouringRelation.REPLACE_ONE
        within = ", and that each is only replaced within its own," if replaced else ""
        said = f"That no record, or person, is in two of the merged releases{within} is what their custodians say: "
        names: dict[str, list[str]] = {}
        for release in self.releases:
            if release.dataset_name != UNNAMED:
                names.setdefault(folded_name(release.dataset_name), []).append(release.dataset_name)
        doubts = (
            f" {len(alike)} of the releases are of a data set called {alike[0]}: if it is one, they are not disjoint."
            for alike in names.values()
            if len(alike) > 1
        )
        return f"{said}no file can show it.{''.join(doubts)}"

    @property
    def mechanism(self) -> str:
        """That of every release."""
        return self.releases[0].mechanism

    @property
    def coordinates(self) -> int:
        """How many noisy integers each release has, and their sum."""
        return self.releases[0].coordinates

    @property
    def inferred_schema(self) -> tuple[str, ...]:
        """Parts of the schema that some release read from its data set's form."""
        inferred = {part for release in self.releases for part in release.inferred_schema}
        return tuple(part for part in SCHEMA_PARTS if part in inferred)

    @property
    def dataset_name(self) -> str:
        """The custodians' names, each once."""
        return " + ".join(dict.fromkeys(release.dataset_name for release in self.releases))

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold exactly; `from_dict` inverts it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "noise_sigma": self.noise_sigma,
            "releases": [release.to_dict() for release in self.releases],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> MergedLedger:
        """Read what `to_dict` wrote; every key must be present and known.

        Raises:
            LedgerError, UnsupportedVersionError: as on construction; for a missing or unknown key; or of a release,
                which is named by its place.
        """
        check_version(fields.get("schema_version"), readable=SCHEMA_VERSION)
        expected = {"schema_version", "noise_sigma", "releases"}
        for name in sorted(expected ^ set(fields)):
            problem = "is missing" if name in expected else "is not known"
            raise LedgerError(f"ledger: the field {name[:80]!a} of a merged ledger {problem}")
        entries, releases = fields["releases"], []
        if not isinstance(entries, list):
            raise LedgerError(f"ledger: releases is {ascii(entries)[:80]}; allowed is a list of ledgers")
        _check_number(len(entries))
        for number, entry in enumerate(entries, 1):
            try:
                releases.append(Ledger.from_dict(entry))
            except (LedgerError, UnsupportedVersionError) as error:
                raise type(error)(f"release {number}: {error}") from None
        return cls(releases=tuple(releases), noise_sigma=fields["noise_sigma"])


def merge_ledgers(releases: tuple[Ledger, ...]) -> MergedLedger:
    """The ledger of the sum of `releases`; `MergedLedger` says what that claims, assumes and raises."""
    return MergedLedger(releases=releases, noise_sigma=sum_sigma(releases))


def sum_sigma(releases: tuple[Ledger, ...]) -> float:
    """Standard deviation of the sum of the releases' independent noise; of one release, its sigma, bit by bit.

    The same bits on every machine, since it is compared: IEEE multiplication, `fsum` and `sqrt` are rounded correctly,
    while a power is as the C library has it.
    """
    return math.sqrt(math.fsum(release.sigma * release.sigma for release in releases))


def mismatch(one: Ledger, other: Ledger) -> str | None:
    """What keeps the `other` release from being merged with the `one`, in words; None if nothing does."""
    for name, meaning in COMMON.items():
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours != theirs:
            return f"its {meaning} is {theirs}, not {ours}"
    return None


def read_ledger(fields: object) -> Ledger | MergedLedger:
    """The ledger in the JSON of an artifact, whichever it is.

    Raises:
        LedgerError, UnsupportedVersionError: it is neither a ledger nor a merged one, as `from_dict` of both says.
    """
    if isinstance(fields, dict) and "releases" in fields:
        return MergedLedger.from_dict(fields)
    return Ledger.from_dict(fields)


def _check_number(releases: int) -> None:
    if not 2 <= releases <= LARGEST_RELEASES:
        raise LedgerError(f"ledger: {releases} release(s) merged; allowed are 2 to {LARGEST_RELEASES}")
