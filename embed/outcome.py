"""What is said of a release that was interrupted or failed: read off the register and the file, not off what was meant.

A signal or a full disk can come at any moment, also between the register's entry (or the file's name) and
what follows it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.register import Register
from dpmepf.embed.checkpoint import Checkpoint
from dpmepf.shared.errors import DpmepfError, UsageError, without_details
from dpmepf.shared.image_errors import LocatedError
from dpmepf.shared.processes import StoppedByLauncherError

E = TypeVar("E", bound=BaseException)


class InterruptedReleaseError(KeyboardInterrupt):
    """Ctrl-C, and what became of the release. Nothing on the way may take it for an error, and go on."""


class StoppedReleaseError(DpmepfError):
    """A failure after the release was, perhaps, charged to the register or written."""


@dataclass
class Stage:
    """How far a release has come, for what is said if it goes no further."""

    output: Path
    """As it is called in what is said; `file` is the same, wherever the program goes."""
    register: Register | None = None
    checkpoint: Checkpoint | None = None
    ledger: Ledger | None = None
    """Once it is about to be charged."""
    artifact: Artifact | None = None
    """Once its noise is drawn."""
    file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.file = self.output.absolute()

    def charge(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def charged(self) -> str:
        """A clause on the charge, "" if there is none: a signal can come between the book's entry and our next line."""
        if self.ledger is None or self.register is None or not self.register.path.exists():
            return ""
        try:
            accounts = self.register.read().accounts.values()
        except DpmepfError:
            return f"the release may have been charged to {self.register.path}"
        entered = {release.ledger.release_id for account in accounts for release in account.releases}
        if self.ledger.release_id not in entered:
            return ""
        return f"the release was charged to {self.register.path} and stays charged"

    def released(self) -> bool:
        """Whether the output holds this very release: a signal can come when the file is complete already."""
        try:
            return self.artifact is not None and read_artifact(self.file).ledger == self.artifact.ledger
        except DpmepfError:
            return False


@contextmanager
def stopping_plainly(stage: Stage) -> Iterator[None]:
    """Say after Ctrl-C or a failure what was released and charged, and how to find an image that stopped the run."""
    try:
        yield
    except StoppedByLauncherError as error:
        raise _stopped(str(error), stage, StoppedReleaseError) from None
    except KeyboardInterrupt:
        raise _stopped("interrupted", stage, InterruptedReleaseError) from None
    except LocatedError as error:
        raise _with_the_way_to_it(error) from None
    except DpmepfError as error:
        if stage.artifact is None and not stage.charged():
            raise
        raise _stopped(str(error), stage, StoppedReleaseError) from None
    except Exception as error:
        if stage.artifact is None and not stage.charged():
            raise
        if os.environ.get("DPMEPF_DEBUG"):
            error.add_note(str(_stopped("the release was broken off", stage, StoppedReleaseError)))
            raise
        raise _stopped(without_details(error), stage, StoppedReleaseError) from None
    except BaseException as error:  # a program's own way to end
        if stage.artifact is not None or stage.charged():
            error.add_note(str(_stopped("the release was broken off", stage, StoppedReleaseError)))
        raise


def _with_the_way_to_it(error: LocatedError) -> DpmepfError:
    kind = UsageError if isinstance(error, UsageError) else DpmepfError
    return kind(f"{error} (--list-unreadable FILE writes down which it is)")


def _stopped(reason: str, stage: Stage, error: type[E]) -> E:
    with _no_further_signal():
        return error(_what_became_of_it(reason, stage))


@contextmanager
def _no_further_signal() -> Iterator[None]:
    """Let no second Ctrl-C cut off the look at register and file."""
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread only
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _what_became_of_it(reason: str, stage: Stage) -> str:
    if stage.released():
        rest = "" if stage.checkpoint is None else stage.checkpoint.delete()
        return f"{reason}; {stage.output} is complete: the release was made, and counts{rest and '; '}{rest}"
    charged = stage.charged()
    kept = None if stage.checkpoint is None or not stage.checkpoint.ours else stage.checkpoint.path
    if stage.artifact is None and not charged:
        if kept is not None:
            return f"{reason}: nothing was released; the same command goes on from {kept}, which is private"
        return f"{reason}: nothing was released and nothing was written"
    found = f"{stage.output} does not hold the release"
    rest = (
        "" if kept is None else f"; the same command goes on from {kept}, which is private, to release and charge anew"
    )
    return f"{reason}; {charged}, although {found}{rest}" if charged else f"{reason}; {found}{rest}"
