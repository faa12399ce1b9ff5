"""Errors a user can act on: one sentence saying what was found, what is allowed and what to do next."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full: free some space or choose another --output",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another --output",
    errno.EACCES: "permission was denied: choose a path you may read or write",
    errno.ENAMETOOLONG: "a file name is too long: choose a shorter one",
    errno.EPERM: "permission was denied: choose a path you may read or write",
    errno.EROFS: "the file system is read-only: choose another --output",
}


class DpmepfError(Exception):
    """Something outside the program is not as needed; the commands print the sentence and exit with `exit_code`.

    A message names what was found, what is allowed and the next step. It never holds a private value: no pixel,
    feature, count or name of a private record.
    """

    exit_code = 1


class UsageError(DpmepfError):
    """The request itself cannot be met (an option, a path or a combination of them)."""

    exit_code = 2


def without_details(error: Exception) -> str:
    """A sentence about an error that is no `DpmepfError`, whose own text may quote a private value or name."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return DISK_ERRORS[error.errno]
    ours = Path(__file__).parents[1]  # each package is a folder in it
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent.parent == ours]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return (
        f"internal error {type(error).__name__}{place}; its details are withheld because they could quote private "
        "data. On the custodian's machine, DPMEPF_DEBUG=1 shows them"
    )
