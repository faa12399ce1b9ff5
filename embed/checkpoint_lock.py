"""One run at a time keeps its sums in a file: a lock of the kernel's, which ends with the process, however that ends.

It is on an empty file beside the checkpoint, as the checkpoint itself is another file after each writing. That file is
removed with the lock; one that a killed process left behind is in nobody's way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import weakref
from pathlib import Path

_OWNER_ONLY = 0o600


def lock_file(path: Path) -> Path:
    """The file whose lock whoever keeps sums in `path` holds."""
    return path.with_name(f".{path.name}.lock")


class Lock:
    """The lock on a file that is made for it, held until `let_go`, or until nobody has this object any more."""

    def __init__(self, file: Path) -> None:
        """Raises: BlockingIOError if another run holds it, or another OSError if it cannot be had."""
        self._descriptor = _locked(file)
        self.let_go = weakref.finalize(self, _unlock, file, self._descriptor)
        _held.add(self)

    def leave_to_parent(self) -> None:
        """In a forked process: the lock is the parent's, and must not outlive it here."""
        if self.let_go.detach() is not None:
            os.close(self._descriptor)


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for lock in list(_held):
        lock.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)


def _locked(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, _OWNER_ONLY)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size:
                raise FileExistsError(errno.EEXIST, f"{file.name} is something else")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a run that ended just now, and removed it: the next has another one


def _unlock(file: Path, descriptor: int) -> None:
    try:
        if _is_at(file, descriptor):
            file.unlink()  # while it is locked, so that nobody's is removed
    except OSError:  # it is empty: nothing is lost by leaving it
        pass
    finally:
        os.close(descriptor)


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
