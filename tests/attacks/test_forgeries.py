"""Forged artifacts: `dpmepf-audit` finds each, says what is wrong in words of its own, and ends with 1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from artifact_examples import example_artifact, forge_ledger, replace_text
from artifact_users import audit, read_and_audit
from limited_process import Ending, call_limited

from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.artifacts.relation import NeighbouringRelation

RECORD = 4**26 + (2**26 // 10) ** 2  # Λ², squared norm of a record at the example's lattice


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "a.h5", example_artifact(relation=NeighbouringRelation.REPLACE_ONE))
    return tmp_path / "a.h5"


def ledger_field(**changes: Any) -> Callable[[Path], None]:
    return lambda path: forge_ledger(path, **changes)


def column_fewer(path: Path) -> None:
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        sums = file["noisy_sums"][:, :-1]
        del file["noisy_sums"]
        chunks = (1, sums.shape[1])
        file.create_dataset("noisy_sums", data=sums, dtype="<i8", chunks=chunks, shuffle=True, compression="gzip")


def class_fewer(path: Path) -> None:
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        sums, counts, names = file["noisy_sums"][:-1], file["noisy_counts"][:-1], json.loads(file["classes"][()])
        del file["noisy_sums"], file["noisy_counts"]
        chunks = (1, sums.shape[1])
        file.create_dataset("noisy_sums", data=sums, dtype="<i8", chunks=chunks, shuffle=True, compression="gzip")
        file.create_dataset("noisy_counts", data=np.array(counts))
    replace_text(path, "classes", json.dumps(names[:-1]))


FORGERIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "smaller epsilon": (ledger_field(epsilon=0.5), r"epsilon FAILS recomputed 0\.99\d+, claimed 0\.5, at delta 1e-05"),
    "smaller delta": (ledger_field(delta=1e-7), r"epsilon FAILS recomputed 1\.\d+, claimed 1\.0, at delta 1e-07"),
    "halved sensitivity": (
        ledger_field(sensitivity_squared=str(2 * RECORD // 4)),
        rf"sensitivity FAILS the ledger claims {2 * RECORD // 4}; the square implied by .*: {2 * RECORD}",
    ),
    "swapped relation": (
        ledger_field(relation="add-or-remove-one"),
        rf"sensitivity FAILS the ledger claims {2 * RECORD}; that is the square for replace-one; for add-or-remove-one",
    ),
    "Opacus history of more noise": (
        ledger_field(opacus_state={"history": [[9.0, 1.0, 1]], "mechanism": "rdp"}),
        r"Opacus state FAILS noise multiplier 9\.0; sigma/sensitivity: 3\.7",
    ),
    "dropped Opacus entry": (
        ledger_field(opacus_state={"history": [], "mechanism": "rdp"}),
        "ledger: opacus_state must hold one step",
    ),
    "changed dimension": (
        ledger_field(feature_dimension=47),
        "feature dimension FAILS the ledger claims 47; columns of the noisy sums: 48",
    ),
    "dropped column": (column_fewer, "feature dimension FAILS the ledger claims 48; columns of the noisy sums: 47"),
    "dropped class": (class_fewer, "class count FAILS the ledger claims 3; classes in the file: 2"),
    "less noise": (
        ledger_field(sigma=2.0**26),
        r"recomputed \d+\.\d+, claimed 1\.0, at delta 1e-05 \| coarsening step FAILS the ledger claims",
    ),
}


@pytest.mark.parametrize(("forge", "message"), FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_is_found_with_a_message_of_its_own(path: Path, forge: Callable[[Path], None], message: str) -> None:
    forge(path)
    outcome = call_limited(read_and_audit, path)
    assert outcome.ending is Ending.REFUSED, outcome
    assert re.search(message, audit_words(path))


def test_no_forgerys_message_is_told_of_another(path: Path) -> None:
    good = path.read_bytes()
    for name, (forge, _) in FORGERIES.items():
        path.write_bytes(good)
        forge(path)
        words = audit_words(path)
        assert [other for other, (_, message) in FORGERIES.items() if re.search(message, words)] == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("class_count", "coarsening_exponent", "count_weight_lattice", "dataset_name", "delta", "epsilon"),
        *("feature_dimension", "inferred_schema", "lattice_exponent", "library_versions", "mechanism"),
        *("non_negative_features", "opacus_state", "relation", "release_id", "schema_version", "sensitivity_squared"),
        *("sigma", "unit_of_privacy"),
    ],
)
def test_a_dropped_entry_of_the_ledger_is_missed_by_name(path: Path, name: str) -> None:
    forge_ledger(path, **{name: None})
    assert f"the field '{name}' is missing" in audit_words(path)


def audit_words(path: Path) -> str:
    """All that the audit says of a file that it does not accept, in one line without rules."""
    table, data = audit(path), audit(path, "--json")
    assert (table.exit_code, data.exit_code) == (1, 1)
    if not data.stdout:
        return table.stderr
    checks = json.loads(data.stdout)["checks"]
    failed = [f"{check['name']} FAILS {check['detail']}" for check in checks if not check["holds"]]
    assert all(f"{check['name']}" in table.stdout for check in checks) and "NOT VALID" in table.stdout
    return " | ".join(failed)
