"""The log of a long measurement: one JSON object a line for each run, and what makes two runs the same run.

A table of many runs is made in several sessions: each appends to the same file, and leaves out what is in it already.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KEY = ("data", "method", "relation", "epsilon", "delta", "seed", "settings", "evaluation", "version")
"""What a run is of; all else in a record is its outcome, or where and when it was made."""

Record = dict[str, Any]


def key_of(record: Record) -> str:
    """What `record` is a run of, as text: equal for runs that need not be made twice."""
    return json.dumps({name: record[name] for name in KEY}, sort_keys=True)


def read_log(path: Path) -> list[Record]:
    """The records in `path`.

    Raises: ValueError for a line that is no record, such as the last one of a process that was killed, naming it.
    """
    records = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            key_of(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no record of a run: remove it") from error
        records.append(record)
    return records


def append_to_log(path: Path, record: Record) -> None:
    """Add one record at the end of `path`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def distinct(records: Iterable[Record]) -> list[Record]:
    """The first record of every run: one that is in two logs counts once."""
    found: dict[str, Record] = {}
    for record in records:
        found.setdefault(key_of(record), record)
    return list(found.values())
