"""Trusted core: the custodian's own book of every release of every data set, which refuses what a budget does not hold.

An artifact shows one release; releases of the same records add up. The book is an SQLite file on the custodian's
machine. A release is entered, in one transaction with the check of the budget and flushed to the disk, before its noise
is drawn: it stays charged if the process dies, and two processes cannot spend the same budget. Entries are never
changed: each holds the hash of the one before, so that one that was edited or removed from the middle shows; entries
removed from the end show only to somebody who noted the last hash, which is what `Register.head` is for.

Proof: PROOF.md, section 6.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from dpmepf.artifacts import accounting
from dpmepf.artifacts.claims import implied_sensitivity
from dpmepf.artifacts.errors import RegisterBudgetError, RegisterError
from dpmepf.artifacts.ledger import Ledger, plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.strict_json import parse_json
from dpmepf.shared.errors import DpmepfError, UsageError

APPLICATION_ID = 0x64704D45  # "dpME", in the file's header
VERSION = 1
NO_ENTRY = "0" * 64  # what the first entry holds in place of the hash of the one before
BUDGET, RELEASE = "budget", "release"
LOCK_SECONDS = 60.0
LONGEST_ENTRY = 20_000  # characters; a ledger has about 2,000
_FITTING_DIGITS = 3
_FITTING_HALVINGS = 12

_NEW_BOOK = (
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, content TEXT NOT NULL, hash TEXT NOT NULL) STRICT",
    "CREATE TRIGGER unchanged BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END",
    "CREATE TRIGGER unremoved BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What all releases of one data set may spend together. epsilon > 0, in nats; delta in (0, 1)."""

    epsilon: float
    delta: float
    relation: NeighbouringRelation

    def __post_init__(self) -> None:
        accounting.calibrate_sigma(self.epsilon, self.delta, sensitivity=1.0)  # refuses what is out of range


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisteredRelease:
    """One entry of the book: a release that was charged. time: UTC, ISO 8601."""

    number: int
    time: str
    ledger: Ledger


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """One data set's budget and releases."""

    dataset: str
    budget: Budget
    releases: tuple[RegisteredRelease, ...] = ()

    def epsilon_spent(self, delta: float | None = None) -> float:
        """ε of all releases together at `delta`, by default the budget's, rounded up; 0 for none."""
        return accounting.composed_epsilon(self.budget.delta if delta is None else delta, self.mechanisms())

    def delta_spent(self) -> float:
        """δ of all releases together at the budget's ε, rounded up; 0 for none."""
        return accounting.composed_delta(self.budget.epsilon, self.mechanisms())

    def mechanisms(self, *further: Ledger) -> list[accounting.DiscreteGaussian]:
        """The mechanisms of all releases and of `further` ones, with their sensitivities under the budget's relation.

        A release made under the other relation counts with what its mechanism's parameters imply under this one.
        """
        ledgers = [release.ledger for release in self.releases] + list(further)
        return [
            accounting.DiscreteGaussian(
                sensitivity=implied_sensitivity(ledger, self.budget.relation),
                sigma=ledger.sigma,
                coordinates=ledger.coordinates,
            )
            for ledger in ledgers
        ]

    def holds(self, ledger: Ledger) -> bool:
        """Whether the budget holds `ledger`'s release beside those made already."""
        return accounting.composed_delta(self.budget.epsilon, self.mechanisms(ledger)) <= self.budget.delta

    def largest_epsilon(self, ledger: Ledger) -> float:
        """The largest ε, rounded down to 3 digits, with which `ledger`'s release would fit; 0 if none does."""
        low, high = 0.0, ledger.epsilon
        for _ in range(_FITTING_HALVINGS):
            middle = low + (high - low) / 2
            low, high = (middle, high) if self._holds_at(ledger, middle) else (low, middle)
        return float(decimal.Context(prec=_FITTING_DIGITS, rounding=decimal.ROUND_DOWN).create_decimal(low))

    def _holds_at(self, ledger: Ledger, epsilon: float) -> bool:
        try:
            return self.holds(
                plan_release(
                    epsilon=epsilon,
                    delta=ledger.delta,
                    relation=ledger.relation,
                    feature_dimension=ledger.feature_dimension,
                    class_count=ledger.class_count,
                    non_negative_features=ledger.non_negative_features,
                )
            )
        except UsageError:  # too small an epsilon for 64-bit sums
            return False


def default_register() -> Path:
    """Where the book is kept unless said otherwise: the user's own state folder."""
    return platformdirs.user_state_path("dpmepf") / "register.sqlite"


class Register:
    """The book at `path`, which `charge` and `set_budget` create if it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def accounts(self) -> dict[str, Account]:
        """Every data set's account, by name, from entries whose hashes were checked.

        Raises:
            RegisterError: there is no book, it is damaged, locked for a minute, or an entry was edited or removed.
        """
        with self._open(create=False) as book:
            return _accounts(_entries(book, self.path))

    def head(self) -> str:
        """The hash of the last entry: whoever notes it can tell later whether entries were removed after it."""
        with self._open(create=False) as book:
            return _last_hash(_entries(book, self.path))

    def set_budget(self, dataset: str, budget: Budget) -> None:
        """Open an account, once.

        Raises:
            RegisterError: as `accounts`; or the data set has a budget.
        """
        with self._writing() as book:
            entries = _entries(book, self.path)
            if dataset in _accounts(entries):
                raise RegisterBudgetError(
                    f"the data set {dataset!a} has a budget already, which is set once: see dpmepf-audit {self.path}"
                )
            _append(book, entries, _budget_entry(dataset, budget))

    def check(self, ledger: Ledger, *, budget: Budget | None = None) -> None:
        """Refuse what `charge` would refuse now; enters nothing, and creates no file.

        Raises: as `charge`.
        """
        accounts = self.accounts() if self.path.exists() else {}
        _refuse_over_budget(_account_for(accounts, ledger, budget, self.path), ledger)

    def charge(self, ledger: Ledger, *, budget: Budget | None = None) -> None:
        """Enter `ledger`'s release on the account of its data set, before its noise is drawn.

        Guarantee:
            On return the entry is on the disk, and all entered releases of the data set together, this one included,
            are within its budget: (budget.epsilon, budget.delta)-DP under its relation.
        Assumes:
            Every release of the data set is charged to this book; `accounting.composed_delta`'s assumptions.
        Source:
            PROOF.md, section 6.

        Args:
            ledger: of the release to come; its `dataset_name` names the account.
            budget: of a data set that the book does not know yet; of one that it knows, it has to be the same.

        Raises:
            RegisterBudgetError: over budget, no budget, or another budget than is set: nothing is entered.
            RegisterError: as `accounts`.
        """
        with self._writing() as book:
            entries = _entries(book, self.path)
            accounts = _accounts(entries)
            account = _account_for(accounts, ledger, budget, self.path)
            charged = (release.ledger.release_id for known in accounts.values() for release in known.releases)
            if ledger.release_id in charged:
                raise RegisterError(f"the release {ledger.release_id} is in {self.path} already")
            _refuse_over_budget(account, ledger)
            if ledger.dataset_name not in accounts:
                _append(book, entries, _budget_entry(account.dataset, account.budget))
            _append(book, entries, {"kind": RELEASE, "ledger": ledger.to_dict()})

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process can be in; on the disk when it ends without an error."""
        with self._open(create=True) as book:
            book.execute("BEGIN IMMEDIATE")
            try:
                if not _is_book(book):
                    for statement in _NEW_BOOK:
                        book.execute(statement)
                yield book
            except BaseException:
                book.execute("ROLLBACK")
                raise
            book.execute("COMMIT")

    @contextlib.contextmanager
    def _open(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        if self.path.is_dir():
            raise RegisterError(f"{self.path} is a folder: name the register's file")
        if not self.path.exists():
            if not create:
                raise RegisterError(f"there is no register at {self.path}: dpmepf-audit register init begins one")
            self._create()
        try:
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("PRAGMA trusted_schema = OFF")
                _refuse_other_files(connection, self.path)
                yield connection
        except sqlite3.Error as error:
            raise RegisterError(
                f"the register {self.path} cannot be used ({error}): check the file and its folder, or restore it from "
                "a copy"
            ) from error

    def _create(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
        except OSError as error:
            raise RegisterError(
                f"the register {self.path} cannot be created ({error.strerror}): name another file with --register"
            ) from error


def _refuse_other_files(book: sqlite3.Connection, path: Path) -> None:
    application = book.execute("PRAGMA application_id").fetchone()[0]
    version = book.execute("PRAGMA user_version").fetchone()[0]
    tables = book.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and (tables or application):
        raise RegisterError(f"{path} is an SQLite file of another program: name the register's file")
    if application == APPLICATION_ID and version != VERSION:
        raise RegisterError(f"{path} is a register of version {version}; this program reads version {VERSION}")


def _is_book(book: sqlite3.Connection) -> bool:
    return bool(book.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)


@dataclasses.dataclass(frozen=True)
class _Entry:
    content: dict[str, Any]
    hash: str


def _entries(book: sqlite3.Connection, path: Path) -> list[_Entry]:
    """Every entry, in order, each checked against its hash and the hash of the one before."""
    if not _is_book(book):
        return []
    entries: list[_Entry] = []
    rows = book.execute("SELECT number, content, hash FROM entries ORDER BY number")
    for number, (stored, text, digest) in enumerate(rows, start=1):
        broken = f"{path}: entry {number} was edited, or one before it removed: restore the register from a copy"
        if stored != number or not isinstance(text, str) or len(text) > LONGEST_ENTRY or digest != _hash(text):
            raise RegisterError(broken)
        content = parse_json(text, f"{path}: entry {number}")
        chained = isinstance(content, dict) and content.get("previous") == _last_hash(entries)
        if not chained or content.get("number") != number:
            raise RegisterError(broken)
        entries.append(_Entry(content, digest))
    return entries


def _append(book: sqlite3.Connection, entries: list[_Entry], content: Mapping[str, Any]) -> None:
    number = len(entries) + 1
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    whole = {"number": number, "previous": _last_hash(entries), "time": time, **content}
    text = json.dumps(whole, sort_keys=True, allow_nan=False)
    book.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, text, _hash(text)))
    entries.append(_Entry(whole, _hash(text)))


def _last_hash(entries: Sequence[_Entry]) -> str:
    return entries[-1].hash if entries else NO_ENTRY


def _accounts(entries: Sequence[_Entry]) -> dict[str, Account]:
    accounts: dict[str, Account] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            match entry.content:
                case {"kind": "budget", "dataset": dataset, "epsilon": epsilon, "delta": delta, "relation": relation}:
                    budget = Budget(epsilon=epsilon, delta=delta, relation=NeighbouringRelation(relation))
                    if dataset in accounts:
                        raise ValueError("a second budget")
                    accounts[dataset] = Account(dataset=dataset, budget=budget)
                case {"kind": "release", "ledger": fields, "time": time}:
                    ledger = Ledger.from_dict(fields)
                    account = accounts[ledger.dataset_name]
                    release = RegisteredRelease(number=number, time=time, ledger=ledger)
                    accounts[account.dataset] = dataclasses.replace(account, releases=(*account.releases, release))
                case _:
                    raise ValueError("an unknown kind")
        except (DpmepfError, KeyError, TypeError, ValueError) as error:
            raise RegisterError(f"entry {number} of the register is none that this program writes: {error}") from error
    return accounts


def _account_for(accounts: Mapping[str, Account], ledger: Ledger, budget: Budget | None, path: Path) -> Account:
    dataset = ledger.dataset_name
    account = accounts.get(dataset)
    if account is None:
        if budget is None:
            raise RegisterBudgetError(
                f"the register {path} knows no data set {dataset!a}: set its budget once, with --budget-eps and "
                "--budget-delta, or check the name"
            )
        return Account(dataset=dataset, budget=budget)
    if budget is not None and budget != account.budget:
        raise RegisterBudgetError(
            f"the data set {dataset!a} has the budget epsilon {account.budget.epsilon:g}, delta "
            f"{account.budget.delta:g}, {account.budget.relation.value}, which is set once: leave --budget-eps and "
            "--budget-delta out"
        )
    return account


def _refuse_over_budget(account: Account, ledger: Ledger) -> None:
    if account.holds(ledger):
        return
    budget = account.budget
    spent = account.epsilon_spent()
    fitting = account.largest_epsilon(ledger)
    advice = f"--eps {fitting:g} at this delta would fit" if fitting > 0 else "no epsilon at this delta would fit"
    raise RegisterBudgetError(
        f"the data set {account.dataset!a} is out of budget for this release: requested epsilon {ledger.epsilon:g}, "
        f"delta {ledger.delta:g}; spent epsilon {spent:.4g} of {budget.epsilon:g} at delta {budget.delta:g} "
        f"({budget.relation.value}), remaining {max(budget.epsilon - spent, 0.0):.4g}; {advice}; "
        "nothing was charged and nothing was released"
    )


def _budget_entry(dataset: str, budget: Budget) -> dict[str, Any]:
    return {
        "kind": BUDGET,
        "dataset": dataset,
        "epsilon": float(budget.epsilon),
        "delta": float(budget.delta),
        "relation": budget.relation.value,
    }


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
