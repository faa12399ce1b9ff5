"""Trusted core: the custodian's own book of every release of every data set, which refuses what a budget does not hold.

An artifact shows one release; releases of the same records add up (accounts.py). The book is an SQLite file on the
custodian's machine. A release is entered, in one transaction with the check of the budget and flushed to the disk,
before its noise is drawn: it stays charged if the process dies, and two processes cannot spend the same budget. Entries
are never changed: each holds the hash of the one before, so that an edit or a removal in the middle shows. Whoever
writes all hashes anew, or cuts the end off, is seen only by somebody who noted a hash: `Book.head`, `Book.holds_hash`.

Proof: PROOF.md, section 6.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from dpmepf.artifacts.accounts import (
    Account,
    Budget,
    RegisteredRelease,
    account_to_charge,
    check_register_name,
    refuse_inconsistent,
    refuse_over_budget,
    refuse_similar_name,
)
from dpmepf.artifacts.atomic_file import write_atomically
from dpmepf.artifacts.errors import ArtifactError, ArtifactExistsError, RegisterBudgetError, RegisterError
from dpmepf.artifacts.ledger import ONE_IMAGE, Ledger
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.strict_json import parse_json
from dpmepf.shared.errors import DpmepfError

APPLICATION_ID = 0x64704D45  # "dpME"
VERSION = (
    2  # 1 knew no unit of privacy but one image: such a register is read, and becomes one of version 2 when written to
)
READABLE_VERSIONS = (1, VERSION)
NO_ENTRY = "0" * 64  # what the first entry holds in place of the hash of the one before
LOCK_SECONDS = 60.0
LONGEST_ENTRY = 20_000  # characters; a ledger has about 2,000
LONGEST_VALUE = 1_000_000  # bytes that SQLite hands out as one value

_OBJECTS = (  # the whole schema: type, name, table, and the statement that makes it
    (
        "table",
        "entries",
        "entries",
        "CREATE TABLE entries (number INTEGER PRIMARY KEY, content TEXT NOT NULL, hash TEXT NOT NULL) STRICT",
    ),
    (
        "trigger",
        "unchanged",
        "entries",
        "CREATE TRIGGER unchanged BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END",
    ),
    (
        "trigger",
        "unremoved",
        "entries",
        "CREATE TRIGGER unremoved BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END",
    ),
)

# The SQLite file's header (https://www.sqlite.org/fileformat.html, section 1.3)
SQLITE_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_FORMAT_VERSIONS = slice(18, 20)
_ROLLBACK_JOURNAL = b"\1\1"
_USER_VERSION = slice(60, 64)
_APPLICATION_ID = slice(68, 72)


@dataclasses.dataclass(frozen=True)
class Book:
    """What a register holds, read at one moment.

    Fields:
        accounts: every data set's, by name.
        hashes: of every entry, in order.
    """

    accounts: Mapping[str, Account]
    hashes: tuple[str, ...]

    @property
    def head(self) -> str:
        """The hash of the last entry: whoever notes it can tell later whether the entries so far were rewritten."""
        return self.hashes[-1] if self.hashes else NO_ENTRY

    def holds_hash(self, noted: str) -> bool:
        """Whether `noted`, once the last hash, still is that of an entry: if so, all up to it are as they were."""
        return noted == NO_ENTRY or noted in self.hashes


def files_of(register: Path) -> list[Path]:
    """The register and the files that SQLite makes and reads beside it."""
    return [register, *(register.with_name(register.name + ending) for ending in ("-journal", "-wal", "-shm"))]


def default_register() -> Path:
    """Where the book is kept unless said otherwise: the user's own state folder."""
    return platformdirs.user_state_path("dpmepf") / "register.sqlite"


class Register:
    """The book at `path`, which `charge` and `set_budget` create if it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()  # never one of SQLite's special names, such as :memory:

    def read(self) -> Book:
        """Every account and hash, checked.

        Raises:
            RegisterError: there is no book, it is damaged, locked for a minute, or an entry was edited or removed.
        """
        with self._transaction("BEGIN") as connection:
            entries = _entries(connection, self.path)
        return Book(accounts=_accounts(entries), hashes=tuple(entry.hash for entry in entries))

    def set_budget(self, dataset: str, budget: Budget) -> None:
        """Open an account, once.

        Raises:
            RegisterError: as `read`; or the data set has a budget, or its name is none or almost another's.
        """
        check_register_name(dataset)
        self._create()
        with self._transaction("BEGIN IMMEDIATE") as connection:
            entries = _entries(connection, self.path)
            accounts = _accounts(entries)
            if dataset in accounts:
                raise RegisterBudgetError(
                    f"the data set {dataset!a} has a budget already, which is set once: see dpmepf-audit {self.path}"
                )
            refuse_similar_name(accounts, dataset)
            _append(connection, entries, _budget_entry(dataset, budget))

    def check(self, ledger: Ledger, *, budget: Budget | None = None) -> None:
        """Refuse what `charge` would refuse now; enters nothing, and creates no file.

        Raises: as `charge`.
        """
        accounts: Mapping[str, Account] = {}
        if self._exists():
            with self._transaction("BEGIN IMMEDIATE") as connection:  # as charging would: shows that it may be written
                accounts = _accounts(_entries(connection, self.path))
        else:
            self._check_creatable()
        refuse_inconsistent(ledger)
        refuse_over_budget(account_to_charge(accounts, ledger, budget, self.path), ledger)

    def charge(self, ledger: Ledger, *, budget: Budget | None = None) -> None:
        """Enter `ledger`'s release on the account of its data set, before its noise is drawn.

        Guarantee:
            On return the entry is on the disk, and all entered releases of the data set together, this one included,
            are within its budget: (budget.epsilon, budget.delta)-DP under its relation.
        Assumes:
            Every release of the data set is charged to this book, and the book is the one that it was;
            `accounting.composed_delta`'s assumptions.
        Source:
            PROOF.md, section 6.

        Args:
            ledger: of the release to come; its `dataset_name` names the account.
            budget: of a data set that the book does not know yet; of one that it knows, it has to be the same.

        Raises:
            RegisterBudgetError: over budget, no budget, or another budget than is set: nothing is entered.
            RegisterError: as `read`; or the ledger's own numbers contradict each other.
        """
        self.check(ledger, budget=budget)  # before a file is made
        self._create()
        with self._transaction("BEGIN IMMEDIATE") as connection:
            entries = _entries(connection, self.path)
            accounts = _accounts(entries)
            account = account_to_charge(accounts, ledger, budget, self.path)
            charged = (release.ledger.release_id for known in accounts.values() for release in known.releases)
            if ledger.release_id in charged:
                raise RegisterError(f"the release {ledger.release_id} is in {self.path} already")
            refuse_over_budget(account, ledger)
            if ledger.dataset_name not in accounts:
                _append(connection, entries, _budget_entry(account.dataset, account.budget))
            _append(connection, entries, {"kind": "release", "ledger": ledger.to_dict()})
        if not self.read().holds_hash(entries[-1].hash):
            raise RegisterError(f"the register {self.path} did not keep what was entered: nothing may be released")

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """A transaction on an existing book; what it wrote is on the disk when it ends without an error."""
        self._check_header()
        try:
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None, uri=False)
            ) as connection:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
                for setting in ("synchronous = EXTRA", "fullfsync = ON", "trusted_schema = OFF"):
                    connection.execute(f"PRAGMA {setting}")
                connection.execute(begin)
                try:
                    _check_schema(connection, self.path)
                    yield connection
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise RegisterError(
                f"the register {self.path} cannot be used ({error}): check the file and its folder, or restore it from "
                "a copy that holds every release"
            ) from error

    def _exists(self) -> bool:
        try:
            return self.path.stat() is not None
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unreachable(error) from error

    def _check_header(self) -> None:
        """Refuse what is no register before SQLite opens it, so that it is left as it is."""
        if not self._exists():
            raise RegisterError(f"there is no register at {self.path}: dpmepf-audit register init begins one")
        if not self.path.is_file():
            raise RegisterError(f"{self.path} is no file: name the register's file")
        try:
            with self.path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
        except OSError as error:
            raise self._unreachable(error) from error
        application = int.from_bytes(header[_APPLICATION_ID], "big")
        if len(header) < _HEADER_BYTES or not header.startswith(SQLITE_MAGIC) or application != APPLICATION_ID:
            raise RegisterError(f"{self.path} is not a register, or was emptied: name the register's file")
        version = int.from_bytes(header[_USER_VERSION], "big")
        if version not in READABLE_VERSIONS:
            raise RegisterError(
                f"{self.path} is a register of version {version}; this program reads {VERSION} and older"
            )
        if header[_FORMAT_VERSIONS] != _ROLLBACK_JOURNAL:
            raise RegisterError(
                f"{self.path} was changed to another journal mode: PRAGMA journal_mode = DELETE mends it"
            )

    def _create(self) -> None:
        """Put an empty book at `path`, whole, unless something is there."""
        if self._exists():
            return
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            for _, _, _, statement in _OBJECTS:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            content = connection.serialize()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(ArtifactExistsError):  # another process was first
                write_atomically(self.path, content)
        except (OSError, ArtifactError) as error:
            raise RegisterError(
                f"the register {self.path} cannot be created: make room, or choose a folder that may be written to"
            ) from error

    def _check_creatable(self) -> None:
        folder = self.path.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise RegisterError(
                f"the register {self.path} cannot be created: {folder} is no folder that may be written to"
            )

    def _unreachable(self, error: OSError) -> RegisterError:
        return RegisterError(f"the register {self.path} cannot be reached ({error.strerror}): name another --register")


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a trigger, view or table that a register does not have: it could swallow entries."""
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    if found != sorted(_OBJECTS):
        raise RegisterError(f"{path}: its tables or triggers were changed: restore it from a copy")


@dataclasses.dataclass(frozen=True)
class _Entry:
    content: dict[str, Any]
    hash: str


def _entries(connection: sqlite3.Connection, path: Path) -> list[_Entry]:
    """Every entry, in order, each checked against its hash and the hash of the one before."""
    entries: list[_Entry] = []
    rows = connection.execute("SELECT number, content, hash FROM entries ORDER BY number")
    for number, (stored, text, digest) in enumerate(rows, start=1):
        broken = (
            f"{path}: entry {number} was edited, or one before it removed: restore the register from a copy "
            "that holds every release"
        )
        if stored != number or not isinstance(text, str) or len(text) > LONGEST_ENTRY or digest != _hash(text):
            raise RegisterError(broken)
        try:
            content = parse_json(text, f"{path}: entry {number}")
        except ArtifactError as error:
            raise RegisterError(str(error)) from error
        chained = isinstance(content, dict) and content.get("previous") == _last_hash(entries)
        if not chained or content.get("number") != number:
            raise RegisterError(broken)
        entries.append(_Entry(content, digest))
    return entries


def _append(connection: sqlite3.Connection, entries: list[_Entry], content: Mapping[str, Any]) -> None:
    number = len(entries) + 1
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    whole = {"number": number, "previous": _last_hash(entries), "time": time, **content}
    text = json.dumps(whole, sort_keys=True, allow_nan=False)
    if len(text) > LONGEST_ENTRY:
        raise RegisterError(f"the entry has {len(text)} characters; a register takes {LONGEST_ENTRY}")
    connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, text, _hash(text)))
    connection.execute(f"PRAGMA user_version = {VERSION}")
    entries.append(_Entry(whole, _hash(text)))


def _last_hash(entries: Sequence[_Entry]) -> str:
    return entries[-1].hash if entries else NO_ENTRY


def _accounts(entries: Sequence[_Entry]) -> dict[str, Account]:
    accounts: dict[str, Account] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            match entry.content:
                case {"kind": "budget", "dataset": dataset, "epsilon": epsilon, "delta": delta, "relation": relation}:
                    unit = entry.content.get("unit_of_privacy", ONE_IMAGE)  # the first books have no other
                    kept = NeighbouringRelation(relation)
                    budget = Budget(epsilon=epsilon, delta=delta, relation=kept, unit_of_privacy=unit)
                    check_register_name(dataset)
                    if dataset in accounts:
                        raise ValueError("a second budget")
                    accounts[dataset] = Account(dataset=dataset, budget=budget)
                case {"kind": "release", "ledger": fields, "time": time}:
                    ledger = Ledger.from_dict(fields)
                    account = accounts[ledger.dataset_name]
                    if ledger.unit_of_privacy != account.budget.unit_of_privacy:
                        raise ValueError("a release for another unit of privacy than the budget's")
                    charged = datetime.datetime.fromisoformat(time).isoformat(timespec="seconds")
                    release = RegisteredRelease(number=number, time=charged, ledger=ledger)
                    accounts[account.dataset] = dataclasses.replace(account, releases=(*account.releases, release))
                case _:
                    raise ValueError("an unknown kind")
        except (ArithmeticError, DpmepfError, KeyError, TypeError, ValueError) as error:
            raise RegisterError(f"entry {number} of the register is none that this program writes: {error}") from error
    return accounts


def _budget_entry(dataset: str, budget: Budget) -> dict[str, Any]:
    return {
        "kind": "budget",
        "dataset": dataset,
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "relation": budget.relation.value,
        "unit_of_privacy": budget.unit_of_privacy,
    }


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
