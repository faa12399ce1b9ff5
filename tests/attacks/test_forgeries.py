"""Forged artifacts: `dpmepf-audit` finds each, says what is wrong in words of its own, and ends with 1."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from artifact_examples import as_ledger_text, example_artifact, example_parts, forge_ledger, replace_text
from artifact_users import audit, read_and_audit
from limited_process import Ending, call_limited

from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.artifacts.merged_ledger import LARGEST_RELEASES
from dpmepf.artifacts.merging import merge_artifacts
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


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """Releases at epsilon 1, 4 and 0.1."""
    parts = example_parts("a", "b", "c", relation=NeighbouringRelation.REPLACE_ONE)
    write_artifact(tmp_path / "all.h5", merge_artifacts(parts))
    return tmp_path / "all.h5"


def release_field(number: int, **changes: Any) -> Callable[[Path], None]:
    return lambda path: forge_ledger(path, release=number, **changes)


def releases(choose: Callable[[list[Any]], list[Any]], *, noise_sigma: float | None = None) -> Callable[[Path], None]:
    """Another list of releases in the merged ledger; another sum of their noise, if given."""

    def forge(path: Path) -> None:
        with h5py.File(path) as file:
            ledger = json.loads(file["ledger"][()])
        changes = {} if noise_sigma is None else {"noise_sigma": noise_sigma}
        forged = ledger | {"releases": choose(ledger["releases"])} | changes
        replace_text(path, "ledger", as_ledger_text(forged))

    return forge


MERGED_FORGERIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "dropped release of the largest epsilon": (
        releases(lambda entries: [entries[0], entries[2]]),
        r"^merged noise FAILS the ledger claims (?!1099511627776)[\d.]+; what the noise of the[^:|]*: [\d.]+$",
    ),
    "all releases but one dropped": (
        releases(lambda entries: entries[:1]),
        r"1 release\(s\) merged; allowed are 2 to 32",
    ),
    "more noise in all": (
        lambda path: forge_ledger(path, noise_sigma=2.0**40),
        r"^merged noise FAILS the ledger claims 1099511627776\.0; ",
    ),
    "smaller epsilon of one": (
        release_field(2, epsilon=1.0),
        r"^release 2: epsilon FAILS recomputed 3\.99\d+, claimed 1\.0, at delta 1e-05$",
    ),
    "smaller delta of one": (
        release_field(3, delta=1e-7),
        r"^release 3: epsilon FAILS recomputed 0\.1\d+, claimed 0\.1, at delta 1e-07$",
    ),
    "less noise of one": (
        release_field(1, sigma=2.0**26),
        r"merged noise FAILS .* release 1: epsilon FAILS .* release 1: coarsening step FAILS",
    ),
    "halved sensitivity of one": (
        release_field(3, sensitivity_squared=str(RECORD // 2)),
        r"^release 3: sensitivity FAILS the ledger claims",
    ),
    "another Opacus history of one": (
        release_field(2, opacus_state={"history": [[9.0, 1.0, 1]], "mechanism": "rdp"}),
        r"^release 2: Opacus state FAILS noise multiplier 9\.0",
    ),
    "one release twice": (
        releases(lambda entries: [*entries[:2], entries[1]]),
        r"ledger: releases 2 and 3 are the same one, [0-9a-f-]{36}: its records would be in two of them",
    ),
    "another relation of one": (
        release_field(3, relation="add-or-remove-one", sensitivity_squared=str(RECORD)),
        "ledger: release 3 cannot have been merged with release 1: its neighbouring relation is add-or-remove-one, not",
    ),
    "persons among images": (
        release_field(2, unit_of_privacy="one person"),
        "ledger: release 2 cannot have been merged with release 1: its unit of privacy is one person, not one image",
    ),
    "negative features of one": (
        release_field(2, non_negative_features=False),
        "ledger: release 2 cannot have been merged with release 1: its clamping of negative features is False, not",
    ),
    "another dimension of one": (
        release_field(2, feature_dimension=47),
        "ledger: release 2 cannot have been merged with release 1: its feature dimension is 47, not 48",
    ),
    "dropped column of the sum": (
        column_fewer,
        "^feature dimension FAILS the ledger claims 48; columns of the noisy sums: 47",
    ),
    "a merged ledger within": (
        releases(lambda entries: [{"schema_version": 2, "noise_sigma": 1.0, "releases": entries}] * 2),
        "release 1: ledger: the schema version is 2; this program reads version 1",
    ),
}


@pytest.mark.parametrize(("forge", "message"), MERGED_FORGERIES.values(), ids=MERGED_FORGERIES)
def test_a_forged_merged_ledger_is_found_with_a_message_of_its_own(
    merged: Path, forge: Callable[[Path], None], message: str
) -> None:
    assert call_limited(read_and_audit, merged).ending is Ending.RETURNED
    forge(merged)
    outcome = call_limited(read_and_audit, merged)
    assert outcome.ending is Ending.REFUSED, outcome
    assert re.search(message, audit_words(merged))


def test_no_message_of_a_merged_forgery_is_told_of_another(merged: Path) -> None:
    good = merged.read_bytes()
    for name, (forge, _) in MERGED_FORGERIES.items():
        merged.write_bytes(good)
        forge(merged)
        words = audit_words(merged)
        assert [other for other, (_, message) in MERGED_FORGERIES.items() if re.search(message, words)] == [name]


def test_a_release_dropped_together_with_its_noise_is_a_consistent_forgery_that_passes(merged: Path) -> None:
    """What KNOWN_LIMITS says of consistent forgeries: here is one, so that the page cannot become wrong unnoticed."""
    with h5py.File(merged) as file:
        sigmas = [entry["sigma"] for entry in json.loads(file["ledger"][()])["releases"]]
    kept = math.sqrt(math.fsum([sigmas[0] ** 2, sigmas[2] ** 2]))
    releases(lambda entries: [entries[0], entries[2]], noise_sigma=kept)(merged)
    assert audit(merged).exit_code == 0


def test_as_many_forged_releases_as_there_may_be_are_audited_in_time(tmp_path: Path) -> None:
    """Each with next to no noise, whose epsilon takes longest to recompute."""
    path = tmp_path / "all.h5"
    write_artifact(path, merge_artifacts([("part", example_artifact()) for _ in range(LARGEST_RELEASES)]))
    releases(lambda entries: [entry | {"sigma": 1.0 + number / 7} for number, entry in enumerate(entries)])(path)
    outcome = call_limited(only_audit, path)
    assert outcome.ending is Ending.RETURNED, outcome
    assert "NOT VALID: merged noise, release 1: epsilon" in outcome.message


def only_audit(path: Path) -> str:
    return audit(path).stdout


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
