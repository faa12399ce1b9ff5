"""Trusted core: a file appears complete or not at all, and replaces another only on request."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from dpmepf.artifacts.errors import ArtifactExistsError, ArtifactWriteError

ANYONE_ALLOWED = 0o666
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def check_writable_target(path: Path, *, force: bool) -> None:
    """Refuse a target that `write_atomically` would refuse, as far as that shows before anything is written.

    Raises:
        ArtifactExistsError: a file is there and `force` is not given, or a folder or device is there.
        ArtifactWriteError: the folder that should hold it is missing.
    """
    if path.is_dir():
        raise ArtifactExistsError(f"{path} is a folder: name a file for the artifact")
    if path.exists() and not path.is_file():
        raise ArtifactExistsError(f"{path} is a device or a pipe: name a file for the artifact")
    if os.path.lexists(path) and not force:
        raise ArtifactExistsError(f"{path} exists already: choose another --output, or pass --force to replace it")
    if not path.parent.is_dir():
        raise ArtifactWriteError(f"the folder {path.parent} does not exist: create it or choose another --output")


def write_atomically(
    path: Path, content: bytes | memoryview, *, force: bool = False, mode: int = ANYONE_ALLOWED
) -> None:
    """Write `content` and flush it to the disk, and only then let it be called `path`.

    mode: who may do what with the file, less what the process's umask denies.

    Edge cases:
        On Linux the file has no name while it is written, so that a process that is killed leaves nothing behind; where
        it replaces another, the complete file is under a temporary name beside `path` for a moment. Elsewhere, and on
        file systems that know no nameless files, it has that temporary name from the beginning.
        Without `force`, the name is given by a hard link, which fails if another process took it meanwhile; on file
        systems without hard links, by renaming after one more look.
    Raises:
        ArtifactExistsError, ArtifactWriteError: nothing is left behind, and what was at `path` is untouched.
    """
    check_writable_target(path, force=force)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    try:
        if not _write_nameless(path, temporary, content, force=force, mode=mode):
            with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
                _write_and_flush(file, content)
            if force:
                temporary.replace(path)
            else:
                _rename_if_free(temporary, path)
    except FileExistsError:
        raise ArtifactExistsError(f"{path} appeared meanwhile: choose another --output, or pass --force") from None
    except OSError as error:
        raise ArtifactWriteError(
            f"the artifact could not be written to {path} ({error.strerror}), and nothing was left behind: make room "
            "or choose another --output"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the artifact is in place: a folder that cannot be flushed must not deny it
        _flush_folder(path.parent)


def _write_nameless(path: Path, temporary: Path, content: bytes | memoryview, *, force: bool, mode: int) -> bool:
    """Write to a file that has no name yet (Linux), then give it its name; whether that can be done here."""
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, mode)
    except OSError:  # not on this file system; what else may be wrong shows again under a temporary name
        return False
    with os.fdopen(descriptor, "wb") as file:
        _write_and_flush(file, content)
        try:
            _give_name(descriptor, path)
        except FileExistsError:
            if not force:
                raise
            _give_name(descriptor, temporary)  # a link cannot replace
            temporary.replace(path)
        except OSError:  # no /proc, or no hard links
            return False
    return True


def _write_and_flush(file: BinaryIO, content: bytes | memoryview) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _give_name(descriptor: int, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # dst_dir_fd makes Python call linkat, which follows the link in /proc to the file itself (open(2), O_TMPFILE).
        os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _rename_if_free(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError from error
        temporary.replace(path)


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
