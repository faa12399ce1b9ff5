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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dpmepf.artifacts.atomic_file import write_atomically
from dpmepf.artifacts.errors import ArtifactError, ArtifactExistsError
from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON
from dpmepf.embed.checkpoint_lock import Lock, lock_file
from dpmepf.embed.summing import ClassSums, PartialSums
from dpmepf.shared.errors import UsageError

FORMAT = 2
_OVERHEAD = 1 << 16  # bytes of a file besides the sums
_OWNER_ONLY = 0o600
_OTHERS = 0o077
_HEADER = 7
_HASH = 32  # bytes of a SHA-256
_NO_PROBE = bytes(_HASH)  # where there is no sum yet


class CheckpointError(UsageError):
    """The file cannot be read, is not the owner's alone, is damaged, in use, or belongs to another run."""


@dataclass(kw_only=True)
class Checkpoint:
    """Where a run keeps its sums.

    path: the file.
    interval_seconds: from one writing to the next, at least. largest_share: of the time, that writing may take.
    say: called with a sentence for the custodian. warn: with one on what is not as it should be.
    """

    path: Path
    interval_seconds: float = 10.0
    largest_share: float = 0.02
    say: Callable[[str], None] = lambda sentence: None
    warn: Callable[[str], None] = lambda sentence: None
    ours: bool = field(default=False, init=False)
    """Whether the file is this run's, since `restore`."""
    _fingerprint: bytes = field(default=b"", init=False, repr=False)
    _probe: bytes = field(default=_NO_PROBE, init=False, repr=False)
    _due: float = field(default=math.inf, init=False, repr=False)
    _lock: Lock | None = field(default=None, init=False, repr=False)
    _failed: bool = field(default=False, init=False, repr=False)

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() >= self._due

    def restore(self, sums: ClassSums, *, fingerprint: bytes, places: int, skipping: bool) -> int:
        """Put into the empty `sums` what the file holds of this very run; without a file, nothing, and begin one.

        From then on, until `delete` or `let_go`, no other run has the file.

        Args:
            fingerprint: 32 bytes, the same for the same images in the same order under the same options.
            places: how many images the run has. skipping: whether it may leave some out.
        Returns: how many of the run's places, from the first, are done; the images of those after them are to be added.
        Raises: CheckpointError for a file that cannot be used, or is of another run, or in use by one, or cannot be
            begun as one that is its owner's alone.
        """
        self._fingerprint, self._due = fingerprint, time.monotonic() + self.interval_seconds
        self._take_lock()
        try:
            return self._begin_or_go_on(sums, places, skipping)
        except BaseException:
            self.let_go()
            raise

    def require_same_features(self, probe: bytes) -> None:
        """Stop unless the sums that `restore` found are of an encoder that made the same of public images as this one.

        probe: 32 bytes, a hash of all bits of their features, that is kept with the sums from now on.
        Raises: CheckpointError; the file stays as it is.
        """
        if self._probe not in (_NO_PROBE, probe):
            raise CheckpointError(
                f"{self.path} keeps sums of features that this machine computes otherwise: go on where it was begun, "
                "on the same processor or GPU with as many threads, or delete it to begin again"
            )
        self._probe = probe

    def _take_lock(self) -> None:
        if not self.path.parent.is_dir():
            raise CheckpointError(f"the folder {self.path.parent} does not exist: create it or name another file")
        try:
            self._lock = Lock(lock_file(self.path))
        except BlockingIOError:
            raise CheckpointError(
                f"another run is keeping its sums in {self.path}: wait until it ends, or name another file with "
                "--checkpoint"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be locked against other runs ({error.strerror}): name another file with "
                "--checkpoint"
            ) from None

    def let_go(self) -> None:
        """Let other runs have the file, which stays as it is."""
        if self._lock is not None:
            self._lock.let_go()

    def _begin_or_go_on(self, sums: ClassSums, places: int, skipping: bool) -> int:
        content = self._read(largest=8 * sums.class_count * (sums.dimension + 1) + _OVERHEAD)
        if content is None:
            self._begin(sums)
            self.say(f"exact sums are kept in {self.path} until the artifact is written; that file is private")
            return 0
        done = self._restore(sums, content, places, skipping)
        self.ours = True
        self.say(f"going on from {self.path}")
        return done

    def _restore(self, sums: ClassSums, content: bytes, places: int, skipping: bool) -> int:
        try:
            stored = load(content)
        except (SafetensorError, ValueError, TypeError, KeyError):
            raise self._damaged() from None
        kinds = {name: (array.dtype.str, array.ndim) for name, array in stored.items()}
        hashes = dict.fromkeys(("fingerprint", "probe", "digest"), ("|u1", 1))
        if kinds != {"header": ("<i8", 1), "totals": ("<i8", 2), **hashes}:
            raise self._damaged()
        header, totals, probe = stored["header"], stored["totals"], stored["probe"]
        digest = _digest(header, stored["fingerprint"], probe, totals)
        if stored["digest"].tobytes() != digest or (len(header), len(probe)) != (_HEADER, _HASH):
            raise self._damaged()
        version, done, images, non_negative, by_person, first, last = header.tolist()
        if version != FORMAT or stored["fingerprint"].tobytes() != self._fingerprint:
            raise CheckpointError(
                f"{self.path} keeps the sums of another run (other images, changed files, other options or versions): "
                "give the command that it was made by, or delete it to begin again"
            )
        if not 0 <= images <= done <= places:
            raise self._damaged()
        if images and probe.tobytes() == _NO_PROBE:
            raise self._damaged()
        if images < done and not skipping:
            raise CheckpointError(
                f"{self.path} keeps sums without some images that cannot be decoded: go on with --skip-unreadable, or "
                "delete it to begin again"
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
        self._probe = probe.tobytes()
        return int(done)

    def save(self, part: PartialSums, *, done: int) -> None:
        """Replace the file by `part`, in which the first `done` places of the run that `restore` began are summed.

        Where it cannot be written the file stays as it was, and the run goes on, which is said once.
        """
        began = time.monotonic()
        try:
            write_atomically(self.path, self._content(part, done), force=True, mode=_OWNER_ONLY)
        except (ArtifactError, ArtifactExistsError, OSError) as error:
            if not self._failed:
                self.warn(f"the sums could not be kept in {self.path} ({_reason(error)}); the run goes on")
            self._failed = True
        else:
            self._failed = False
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
        finally:
            self.let_go()
        return ""

    def _begin(self, sums: ClassSums) -> None:
        """Write the file, without any sum, where there is none."""
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
        whose, probe = np.frombuffer(self._fingerprint, np.uint8), np.frombuffer(self._probe, np.uint8)
        digest = np.frombuffer(_digest(header, whose, probe, part.totals), np.uint8)
        return save({"header": header, "fingerprint": whose, "probe": probe, "totals": part.totals, "digest": digest})

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


@contextmanager
def let_go_on_failure(checkpoint: Checkpoint | None) -> Iterator[None]:
    """Keep the file from other runs for longer than this only if nothing fails: who begins again needs it."""
    try:
        yield
    except BaseException:
        if checkpoint is not None:
            checkpoint.let_go()
        raise


def _open_itself(path: str, flags: int) -> int:
    """Open a file and not what it may be a link to, without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _reason(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__cause__
    return cause.strerror or "it failed" if isinstance(cause, OSError) else "something is in the way"


def _digest(
    header: npt.NDArray[np.int64],
    fingerprint: npt.NDArray[np.uint8],
    probe: npt.NDArray[np.uint8],
    totals: npt.NDArray[np.int64],
) -> bytes:
    digest = hashlib.sha256()
    for array in (header, fingerprint, probe, np.array(totals.shape, np.int64), totals):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
