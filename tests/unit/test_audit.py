"""The audit finds every inconsistent claim by name, shows what holds, and speaks to machines on stdout only."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from artifact_examples import example_artifact, forge_ledger
from click.testing import CliRunner, Result
from opacus.accountants import PRVAccountant

from dpmepf.artifacts import accountants, audit
from dpmepf.artifacts.accounting import calibrate_sigma, gaussian_delta
from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.audit import audit_artifact
from dpmepf.artifacts.audit_command import main
from dpmepf.artifacts.hdf5_file import read_artifact, write_artifact
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.tables import rounded_up
from dpmepf.shared.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "a.h5", example_artifact(relation=NeighbouringRelation.REPLACE_ONE))
    return tmp_path / "a.h5"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def failed_checks(path: Path) -> set[str]:
    return {check.name for check in audit_artifact(path).checks if not check.holds}


def test_an_honest_artifact_is_valid_and_its_json_has_what_scripts_read(path: Path) -> None:
    result = run(path, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and result.stderr == ""
    assert report["valid"] is True
    assert 1 - 1e-9 < report["epsilon"] <= 1.0 == report["claimed_epsilon"]
    assert report["delta"] == report["claimed_delta"] == 1e-5
    assert report["relation"] == "replace-one"
    assert report["dimension"] == 48
    assert report["classes"] == ["cat", "dog", "Übermut 7"]
    assert report["encoder"] == "builtin"
    optimum = calibrate_sigma(1.0, 1e-5, sensitivity=1.0)
    assert optimum <= report["sigma"] / report["sensitivity"] <= 1.001 * optimum
    assert report["unit_of_privacy"] == "one image"
    assert report["release_id"] == report["ledger"]["release_id"]
    assert all(check["holds"] for check in report["checks"])


def test_the_table_shows_claims_accountants_and_what_was_inferred(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a.h5", example_artifact(inferred_schema=("resolution",), dataset_name="[bold]x-rays"))
    result = run(tmp_path / "a.h5")
    assert result.exit_code == 0
    for text in ("Every claim holds", "inferred, treated as public", "resolution", "Opacus RDP", "Opacus PRV", "1.09"):
        assert text in result.stdout
    assert "[bold]x-rays" in result.stdout  # markup in names is text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delta": 1e-4, "epsilon": 10.0}, ""),
        ({"delta": 0.01}, "delta 0.01 is the"),
        ({"epsilon": 11.0}, "factor of e^11"),
    ],
)
def test_a_claim_that_holds_and_promises_next_to_nothing_is_called_weak(
    tmp_path: Path, changes: dict[str, float], said: str
) -> None:
    write_artifact(tmp_path / "a.h5", example_artifact(**changes))
    result = run(tmp_path / "a.h5")
    shown = " ".join(result.stdout.split())
    assert result.exit_code == 0 and "Every claim holds" in shown
    assert ("Weak: " in shown, said in shown) == (bool(said), True)


FORGERIES: list[tuple[dict[str, Any], set[str]]] = [
    ({"epsilon": 0.5}, {"epsilon"}),
    ({"delta": 1e-6}, {"epsilon"}),
    ({"sensitivity_squared": str((4**26 + 6710886**2) // 4)}, {"sensitivity"}),
    ({"relation": "add-or-remove-one"}, {"sensitivity", "Opacus state"}),
    ({"non_negative_features": False}, {"sensitivity", "epsilon", "Opacus state"}),
    ({"feature_dimension": 47}, {"feature dimension"}),
    ({"class_count": 4}, {"class count"}),
    ({"coarsening_exponent": 3}, {"coarsening step"}),
    ({"count_weight_lattice": 1}, {"lattice", "sensitivity", "Opacus state"}),
    ({"lattice_exponent": 25}, {"lattice", "sensitivity", "Opacus state"}),
    ({"sigma": 2.0**28}, {"Opacus state"}),
    ({"opacus_state": {"history": [[9.0, 1.0, 1]], "mechanism": "rdp"}}, {"Opacus state"}),
]


@pytest.mark.parametrize(("forgery", "expected"), FORGERIES, ids=lambda value: str(value)[:60])
def test_a_forged_claim_is_found_by_name(path: Path, forgery: dict[str, Any], expected: set[str]) -> None:
    forge_ledger(path, **forgery)
    assert expected <= failed_checks(path)


def test_halving_sigma_is_found_even_with_a_matching_opacus_state(path: Path) -> None:
    report = audit_artifact(path)
    ledger = report.ledger
    half = {"history": [[ledger.noise_multiplier / 2, 1.0, 1]], "mechanism": "rdp"}
    forge_ledger(path, sigma=ledger.sigma / 2, opacus_state=half, coarsening_exponent=ledger.coarsening_exponent - 1)
    assert failed_checks(path) == {"epsilon"}


def test_an_invalid_artifact_exits_with_1_and_still_prints_its_object(path: Path) -> None:
    forge_ledger(path, epsilon=0.25)
    result = run(path, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["valid"] is False
    assert report["epsilon"] > report["claimed_epsilon"] == 0.25
    table = run(path)
    assert table.exit_code == 1 and "NOT VALID: epsilon" in table.stdout


def test_a_forgery_with_next_to_no_noise_is_shown_and_not_computed_forever(path: Path) -> None:
    forge_ledger(path, sigma=1.0)
    result = run(path, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["epsilon"] > 1e10
    prv = [entry for entry in report["accountants"] if entry["accountant"] == "Opacus PRV"]
    assert all(entry["epsilon"] is None and "not available" in entry["note"] for entry in prv)


def test_epsilon_is_reported_at_another_delta_but_claims_are_judged_at_the_ledgers(path: Path) -> None:
    report = json.loads(run(path, "--json", "--delta", "1e-9").stdout)
    assert report["valid"] and report["delta"] == 1e-9
    assert 1.4 < report["epsilon"] < 1.6
    sigma, sensitivity = report["sigma"], report["sensitivity"]
    assert gaussian_delta(report["epsilon"], sensitivity=sensitivity, sigma=sigma) == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize("delta", ["0", "1", "-1", "nan", "x"])
def test_a_delta_out_of_range_is_a_usage_error(path: Path, delta: str) -> None:
    result = run(path, "--delta", delta)
    assert result.exit_code == 2 and result.stdout == ""


def test_the_library_refuses_a_delta_out_of_range(path: Path) -> None:
    with pytest.raises(UsageError, match="delta"):
        audit_artifact(path, delta=1.0)


def test_the_accountants_agree_within_what_each_promises(path: Path) -> None:
    report = audit_artifact(path)
    for relation in NeighbouringRelation:
        by_name = {e.accountant: e.epsilon for e in report.estimates if e.relation is relation}
        exact = by_name["exact"]
        assert exact is not None
        rdp, prv = by_name["Opacus RDP"], by_name["Opacus PRV"]
        assert rdp is not None and exact <= rdp <= 1.2 * exact
        assert prv is not None and exact <= prv <= exact + 0.03
    epsilons = {e.relation: e.epsilon for e in report.estimates if e.accountant == "exact"}
    replace, add = epsilons[NeighbouringRelation.REPLACE_ONE], epsilons[NeighbouringRelation.ADD_OR_REMOVE_ONE]
    assert replace is not None and add is not None and add < replace


def test_google_dp_accounting_agrees_with_the_exact_value(path: Path) -> None:
    pytest.importorskip("dp_accounting")
    report = audit_artifact(path)
    google = [e.epsilon for e in report.estimates if e.accountant == "Google dp_accounting"]
    exact = [e.epsilon for e in report.estimates if e.accountant == "exact"]
    assert google == pytest.approx(exact, rel=1e-9)


def test_an_accountant_that_is_missing_or_fails_is_shown_with_its_reason(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(multiplier: float, delta: float) -> float:
        raise RuntimeError("no convergence")

    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    monkeypatch.setattr(accountants, "_opacus_rdp", broken)
    report = audit_artifact(path)
    notes = {estimate.accountant: estimate.note for estimate in report.estimates}
    assert report.valid
    assert "not installed" in notes["Google dp_accounting"]
    assert notes["Opacus RDP"] == "not available: RuntimeError: no convergence"


def test_a_prv_result_below_the_exact_value_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PRVAccountant, "get_epsilon", lambda self, delta, **settings: 0.5)
    with pytest.raises(accountants.AccountantUnavailableError, match="below the exact value"):
        accountants._opacus_prv(3.7, 1e-5, 1.0)


def test_the_numbers_are_let_go_before_the_other_accountants_are_loaded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[Artifact]] = []

    def read(path: Path) -> Artifact:
        artifact = read_artifact(path)
        kept.append(weakref.ref(artifact))
        return artifact

    def estimates(*_: object, **__: object) -> tuple[accountants.Estimate, ...]:
        assert [artifact() for artifact in kept] == [None]
        return ()

    monkeypatch.setattr(audit, "read_artifact", read)
    monkeypatch.setattr(audit, "estimate_epsilons", estimates)
    assert audit_artifact(path).valid


def test_the_curve_falls_and_passes_through_the_claim(path: Path) -> None:
    curve = audit_artifact(path).curve
    deltas = [delta for _, delta in curve]
    assert deltas == sorted(deltas, reverse=True)
    assert dict(curve)[1.0] == pytest.approx(1e-5, rel=1e-6)


def test_a_missing_file_exits_with_2_and_an_unreadable_one_with_1_in_one_sentence(tmp_path: Path) -> None:
    missing = run(tmp_path / "none.h5", "--json")
    (tmp_path / "text.h5").write_text("hello")
    foreign = run(tmp_path / "text.h5", "--json")
    assert (missing.exit_code, foreign.exit_code) == (2, 1)
    for result in (missing, foreign):
        assert result.stdout == "" and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_usage_is_that_of_the_command_as_a_user_types_it() -> None:
    shown = CliRunner().invoke(main, ["--help"], prog_name="dpmepf-audit").stdout
    assert shown.startswith("Usage: dpmepf-audit [OPTIONS] FILE\n")


def test_shown_numbers_are_never_below_the_value() -> None:
    for value in (0.9999999999999999, 1 / 3, 2 / 3, 1.4999999e-7, 123456.7):
        assert float(rounded_up(value)) >= value
