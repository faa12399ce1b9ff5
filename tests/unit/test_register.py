"""The register: exact composition, nothing over budget, nothing uncharged, and no entry changed unseen."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from artifact_examples import example_ledger
from click.testing import CliRunner

from dpmepf.artifacts.accounting import DiscreteGaussian, composed_delta, composed_epsilon, gaussian_epsilon
from dpmepf.artifacts.audit_command import main as audit
from dpmepf.artifacts.errors import RegisterBudgetError, RegisterError
from dpmepf.artifacts.register import Budget, Register
from dpmepf.artifacts.relation import NeighbouringRelation

ADD_OR_REMOVE, REPLACE = NeighbouringRelation.ADD_OR_REMOVE_ONE, NeighbouringRelation.REPLACE_ONE


def budget(epsilon: float = 2.0, delta: float = 1e-5, relation: NeighbouringRelation = ADD_OR_REMOVE) -> Budget:
    return Budget(epsilon=epsilon, delta=delta, relation=relation)


@pytest.fixture
def register(tmp_path: Path) -> Register:
    return Register(tmp_path / "state" / "register.sqlite")


# Composition


@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_releases_compose_to_one_gaussian_of_root_n_times_the_sensitivity(count: int) -> None:
    release = DiscreteGaussian(sensitivity=2.0**24, sigma=2.0**25.5, coordinates=100_000)
    composed = composed_epsilon(1e-5, [release] * count)
    single = gaussian_epsilon(1e-5, sensitivity=math.sqrt(count) * 2.0**24, sigma=2.0**25.5)
    assert single <= composed <= single * (1 + 1e-9)
    assert composed_delta(composed, [release] * count) <= 1e-5


def test_the_squares_of_unequal_releases_add_up() -> None:
    releases = [
        DiscreteGaussian(sensitivity=3.0 * 2**20, sigma=2.0**21, coordinates=1000),
        DiscreteGaussian(sensitivity=2.0**24, sigma=2.0**26, coordinates=50_000),
    ]
    single = gaussian_epsilon(1e-6, sensitivity=math.hypot(1.5, 0.25), sigma=1.0)
    assert single <= composed_epsilon(1e-6, releases) <= single * (1 + 1e-9)


def test_the_lattices_of_all_releases_are_paid_for() -> None:
    """At a coarse lattice the surcharge is visible, and grows with the number of releases at equal total μ."""
    whole = [DiscreteGaussian(sensitivity=20.0, sigma=40.0, coordinates=500)]
    halves = [DiscreteGaussian(sensitivity=20.0 / math.sqrt(2), sigma=40.0, coordinates=500)] * 2
    continuous = gaussian_epsilon(1e-5, sensitivity=20.0, sigma=40.0)
    assert continuous < composed_epsilon(1e-5, whole) < composed_epsilon(1e-5, halves)


def test_no_release_costs_nothing() -> None:
    assert (composed_delta(1.0, []), composed_epsilon(1e-5, [])) == (0.0, 0.0)


# Charging


def test_a_budget_holds_exactly_one_release_of_its_own_size(register: Register) -> None:
    register.charge(example_ledger(epsilon=2.0, delta=1e-5), budget=budget())
    account = register.accounts()["unnamed"]
    assert len(account.releases) == 1
    assert account.epsilon_spent() == pytest.approx(2.0, rel=1e-9)
    with pytest.raises(RegisterBudgetError, match="no epsilon at this delta would fit"):
        register.charge(example_ledger(epsilon=0.5, delta=1e-5))


def test_over_budget_says_what_would_fit_and_that_fits(register: Register) -> None:
    register.charge(example_ledger(), budget=budget())
    before = register.head()
    with pytest.raises(RegisterBudgetError) as refusal:
        register.charge(example_ledger(epsilon=1.9))
    message = str(refusal.value)
    assert "requested epsilon 1.9" in message
    assert "spent epsilon 1 of 2 " in message
    assert "remaining 1;" in message
    assert register.head() == before
    fitting = float(message.split("--eps ")[1].split()[0])
    assert 1.0 < fitting < 1.9  # less than the difference would be simple addition
    with pytest.raises(RegisterBudgetError):
        register.charge(example_ledger(epsilon=fitting * 1.02))
    register.charge(example_ledger(epsilon=fitting))


def test_data_sets_have_accounts_of_their_own(register: Register) -> None:
    register.charge(example_ledger(dataset_name="x-rays", epsilon=2.0), budget=budget())
    register.charge(example_ledger(dataset_name="skin", epsilon=0.5), budget=budget(epsilon=0.5, delta=1e-5))
    assert {name: len(account.releases) for name, account in register.accounts().items()} == {"x-rays": 1, "skin": 1}


def test_a_release_under_the_other_relation_counts_with_its_sensitivity_under_the_budgets(register: Register) -> None:
    """Calibrated for adding or removing one, replacing one (non-negative features) moves √2 as far."""
    ledger = example_ledger(epsilon=1.0)
    register.charge(ledger, budget=budget(relation=REPLACE))
    spent = register.accounts()["unnamed"].epsilon_spent()
    assert spent == pytest.approx(
        gaussian_epsilon(1e-5, sensitivity=math.sqrt(2) * ledger.sensitivity, sigma=ledger.sigma), rel=1e-9
    )


def test_a_budget_is_set_once(register: Register) -> None:
    register.set_budget("unnamed", budget())
    register.charge(example_ledger(epsilon=0.5), budget=budget())  # the same once more is no contradiction
    with pytest.raises(RegisterBudgetError, match="set once"):
        register.set_budget("unnamed", budget(epsilon=10.0))
    with pytest.raises(RegisterBudgetError, match="set once"):
        register.charge(example_ledger(epsilon=0.1), budget=budget(epsilon=10.0))
    assert len(register.accounts()["unnamed"].releases) == 1


def test_a_data_set_without_a_budget_is_refused_and_no_file_is_made(register: Register) -> None:
    with pytest.raises(RegisterBudgetError, match="knows no data set 'unnamed'"):
        register.check(example_ledger())
    assert not register.path.exists()


def test_a_release_is_charged_once(register: Register) -> None:
    ledger = example_ledger(epsilon=0.1)
    register.charge(ledger, budget=budget())
    with pytest.raises(RegisterError, match="already"):
        register.charge(ledger)


def test_checking_enters_nothing(register: Register) -> None:
    register.charge(example_ledger(epsilon=0.1), budget=budget())
    before = register.path.read_bytes()
    register.check(example_ledger(epsilon=0.1))
    with pytest.raises(RegisterBudgetError):
        register.check(example_ledger(epsilon=2.0))
    assert register.path.read_bytes() == before


def _charge(path: Path, barrier: multiprocessing.Barrier, outcome: multiprocessing.Queue) -> None:  # type: ignore[type-arg, valid-type]
    ledger = example_ledger(epsilon=1.2)
    barrier.wait()  # type: ignore[attr-defined]
    try:
        Register(path).charge(ledger, budget=budget())
        outcome.put("charged")  # type: ignore[attr-defined]
    except RegisterBudgetError:
        outcome.put("refused")  # type: ignore[attr-defined]


def test_processes_at_once_cannot_overspend(register: Register) -> None:
    """The budget holds two releases; six processes ask at the same moment, on a book that does not exist yet."""
    context = multiprocessing.get_context("spawn")
    barrier, outcome = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_charge, args=(register.path, barrier, outcome)) for _ in range(6)]
    for process in processes:
        process.start()
    outcomes = [outcome.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    account = register.accounts()["unnamed"]
    assert outcomes.count("charged") == len(account.releases) == 2
    assert account.delta_spent() <= 1e-5


def test_a_charge_stays_when_the_process_is_killed_right_after_it(register: Register) -> None:
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from artifact_examples import example_ledger; from dpmepf.artifacts.register import *\n"
        "from dpmepf.artifacts.relation import NeighbouringRelation as N\n"
        "book = Register(Path(sys.argv[1]))\n"
        "book.charge(example_ledger(), budget=Budget(epsilon=2.0, delta=1e-5, relation=N.ADD_OR_REMOVE_ONE))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = [sys.executable, "-c", program, str(register.path), str(Path(__file__).parent)]
    assert subprocess.run(arguments, check=False).returncode == -9
    assert len(register.accounts()["unnamed"].releases) == 1


# Tampering


def tamper(path: Path, statement: str, *values: object) -> None:
    """As somebody would who knows SQL but not the book: triggers dropped first."""
    connection = sqlite3.connect(path)
    for trigger in ("unchanged", "unremoved"):
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.execute(statement, values)
    connection.commit()
    connection.close()


@pytest.fixture
def three_entries(register: Register) -> Register:
    register.charge(example_ledger(epsilon=0.5), budget=budget())
    register.charge(example_ledger(epsilon=0.5))
    return register


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE number = 1",
        "DELETE FROM entries WHERE number = 2",
        "UPDATE entries SET content = replace(content, '0.5', '0.1') WHERE number = 2",
        "UPDATE entries SET hash = '0' WHERE number = 2",
        "UPDATE entries SET number = 9 WHERE number = 2",
        "INSERT INTO entries VALUES (4, '{}', '0')",
    ],
)
def test_an_entry_that_was_edited_or_removed_shows(statement: str, three_entries: Register) -> None:
    tamper(three_entries.path, statement)
    with pytest.raises(RegisterError, match="was edited, or one before it removed"):
        three_entries.accounts()
    with pytest.raises(RegisterError, match="was edited"):
        three_entries.charge(example_ledger(epsilon=0.1))


def test_an_edited_entry_with_its_own_hash_mended_breaks_the_next(three_entries: Register) -> None:
    from dpmepf.artifacts.register import _hash

    connection = sqlite3.connect(three_entries.path)
    content = connection.execute("SELECT content FROM entries WHERE number = 2").fetchone()[0].replace("0.5", "0.1")
    connection.close()
    tamper(three_entries.path, "UPDATE entries SET content = ?, hash = ? WHERE number = 2", content, _hash(content))
    with pytest.raises(RegisterError, match="entry 3 was edited"):
        three_entries.accounts()


def test_removing_the_last_entry_changes_the_last_hash(three_entries: Register) -> None:
    noted = three_entries.head()
    tamper(three_entries.path, "DELETE FROM entries WHERE number = 3")
    assert three_entries.head() != noted


def test_the_file_itself_refuses_changes(three_entries: Register) -> None:
    connection = sqlite3.connect(three_entries.path)
    for statement in ("DELETE FROM entries", "UPDATE entries SET hash = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("kind", ["text", "other database", "folder", "later version"])
def test_what_is_no_register_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "text":
        path.write_text("not a database, but some kilobytes of text " * 100)
    elif kind == "folder":
        path.mkdir()
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE other (x)")
        if kind == "later version":
            connection.execute(f"PRAGMA application_id = {0x64704D45}")
            connection.execute("PRAGMA user_version = 2")
        connection.commit()
        connection.close()
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(RegisterError):
        Register(path).charge(example_ledger(), budget=budget())
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RegisterError, match="cannot be created"):
        Register(tmp_path / "state" / "register.sqlite").set_budget("a", budget())


# The auditor's commands


def test_the_command_sets_a_budget_and_shows_history_and_total(register: Register) -> None:
    runner = CliRunner()
    options = ["--dataset", "[bold]x-rays", "--budget-eps", "2", "--budget-delta", "1e-5"]
    assert runner.invoke(audit, ["register", "init", str(register.path), *options]).exit_code == 0
    for epsilon in (0.5, 0.7):
        register.charge(example_ledger(dataset_name="[bold]x-rays", epsilon=epsilon))
    shown = runner.invoke(audit, [str(register.path)])
    assert shown.exit_code == 0
    assert "[bold]x-rays" in shown.stdout
    assert "within its budget" in shown.stdout
    report = json.loads(runner.invoke(audit, [str(register.path), "--json"]).stdout)
    assert report["valid"] is True
    assert report["head"] == register.head()
    (summary,) = report["datasets"]
    assert summary["epsilon"] == register.accounts()["[bold]x-rays"].epsilon_spent()
    assert [release["epsilon"] for release in summary["releases"]] == [0.5, 0.7]
    again = runner.invoke(audit, ["register", "init", str(register.path), *options])
    assert (again.exit_code, "set once" in again.output) == (1, True)


def test_the_command_says_when_a_register_was_tampered_with(three_entries: Register) -> None:
    tamper(three_entries.path, "DELETE FROM entries WHERE number = 2")
    result = CliRunner().invoke(audit, [str(three_entries.path)])
    assert result.exit_code == 1
    assert "was edited, or one before it removed" in result.output
