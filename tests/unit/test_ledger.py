"""The ledger: what it records, and that nothing malformed becomes one."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from artifact_examples import example_ledger
from opacus.accountants import RDPAccountant

from dpmepf.artifacts.errors import LedgerError, TextError, UnsupportedVersionError
from dpmepf.artifacts.ledger import Ledger, installed_versions, plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.sensitivity import lattice_exponent, sensitivity_squared
from dpmepf.artifacts.strict_json import parse_json
from dpmepf.shared.errors import UsageError


def test_json_gives_the_same_ledger_back_with_every_bit_of_sigma() -> None:
    ledger = example_ledger(inferred_schema=("classes", "channels"), dataset_name="x-rays 2024")
    assert Ledger.from_dict(json.loads(json.dumps(ledger.to_dict()))) == ledger


def test_opacus_accepts_the_recorded_state_and_agrees_with_the_claim() -> None:
    ledger = example_ledger(epsilon=2.0, delta=1e-5)
    accountant = RDPAccountant()
    accountant.load_state_dict(ledger.to_dict()["opacus_state"])
    assert 2.0 <= accountant.get_epsilon(1e-5) <= 2.3


def test_two_releases_have_different_ids_whatever_the_seeds() -> None:
    import random

    ids = set()
    for _ in range(5):
        random.seed(0)
        np.random.seed(0)
        ids.add(example_ledger().release_id)
    assert len(ids) == 5


def test_the_sensitivity_follows_the_relation_and_the_signs() -> None:
    def squared(relation: NeighbouringRelation, non_negative: bool) -> int:
        return example_ledger(relation=relation, non_negative_features=non_negative).sensitivity_squared

    one = squared(NeighbouringRelation.ADD_OR_REMOVE_ONE, False)
    assert one == 4**26 + (2**26 // 10) ** 2
    assert squared(NeighbouringRelation.ADD_OR_REMOVE_ONE, True) == one
    assert squared(NeighbouringRelation.REPLACE_ONE, True) == 2 * one
    assert squared(NeighbouringRelation.REPLACE_ONE, False) == 4 * one


def test_sensitivity_squared_is_an_exact_integer_beyond_a_floats_precision() -> None:
    assert sensitivity_squared(26, 6710886, NeighbouringRelation.ADD_OR_REMOVE_ONE, non_negative_features=True) == (
        4503599627370496 + 45035990904996
    )


@pytest.mark.parametrize(("dimension", "exponent"), [(1, 26), (1024, 26), (1025, 25), (15360, 24), (2**30, 16)])
def test_the_lattice_is_as_fine_as_int64_allows(dimension: int, exponent: int) -> None:
    assert lattice_exponent(dimension) == exponent


@pytest.mark.parametrize("dimension", [0, -1, 2**30 + 1])
def test_a_dimension_without_a_lattice_is_refused(dimension: int) -> None:
    with pytest.raises(UsageError, match="dimension"):
        lattice_exponent(dimension)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"epsilon": 1},
        {"delta": 1.0},
        {"delta": "1e-5"},
        {"sigma": -5.0},
        {"sigma": math.inf},
        {"sigma": 0.5},
        {"sensitivity_squared": 0},
        {"sensitivity_squared": True},
        {"lattice_exponent": 15},
        {"lattice_exponent": 27},
        {"count_weight_lattice": 0},
        {"coarsening_exponent": -1},
        {"coarsening_exponent": 63},
        {"relation": "replace-one"},
        {"non_negative_features": 1},
        {"feature_dimension": 0},
        {"feature_dimension": np.int64(3)},
        {"class_count": 10**6},
        {"noise_multiplier": -1.0},
        {"unit_of_privacy": ""},
        {"unit_of_privacy": "one hospital"},
        {"dataset_name": "a\x1b[31m"},
        {"dataset_name": "n" * 201},
        {"inferred_schema": ("labels",)},
        {"inferred_schema": ("classes", "classes")},
        {"release_id": "1"},
        {"library_versions": installed_versions() | {"torch": "2\n3"}},
        {"library_versions": installed_versions() | {"torch": "2.1 (patched)"}},
        {"library_versions": installed_versions() | {"pandas": "2.1"}},
        {"inferred_schema": ("channels", "classes")},
        {"mechanism": "gaussian"},
    ],
    ids=str,
)
def test_a_field_out_of_range_is_refused_by_name(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(LedgerError, match=f"ledger: {name} is"):
        dataclasses.replace(example_ledger(), **change)


def test_a_later_schema_version_is_named_as_such_even_with_unknown_fields() -> None:
    with pytest.raises(UnsupportedVersionError, match="version is 2"):
        Ledger.from_dict(example_ledger().to_dict() | {"schema_version": 2, "new_field": 1})


@pytest.mark.parametrize("name", [*example_ledger().to_dict()])
def test_a_missing_field_is_named(name: str) -> None:
    fields = example_ledger().to_dict()
    del fields[name]
    with pytest.raises(LedgerError, match=f"{name}.* is missing"):
        Ledger.from_dict(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("record_count", 60000),
        ("relation", "swap"),
        ("relation", ["replace-one"]),
        ("sensitivity_squared", 4**26),
        ("sensitivity_squared", "9" * 31),
        ("sensitivity_squared", "-4"),
        ("inferred_schema", "classes"),
        ("inferred_schema", [["classes"]]),
        ("library_versions", ["torch"]),
        ("opacus_state", {"history": [[3.7, 1.0, 2]], "mechanism": "rdp"}),
        ("opacus_state", {"history": [[3.7, 0.5, 1]], "mechanism": "rdp"}),
        ("opacus_state", {"history": [[3.7, 1.0, 1]], "mechanism": "prv"}),
        ("opacus_state", {"history": [[3.7, 1.0, 1]], "mechanism": "rdp", "more": 1}),
    ],
)
def test_an_unknown_or_malformed_entry_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(LedgerError, match=name):
        Ledger.from_dict(example_ledger().to_dict() | {name: value})


@pytest.mark.parametrize("fields", [None, 3, [], "ledger"])
def test_something_that_is_no_object_is_refused(fields: object) -> None:
    with pytest.raises(LedgerError, match="JSON object"):
        Ledger.from_dict(fields)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "finite"),
        ('{"a": -Infinity}', "finite"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[" * 100_000, "nested"),
        ('{"a": 1', "valid JSON"),
        ("9" * 5000, "valid JSON"),
    ],
    ids=["nan", "infinity", "repeated key", "deep nesting", "cut off", "huge number"],
)
def test_json_that_artifacts_never_hold_is_refused(text: str, reason: str) -> None:
    with pytest.raises(TextError, match=f"ledger: .*{reason}"):
        parse_json(text, "ledger")


def test_a_plan_that_cannot_be_met_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="epsilon"):
        example_ledger(epsilon=-1.0)
    with pytest.raises(UsageError, match="larger epsilon"):
        example_ledger(epsilon=1e-10, delta=1e-200)
    with pytest.raises(UsageError, match="dimension"):
        plan_release(
            epsilon=1.0,
            delta=1e-5,
            relation=NeighbouringRelation.REPLACE_ONE,
            feature_dimension=2**31,
            class_count=1,
            non_negative_features=True,
        )
