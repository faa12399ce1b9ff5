"""Trusted core: the ledger, which states what was released and at which privacy parameters.

It holds the mechanism's parameters, from which (ε, δ) is recomputed on every reading (`claims.py`). Constructing a
ledger checks types and ranges only; whether its claims agree with each other is for the audit to say.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import re
import unicodedata
import uuid
from collections.abc import Mapping
from typing import Any

from dpmepf.artifacts import accounting, sensitivity
from dpmepf.artifacts.errors import LedgerError, UnsupportedVersionError
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared import __version__
from dpmepf.shared.errors import UsageError

SCHEMA_VERSION = 1
MECHANISM = "discrete-gaussian"
ONE_IMAGE = "one image"
ONE_PERSON = "one person"
UNITS = (ONE_IMAGE, ONE_PERSON)
UNNAMED = "unnamed"
SCHEMA_PARTS = ("classes", "resolution", "channels")
RECORDED_LIBRARIES = ("opendp", "torch", "numpy", "h5py")
LIBRARIES = ("dpmepf", "python", *RECORDED_LIBRARIES)

LARGEST_SIGMA = 2.0**56
LARGEST_DIMENSION = 2**22
LARGEST_CLASS_COUNT = 100_000
_LONGEST_TEXT = 200
_TEXT = f"1 to {_LONGEST_TEXT} printable characters"
_LONGEST_VERSION = 64
_VERSION = re.compile(rf"[0-9A-Za-z.+!_-]{{1,{_LONGEST_VERSION}}}")
"""What PEP 440 and Python's own versions (3.14.0a1+, 3.12.4-custom) are made of."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """One release. Lattice units are 2^-lattice_exponent of a feature unit.

    Raises (on construction):
        LedgerError: a field of another type, or a value that no release can have.
        UnsupportedVersionError: another schema version.
    """

    epsilon: float
    delta: float
    relation: NeighbouringRelation
    sigma: float
    """Standard deviation of the noise on every coordinate, before coarsening; lattice units."""
    sensitivity_squared: int
    """Exact, in squared lattice units."""
    lattice_exponent: int
    count_weight_lattice: int
    """What one record adds to its class count, in lattice units."""
    coarsening_exponent: int
    """Stored integers are multiples of 2^coarsening_exponent lattice units, divided by it."""
    non_negative_features: bool
    feature_dimension: int
    class_count: int
    noise_multiplier: float
    """sigma / sensitivity, rounded down; the artifact holds it as an Opacus accountant state."""
    unit_of_privacy: str = ONE_IMAGE
    """What neighbouring data sets differ by: one image, or one person with all their images."""
    inferred_schema: tuple[str, ...] = ()
    """Parts of the schema read from the data set's form: inferred, treated as public."""
    dataset_name: str = UNNAMED
    """The custodian's own choice, never derived from the data."""
    release_id: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))
    library_versions: Mapping[str, str] = dataclasses.field(default_factory=lambda: installed_versions())
    mechanism: str = MECHANISM
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_version(self.schema_version, readable=SCHEMA_VERSION)
        _require(self.mechanism == MECHANISM, "mechanism", self.mechanism, repr(MECHANISM))
        _require(isinstance(self.relation, NeighbouringRelation), "relation", self.relation, "a neighbouring relation")
        _check_float("epsilon", self.epsilon, 0.0, 1e6)
        _check_float("delta", self.delta, 0.0, math.nextafter(1.0, 0.0))
        _check_float("sigma", self.sigma, 1.0, LARGEST_SIGMA)
        _check_float("noise_multiplier", self.noise_multiplier, 0.0, LARGEST_SIGMA)
        finest = sensitivity.FINEST_LATTICE_EXPONENT
        _check_int("lattice_exponent", self.lattice_exponent, sensitivity.COARSEST_LATTICE_EXPONENT, finest)
        _check_int("count_weight_lattice", self.count_weight_lattice, 1, 2**finest)
        _check_int("coarsening_exponent", self.coarsening_exponent, 0, 56)
        _check_int("sensitivity_squared", self.sensitivity_squared, 1, 8 * 4**finest)
        _check_int("feature_dimension", self.feature_dimension, 1, LARGEST_DIMENSION)
        _check_int("class_count", self.class_count, 1, LARGEST_CLASS_COUNT)
        boolean = isinstance(self.non_negative_features, bool)
        _require(boolean, "non_negative_features", self.non_negative_features, "true or false")
        # Those that there is a proof for: any other claims more than was done.
        _require(self.unit_of_privacy in UNITS, "unit_of_privacy", self.unit_of_privacy, " or ".join(UNITS))
        _check_text("dataset_name", self.dataset_name)
        parts = self.inferred_schema
        known = isinstance(parts, tuple) and all(part in SCHEMA_PARTS for part in parts)
        known = known and parts == tuple(part for part in SCHEMA_PARTS if part in parts)
        _require(known, "inferred_schema", parts, f"a selection of {', '.join(SCHEMA_PARTS)}, in this order")
        valid_id = isinstance(self.release_id, str) and _UUID.fullmatch(self.release_id) is not None
        _require(valid_id, "release_id", self.release_id, "a UUID")
        versions = self.library_versions
        known = isinstance(versions, Mapping) and set(versions) == set(LIBRARIES)
        known = known and all(isinstance(one, str) and _VERSION.fullmatch(one) for one in versions.values())
        _require(known, "library_versions", versions, f"versions of {', '.join(LIBRARIES)}")
        object.__setattr__(self, "library_versions", {library: versions[library] for library in LIBRARIES})

    @property
    def releases(self) -> tuple[Ledger, ...]:
        """This one; a merged ledger (merged_ledger.py) has several."""
        return (self,)

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity in lattice units, rounded up."""
        return sensitivity.sensitivity_upper_bound(self.sensitivity_squared)

    @property
    def coordinates(self) -> int:
        """How many noisy integers the release has: the features and the count of each class."""
        return self.class_count * (self.feature_dimension + 1)

    @property
    def opacus_state(self) -> dict[str, Any]:
        """The same release as `opacus.accountants.RDPAccountant().load_state_dict` takes it."""
        return {"history": [[self.noise_multiplier, 1.0, 1]], "mechanism": "rdp"}

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold exactly; `from_dict` inverts it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["noise_multiplier"]
        return fields | {
            "relation": self.relation.value,
            "sensitivity_squared": str(self.sensitivity_squared),
            "inferred_schema": list(self.inferred_schema),
            "opacus_state": self.opacus_state,
        }

    @classmethod
    def from_dict(cls, fields: object) -> Ledger:
        """Read what `to_dict` wrote; every key must be present and known.

        Raises:
            LedgerError, UnsupportedVersionError: as on construction, or for a missing or unknown key.
        """
        if not isinstance(fields, dict):
            raise LedgerError("ledger: expected a JSON object of named fields")
        if "schema_version" in fields:  # first, so that a later version is named as such
            check_version(fields["schema_version"], readable=SCHEMA_VERSION)
        expected = {field.name for field in dataclasses.fields(cls)} - {"noise_multiplier"} | {"opacus_state"}
        for name in sorted(expected - set(fields)):
            raise LedgerError(f"ledger: the field {name!r} is missing")
        for name in sorted(set(fields) - expected):
            raise LedgerError(f"ledger: the field {name[:80]!a} is not known")
        values = {name: fields[name] for name in expected - {"opacus_state"}}
        relations = [relation.value for relation in NeighbouringRelation]
        _require(values["relation"] in relations, "relation", values["relation"], " or ".join(relations))
        squared = values["sensitivity_squared"]
        digits = isinstance(squared, str) and re.fullmatch("[0-9]{1,30}", squared) is not None
        _require(digits, "sensitivity_squared", squared, "a string of 1 to 30 decimal digits")
        _require(isinstance(values["inferred_schema"], list), "inferred_schema", values["inferred_schema"], "a list")
        return cls(
            **values
            | {
                "relation": NeighbouringRelation(values["relation"]),
                "sensitivity_squared": int(squared),
                "inferred_schema": tuple(values["inferred_schema"]),
                "noise_multiplier": _multiplier_of(fields["opacus_state"]),
            }
        )


def plan_release(
    *,
    epsilon: float,
    delta: float,
    relation: NeighbouringRelation,
    feature_dimension: int,
    class_count: int,
    non_negative_features: bool,
    inferred_schema: tuple[str, ...] = (),
    dataset_name: str = UNNAMED,
    unit_of_privacy: str = ONE_IMAGE,
) -> Ledger:
    """The ledger of a release that meets (epsilon, delta) with the least noise; it reads no data.

    Guarantee:
        Exact integer sums of bounded contributions plus discrete Gaussian noise of the ledger's sigma on each
        coordinate are (epsilon, delta)-DP under `relation`, for the unit whose contribution was bounded.
    Assumes:
        The sums are those of the ledger's lattice: `sensitivity_squared` bounds their change (sensitivity.py).
    Source:
        `accounting.calibrate_discrete_sigma`; sigma is rounded up.

    Args:
        epsilon: > 0, in nats.
        delta: in (0, 1).
        relation: which data sets are neighbours.
        feature_dimension: D.
        class_count: K.
        non_negative_features: whether the release clamps negative features to zero.
        inferred_schema, dataset_name, unit_of_privacy: recorded as they are.

    Returns:
        A ledger with a fresh random release id.
    Raises:
        UsageError: epsilon, delta or the dimension cannot be met.
    """
    exponent = sensitivity.lattice_exponent(feature_dimension)
    weight = sensitivity.count_weight_lattice(exponent)
    squared = sensitivity.sensitivity_squared(exponent, weight, relation, non_negative_features=non_negative_features)
    bound = sensitivity.sensitivity_upper_bound(squared)
    sigma = accounting.calibrate_discrete_sigma(
        epsilon, delta, sensitivity=bound, coordinates=class_count * (feature_dimension + 1)
    )
    if sigma > LARGEST_SIGMA:
        raise UsageError(
            f"epsilon {epsilon:g} and delta {delta:g} need noise of {sigma:.2g} lattice units, more than 64-bit sums "
            "hold: choose a larger epsilon or delta"
        )
    return Ledger(
        epsilon=float(epsilon),
        delta=float(delta),
        relation=relation,
        sigma=sigma,
        sensitivity_squared=squared,
        lattice_exponent=exponent,
        count_weight_lattice=weight,
        coarsening_exponent=sensitivity.coarsening_exponent(sigma),
        non_negative_features=non_negative_features,
        feature_dimension=feature_dimension,
        class_count=class_count,
        noise_multiplier=accounting.noise_multiplier_lower_bound(sensitivity=bound, sigma=sigma),
        inferred_schema=inferred_schema,
        dataset_name=dataset_name,
        unit_of_privacy=unit_of_privacy,
    )


def folded_name(name: str) -> str:
    """What names that look alike have in common: they differ by case, spaces and marks at most."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(character for character in folded if character.isalnum())


def check_dataset_name(name: str) -> None:
    """Refuse what no ledger takes as a data set's name, before there is a ledger.

    Raises:
        UsageError: it is empty, too long or not printable.
    """
    if not _is_text(name):
        raise UsageError(f"the data set's name is {ascii(name)[:80]}; it must have {_TEXT}")


def check_version(version: object, *, readable: int) -> None:
    """Refuse a ledger of another schema version than the `readable` one.

    Raises:
        UnsupportedVersionError: it is another, or no whole number.
    """
    if type(version) is not int or version != readable:
        raise UnsupportedVersionError(
            f"ledger: the schema version is {ascii(version)[:80]}; this program reads version {readable}: "
            "use the release of dpmepf that wrote the artifact, or a newer one"
        )


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that a release rests on, in the letters that a ledger takes."""
    found = [__version__, platform.python_version(), *map(importlib.metadata.version, RECORDED_LIBRARIES)]
    plain = (re.sub(r"[^0-9A-Za-z.+!_-]", "_", version)[:_LONGEST_VERSION] or "_" for version in found)
    return dict(zip(LIBRARIES, plain, strict=True))


def _multiplier_of(state: object) -> Any:
    match state:
        case {"history": [[multiplier, 1.0, 1]], "mechanism": "rdp"} if isinstance(state, dict) and len(state) == 2:
            return multiplier
    raise LedgerError("ledger: opacus_state must hold one step of the mechanism 'rdp' at sampling rate 1")


def _check_float(name: str, value: object, least: float, most: float) -> None:
    """A float within bounds, above zero."""
    within = type(value) is float and math.isfinite(value) and least <= value <= most and value > 0
    _require(within, name, value, f"a number above 0 from {least:g} to {most:g}")


def _check_int(name: str, value: object, least: int, most: int) -> None:
    _require(type(value) is int and least <= value <= most, name, value, f"a whole number from {least} to {most}")


def _check_text(name: str, value: object) -> None:
    _require(_is_text(value), name, value, _TEXT)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and 1 <= len(value) <= _LONGEST_TEXT


def _require(condition: bool, name: str, found: object, allowed: str) -> None:
    if not condition:
        raise LedgerError(f"ledger: {name} is {ascii(found)[:80]}; allowed is {allowed}")
