"""The exact sums of a run that is not finished, in a file on the custodian's own disk: private, and without noise.

Only the owner may read it, it is asked for by name, and it is deleted when the release is written. It makes nothing be
released that a new run would not: a release from it is charged as any other. `PROOF.md`, claim 9.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dpmepf.artifacts.atomic_file import write_atomically
from dpmepf.artifacts.errors import ArtifactError, ArtifactExistsError
from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON
from dpmepf.embed.summing import ClassSums, PartialSums
from dpmepf.shared.errors import UsageError

FORMAT = 1
_OVERHEAD = 1 << 16  # bytes of a file besides the sums
_OWNER_ONLY = 0o600
_OTHERS = 0o077
_HEADER = 7


class CheckpointError(UsageError):
    """The file cannot be read, is not the owner's alone, is damaged, or belongs to another run."""


@dataclass(kw_only=True)
class Checkpoint:
    """Where a run keeps its sums.

    path: the file.
    interval_seconds: from one writing to the next, at least. largest_share: of the time, that writing may take.
    say: called with a sentence for the custodian.
    """

    path: Path
    interval_seconds: float = 10.0
    largest_share: float = 0.02
    say: Callable[[str], None] = lambda sentence: None
    ours: bool = field(default=False, init=False)
    """Whether the file is this run's, since `restore`."""
    _fingerprint: bytes = field(default=b"", init=False, repr=False)
    _due: float = field(default=math.inf, init=False, repr=False)

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() >= self._due

    def restore(self, sums: ClassSums, *, fingerprint: bytes) -> int:
        """Put into the empty `sums` what the file holds of this very run; without a file, nothing, and begin one.

        Args:
            fingerprint: 32 bytes, the same for the same images in the same order under the same options.
        Returns: how many of the run's places, from the first, are done; the images of those after them are to be added.
        Raises: CheckpointError for a file that cannot be used, or is of another run, or cannot be begun as one that is
            its owner's alone.
        """
        self._fingerprint, self._due = fingerprint, time.monotonic() + self.interval_seconds
        content = self._read(largest=8 * sums.class_count * (sums.dimension + 1) + _OVERHEAD)
        if content is None:
            self._begin(sums)
            self.say(f"exact sums are kept in {self.path} until the artifact is written; that file is private")
            return 0
        done = self._restore(sums, content)
        self.ours = True
        self.say(f"going on from {self.path}")
        return done

    def _restore(self, sums: ClassSums, content: bytes) -> int:
        try:
            stored = load(content)
        except (SafetensorError, ValueError, TypeError, KeyError):
            raise self._damaged() from None
        kinds = {name: (array.dtype.str, array.ndim) for name, array in stored.items()}
        if kinds != {"header": ("<i8", 1), "fingerprint": ("|u1", 1), "digest": ("|u1", 1), "totals": ("<i8", 2)}:
            raise self._damaged()
        header, totals = stored["header"], stored["totals"]
        if stored["digest"].tobytes() != _digest(header, stored["fingerprint"], totals) or len(header) != _HEADER:
            raise self._damaged()
        version, done, images, non_negative, by_person, first, last = header.tolist()
        if version != FORMAT or stored["fingerprint"].tobytes() != self._fingerprint:
            raise CheckpointError(
                f"{self.path} keeps the sums of another run (other images, changed files, other options or versions): "
                "give the command that it was made by, or delete it to begin again"
            )
        sums.restore(
            PartialSums(
                process=0,
                non_negative=bool(non_negative),
                unit_of_privacy=ONE_PERSON if by_person else ONE_IMAGE,
                images=images,
                persons=(first, last) if first <= last else None,
                totals=totals,
            )
        )
        return int(done)

    def save(self, part: PartialSums, *, done: int) -> None:
        """Replace the file by `part`, in which the first `done` places of the run that `restore` began are summed.

        Where it cannot be written the file stays as it was, and the run goes on.
        """
        began = time.monotonic()
        try:
            write_atomically(self.path, self._content(part, done), force=True, mode=_OWNER_ONLY)
        except (ArtifactError, ArtifactExistsError, OSError) as error:
            self.say(f"the sums could not be kept in {self.path} ({_reason(error)}); the run goes on")
        now = time.monotonic()
        self._due = now + max(self.interval_seconds, (now - began) / self.largest_share)

    def delete(self) -> str:
        """Remove the file, if it is this run's, and what a killed process may have left beside it.

        Returns: a sentence on what could not be removed; "" if nothing is left.
        """
        if not self.ours:
            return ""
        partial = re.compile(rf"\.{re.escape(self.path.name[:100])}\.[0-9a-f]{{16}}\.partial")
        try:
            self.path.unlink(missing_ok=True)
            for file in self.path.parent.iterdir():
                if partial.fullmatch(file.name):
                    file.unlink(missing_ok=True)
        except OSError as error:
            return f"delete {self.path}, which holds exact sums and could not be deleted ({error.strerror})"
        return ""

    def _begin(self, sums: ClassSums) -> None:
        """Write the file, without any sum, where there is none."""
        if not self.path.parent.is_dir():
            raise CheckpointError(f"the folder {self.path.parent} does not exist: create it or name another file")
        try:
            write_atomically(self.path, self._content(sums.checkpoint(), 0), mode=_OWNER_ONLY)
            self.ours = True
            mode = self.path.stat().st_mode
        except (ArtifactError, ArtifactExistsError, OSError) as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({_reason(error)}): name another file with --checkpoint"
            ) from None
        if mode & _OTHERS:
            self.delete()
            raise CheckpointError(
                f"where {self.path} would be, others can read it: name a file on a file system with permissions"
            )

    def _content(self, part: PartialSums, done: int) -> bytes:
        first, last = part.persons or (0, -1)
        by_person = part.unit_of_privacy == ONE_PERSON
        header = np.array([FORMAT, done, part.images, part.non_negative, by_person, first, last], np.int64)
        whose = np.frombuffer(self._fingerprint, np.uint8)
        digest = np.frombuffer(_digest(header, whose, part.totals), np.uint8)
        return save({"header": header, "fingerprint": whose, "totals": part.totals, "digest": digest})

    def _read(self, *, largest: int) -> bytes | None:
        try:
            with open(self.path, "rb", opener=_open_itself) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise CheckpointError(f"{self.path} is no file: name another one with --checkpoint")
                if found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
                    raise CheckpointError(
                        f"{self.path} is not yours alone, so that what it holds may be another's: name another file"
                    )
                if found.st_size > largest:
                    raise self._damaged()
                return file.read(largest)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be read ({error.strerror}): name another file with --checkpoint"
            ) from None

    def _damaged(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is no checkpoint, or a damaged one: name another file with --checkpoint (or delete it, if it "
            "was one of yours)"
        )


def _open_itself(path: str, flags: int) -> int:
    """Open a file and not what it may be a link to, without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _reason(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__cause__
    return cause.strerror or "it failed" if isinstance(cause, OSError) else "something is in the way"


def _digest(header: npt.NDArray[np.int64], fingerprint: npt.NDArray[np.uint8], totals: npt.NDArray[np.int64]) -> bytes:
    digest = hashlib.sha256()
    for array in (header, fingerprint, np.array(totals.shape, np.int64), totals):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
