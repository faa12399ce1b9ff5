"""The register: exact composition, nothing over budget, nothing uncharged, and no entry changed unseen."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import artifact_examples
import pytest
from click.testing import CliRunner

from dpmepf.artifacts import register as register_module
from dpmepf.artifacts.accounting import DiscreteGaussian, composed_delta, composed_epsilon, gaussian_epsilon
from dpmepf.artifacts.accounts import Budget
from dpmepf.artifacts.audit_command import main as audit
from dpmepf.artifacts.errors import RegisterBudgetError, RegisterError
from dpmepf.artifacts.ledger import ONE_PERSON, Ledger
from dpmepf.artifacts.register import Register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.errors import DpmepfError

ADD_OR_REMOVE, REPLACE = NeighbouringRelation.ADD_OR_REMOVE_ONE, NeighbouringRelation.REPLACE_ONE


def example_ledger(**changes: Any) -> Ledger:
    return artifact_examples.example_ledger(**{"dataset_name": "clinic"} | changes)


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


def test_a_release_is_composed_as_the_mechanism_that_it_was(register: Register) -> None:
    ledger = example_ledger()
    register.charge(ledger, budget=budget())
    (mechanism,) = register.read().accounts["clinic"].mechanisms()
    assert (mechanism.sensitivity, mechanism.sigma, mechanism.coordinates) == (
        pytest.approx(math.sqrt(ledger.sensitivity_squared), rel=1e-12),
        ledger.sigma,
        ledger.class_count * (ledger.feature_dimension + 1),
    )


def test_no_release_costs_nothing() -> None:
    assert (composed_delta(1.0, []), composed_epsilon(1e-5, [])) == (0.0, 0.0)


# Charging


def test_a_budget_holds_exactly_one_release_of_its_own_size(register: Register) -> None:
    register.charge(example_ledger(epsilon=2.0, delta=1e-5), budget=budget())
    account = register.read().accounts["clinic"]
    assert len(account.releases) == 1
    assert account.epsilon_spent() == pytest.approx(2.0, rel=1e-9)
    with pytest.raises(RegisterBudgetError, match="no epsilon at this delta would fit"):
        register.charge(example_ledger(epsilon=0.5, delta=1e-5))


def test_over_budget_says_what_would_fit_and_that_fits(register: Register) -> None:
    register.charge(example_ledger(), budget=budget())
    before = register.read().head
    with pytest.raises(RegisterBudgetError) as refusal:
        register.charge(example_ledger(epsilon=1.9))
    message = str(refusal.value)
    assert "requested epsilon 1.9" in message
    assert "spent epsilon 1 of 2 " in message
    assert "remaining 1 by subtraction" in message
    assert register.read().head == before
    fitting = float(message.split("--eps ")[1].split()[0])
    assert 1.0 < fitting < 1.9  # less than the difference would be simple addition
    with pytest.raises(RegisterBudgetError):
        register.charge(example_ledger(epsilon=fitting * 1.02))
    register.charge(example_ledger(epsilon=fitting))


def test_data_sets_have_accounts_of_their_own(register: Register) -> None:
    register.charge(example_ledger(dataset_name="x-rays", epsilon=2.0), budget=budget())
    register.charge(example_ledger(dataset_name="skin", epsilon=0.5), budget=budget(epsilon=0.5, delta=1e-5))
    assert {name: len(account.releases) for name, account in register.read().accounts.items()} == {
        "x-rays": 1,
        "skin": 1,
    }


def test_a_release_under_the_other_relation_counts_with_its_sensitivity_under_the_budgets(register: Register) -> None:
    """Calibrated for adding or removing one, replacing one (non-negative features) moves √2 as far."""
    ledger = example_ledger(epsilon=1.0)
    register.charge(ledger, budget=budget(relation=REPLACE))
    spent = register.read().accounts["clinic"].epsilon_spent()
    assert spent == pytest.approx(
        gaussian_epsilon(1e-5, sensitivity=math.sqrt(2) * ledger.sensitivity, sigma=ledger.sigma), rel=1e-9
    )


def test_a_budget_is_set_once(register: Register) -> None:
    register.set_budget("clinic", budget())
    register.charge(example_ledger(epsilon=0.5), budget=budget())  # the same once more is no contradiction
    with pytest.raises(RegisterBudgetError, match="set once"):
        register.set_budget("clinic", budget(epsilon=10.0))
    with pytest.raises(RegisterBudgetError, match="set once"):
        register.charge(example_ledger(epsilon=0.1), budget=budget(epsilon=10.0))
    assert len(register.read().accounts["clinic"].releases) == 1


def test_a_data_set_without_a_budget_is_refused_and_no_file_is_made(register: Register) -> None:
    with pytest.raises(RegisterBudgetError, match="knows no data set 'clinic'"):
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
    account = register.read().accounts["clinic"]
    assert outcomes.count("charged") == len(account.releases) == 2
    assert account.delta_spent() <= 1e-5


def test_a_charge_stays_when_the_process_is_killed_right_after_it(register: Register) -> None:
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from artifact_examples import example_ledger; from dpmepf.artifacts.accounts import Budget\n"
        "from dpmepf.artifacts.register import Register\n"
        "from dpmepf.artifacts.relation import NeighbouringRelation as N\n"
        "book = Register(Path(sys.argv[1]))\n"
        "budget = Budget(epsilon=2.0, delta=1e-5, relation=N.ADD_OR_REMOVE_ONE)\n"
        "book.charge(example_ledger(dataset_name='clinic'), budget=budget)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = [sys.executable, "-c", program, str(register.path), str(Path(__file__).parent)]
    assert subprocess.run(arguments, check=False).returncode == -9
    assert len(register.read().accounts["clinic"].releases) == 1


def test_an_entry_is_on_the_disk_before_a_release(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SQLite's settings for that: a lost current is no test's to make."""
    append, found = register_module._append, []

    def looking(connection: sqlite3.Connection, *arguments: Any) -> None:
        names = ("synchronous", "fullfsync", "trusted_schema")
        found.append(tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names))
        append(connection, *arguments)

    monkeypatch.setattr(register_module, "_append", looking)
    register.charge(example_ledger(), budget=budget())
    assert found == [(3, 1, 0)] * 2  # EXTRA, ON, OFF; for the budget and for the release


def test_a_register_that_does_not_keep_the_entry_stops_the_release(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that says yes to every write: the entry is looked for after it was committed."""
    register.set_budget("clinic", budget())
    append = register_module._append

    def unstored(_: sqlite3.Connection, entries: list[Any], content: dict[str, Any]) -> None:
        elsewhere = sqlite3.connect(":memory:")
        elsewhere.execute("CREATE TABLE entries (number, content, hash)")
        append(elsewhere, entries, content)
        elsewhere.close()

    monkeypatch.setattr(register_module, "_append", unstored)
    with pytest.raises(RegisterError, match="did not keep"):
        register.charge(example_ledger())


# Tampering


def tamper(path: Path, statement: str, *values: object) -> None:
    """As somebody would who knows SQL: triggers dropped first, and put back."""
    connection = sqlite3.connect(path)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement, values)
    for _, sql in triggers:
        connection.execute(sql)
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
        three_entries.read()
    with pytest.raises(RegisterError, match="was edited"):
        three_entries.charge(example_ledger(epsilon=0.1))


def test_an_edited_entry_with_its_own_hash_mended_breaks_the_next(three_entries: Register) -> None:
    from dpmepf.artifacts.register import _hash

    connection = sqlite3.connect(three_entries.path)
    content = connection.execute("SELECT content FROM entries WHERE number = 2").fetchone()[0].replace("0.5", "0.1")
    connection.close()
    tamper(three_entries.path, "UPDATE entries SET content = ?, hash = ? WHERE number = 2", content, _hash(content))
    with pytest.raises(RegisterError, match="entry 3 was edited"):
        three_entries.read()


def test_removing_the_last_entry_changes_the_last_hash(three_entries: Register) -> None:
    noted = three_entries.read().head
    tamper(three_entries.path, "DELETE FROM entries WHERE number = 3")
    assert three_entries.read().head != noted


def test_the_file_itself_refuses_changes(three_entries: Register) -> None:
    connection = sqlite3.connect(three_entries.path)
    for statement in ("DELETE FROM entries", "UPDATE entries SET hash = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "addition",
    [
        "CREATE TRIGGER quiet BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER loud AFTER INSERT ON entries BEGIN DELETE FROM entries WHERE number = NEW.number; END",
        "CREATE TABLE other (x)",
        "CREATE VIEW other AS SELECT 1",
        "DROP TRIGGER unremoved",
    ],
)
def test_a_schema_that_could_swallow_entries_is_refused(addition: str, three_entries: Register) -> None:
    connection = sqlite3.connect(three_entries.path)
    connection.execute(addition)
    connection.commit()
    connection.close()
    with pytest.raises(RegisterError, match="tables or triggers were changed"):
        three_entries.charge(example_ledger(epsilon=0.1))


def contents(path: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [json.loads(text) for (text,) in connection.execute("SELECT content FROM entries ORDER BY number")]


def write_anew(path: Path, entries: list[dict[str, Any]]) -> None:
    """As somebody would who knows how hashes are chained."""
    previous = "0" * 64
    tamper(path, "DELETE FROM entries")
    for number, entry in enumerate(entries, start=1):
        content = json.dumps(entry | {"number": number, "previous": previous}, sort_keys=True)
        previous = register_module._hash(content)
        tamper(path, "INSERT INTO entries VALUES (?, ?, ?)", number, content, previous)


def test_a_book_whose_hashes_were_all_written_anew_shows_against_a_noted_hash(three_entries: Register) -> None:
    noted = three_entries.read().head
    three_entries.charge(example_ledger(epsilon=0.2))
    assert three_entries.read().holds_hash(noted)
    entries = contents(three_entries.path)
    del entries[1]
    write_anew(three_entries.path, entries)
    assert len(three_entries.read().accounts["clinic"].releases) == 2  # the chain alone cannot tell
    assert not three_entries.read().holds_hash(noted)
    result = CliRunner().invoke(audit, [str(three_entries.path), "--noted", noted])
    assert (result.exit_code, "NOT AS NOTED" in result.output) == (1, True)
    report = json.loads(CliRunner().invoke(audit, [str(three_entries.path), "--noted", noted, "--json"]).stdout)
    assert (report["valid"], report["as_noted"]) == (False, False)


def test_a_noted_hash_is_one_however_it_was_copied_and_no_alarm_is_raised_for_half_of_one(
    three_entries: Register,
) -> None:
    noted = three_entries.read().head
    for copied in (noted.upper(), f" {noted}\n"):
        assert CliRunner().invoke(audit, [str(three_entries.path), "--noted", copied]).exit_code == 0
    for part in (noted[:12], "ABC", ""):
        result = CliRunner().invoke(audit, [str(three_entries.path), "--noted", part])
        assert (result.exit_code, "NOT AS NOTED" in result.output) == (2, False)
        assert "--noted is no hash: give the last hash" in result.stderr


def test_a_second_budget_in_a_book_does_not_wipe_what_was_spent(three_entries: Register) -> None:
    entries = contents(three_entries.path)
    write_anew(three_entries.path, [*entries, entries[0]])
    with pytest.raises(RegisterError, match="a second budget"):
        three_entries.read()


def test_a_book_over_its_budget_is_shown_as_such(three_entries: Register) -> None:
    """As no charge makes it: two releases at epsilon 0.5, and a budget written down to 0.6 afterwards."""
    entries = contents(three_entries.path)
    write_anew(three_entries.path, [entries[0] | {"epsilon": 0.6}, *entries[1:]])
    result = CliRunner().invoke(audit, [str(three_entries.path)])
    assert (result.exit_code, "OVER BUDGET" in result.output) == (1, True)
    report = json.loads(CliRunner().invoke(audit, [str(three_entries.path), "--json"]).stdout)
    assert (report["valid"], [summary["within_budget"] for summary in report["datasets"]]) == (False, [False])


@pytest.mark.parametrize("name", [":memory:", "file:book?mode=memory", "file::memory:"])
def test_a_special_name_of_sqlite_is_a_file_like_any_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Register(Path(name)).charge(example_ledger(epsilon=2.0), budget=budget())
    with pytest.raises(RegisterBudgetError):
        Register(Path(name)).charge(example_ledger(epsilon=2.0), budget=budget())


def test_a_register_of_the_first_version_is_for_images_and_becomes_one_of_this_version_when_written_to(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(dataset: str, chosen: Budget) -> dict[str, object]:
        return {name: value for name, value in written(dataset, chosen).items() if name != "unit_of_privacy"}

    written = register_module._budget_entry
    with monkeypatch.context() as first:
        first.setattr(register_module, "VERSION", 1)
        first.setattr(register_module, "_budget_entry", entry)
        register.charge(example_ledger(epsilon=0.5), budget=budget())
    assert register.path.read_bytes()[63] == 1
    assert register.read().accounts["clinic"].budget.unit_of_privacy == "one image"
    register.charge(example_ledger(epsilon=0.5))
    assert register.path.read_bytes()[63] == 2
    assert len(register.read().accounts["clinic"].releases) == 2


def test_releases_for_persons_and_for_images_are_never_added_up(register: Register) -> None:
    register.charge(example_ledger(epsilon=0.5), budget=budget())
    with pytest.raises(RegisterError, match="do not add up"):
        register.read().accounts["clinic"].mechanisms(example_ledger(unit_of_privacy="one person"))


@pytest.mark.parametrize("kind", ["text", "empty", "other database", "folder", "pipe", "later version", "wal", "cut"])
def test_what_is_no_register_is_refused_and_left_alone(kind: str, three_entries: Register, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytearray(three_entries.path.read_bytes())
    match kind:
        case "text":
            path.write_text("not a database, but some kilobytes of text " * 100)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "other database":
            connection = sqlite3.connect(path)
            connection.execute("CREATE TABLE other (x)")
            connection.close()
        case _:
            if kind == "later version":
                content[63] = 3
            elif kind == "wal":
                content[18:20] = b"\2\2"
            path.write_bytes({"empty": b"", "cut": bytes(content[:5000])}.get(kind, bytes(content)))
    before = path.read_bytes() if path.is_file() else None
    for act in (Register(path).check, Register(path).charge):
        with pytest.raises(RegisterError):
            act(example_ledger(), budget=budget())
    assert (path.read_bytes() if path.is_file() else None) == before
    assert CliRunner().invoke(audit, [str(path)]).exit_code in (1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 10**400},
        {"epsilon": "2"},
        {"dataset": 5},
        {"dataset": "a\u001b[31m"},
        {"relation": "replace-onee"},
        {"kind": "gift"},
    ],
)
def test_an_entry_of_another_form_is_refused_whatever_its_hash(changes: dict[str, Any], register: Register) -> None:
    from dpmepf.artifacts.register import _hash

    register.set_budget("clinic", budget())
    connection = sqlite3.connect(register.path)
    text = connection.execute("SELECT content FROM entries").fetchone()[0]
    connection.close()
    content = json.dumps(json.loads(text) | changes)
    tamper(register.path, "UPDATE entries SET content = ?, hash = ?", content, _hash(content))
    with pytest.raises(RegisterError, match="entry 1"):
        register.read()


@pytest.mark.parametrize("name", ["", "unnamed", " x", "x ", "a\nb", "e\u0301", "n" * 201, "\udcff", "\x1b[31m"])
def test_a_name_that_could_not_be_told_or_charged_opens_no_account(name: str, register: Register) -> None:
    with pytest.raises(DpmepfError):
        register.set_budget(name, budget())
    with pytest.raises(DpmepfError):
        register.charge(example_ledger(dataset_name=name), budget=budget())
    assert not register.path.exists()


@pytest.mark.parametrize("name", ["Clinic", "cli nic", "cl\u2010inic", "ｃlinic"])
def test_a_name_that_is_almost_anothers_gets_no_budget_of_its_own(name: str, register: Register) -> None:
    register.charge(example_ledger(epsilon=0.1), budget=budget())
    for act in (
        lambda: register.set_budget(name, budget()),
        lambda: register.charge(example_ledger(dataset_name=name), budget=budget()),
    ):
        with pytest.raises(RegisterBudgetError, match="almost that of 'clinic'"):
            act()


@pytest.mark.parametrize(
    "forgery",
    [{"lattice_exponent": 16, "count_weight_lattice": 1}, {"non_negative_features": False, "relation": REPLACE}],
)
def test_a_ledger_that_contradicts_itself_is_not_charged(forgery: dict[str, Any], register: Register) -> None:
    ledger = dataclasses.replace(example_ledger(), **forgery)
    with pytest.raises(RegisterError, match="contradicts itself"):
        register.charge(ledger, budget=budget())
    assert not register.path.exists()


def test_a_folder_that_cannot_be_written_shows_before_anything_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # tests may run as root
    with pytest.raises(RegisterError, match="cannot be created"):
        Register(tmp_path / "state" / "register.sqlite").check(example_ledger(), budget=budget())


def test_a_path_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / ("n" * 300), tmp_path / "file" / "register.sqlite"):
        with pytest.raises(RegisterError):
            Register(path).check(example_ledger(), budget=budget())
        with pytest.raises(RegisterError):
            Register(path).set_budget("clinic", budget())


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
    assert report["head"] == register.read().head
    (summary,) = report["datasets"]
    assert summary["epsilon"] == register.read().accounts["[bold]x-rays"].epsilon_spent()
    assert [release["epsilon"] for release in summary["releases"]] == [0.5, 0.7]
    again = runner.invoke(audit, ["register", "init", str(register.path), *options])
    assert (again.exit_code, "set once" in again.output) == (1, True)


def test_the_command_keeps_the_budget_that_was_asked_for(register: Register) -> None:
    asked = Budget(epsilon=3.0, delta=1e-7, relation=REPLACE, unit_of_privacy=ONE_PERSON)
    options = ["--budget-eps", "3", "--budget-delta", "1e-7", "--relation", REPLACE.value, "--unit", ONE_PERSON]
    result = CliRunner().invoke(audit, ["register", "init", str(register.path), "--dataset", "clinic", *options])
    assert result.exit_code == 0, result.output
    assert register.read().accounts["clinic"].budget == asked


def test_the_command_says_when_a_register_was_tampered_with(three_entries: Register) -> None:
    tamper(three_entries.path, "DELETE FROM entries WHERE number = 2")
    result = CliRunner().invoke(audit, [str(three_entries.path)])
    assert result.exit_code == 1
    assert "was edited, or one before it removed" in result.output
