"""Where a command may write a file: asked before the work, so that no work is lost, and nobody's; and it appears whole.

With `--force` a command replaces what it wrote before and nothing else. So it never replaces what it reads, by whatever
path, link or folder that was found.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpmepf.shared.errors import UsageError

ARTIFACT = ("artifact", b"\x89HDF\r\n\x1a\n", 0)
"""A kind of file: what it is called, the bytes that tell it, and where in it they are."""
REPORT = ("report", b"{", 0)
WEIGHTS = ("safetensors file", b"{", 8)
Kind = tuple[str, bytes, int]


def check_output_file(path: Path, kind: Kind, *, force: bool) -> None:
    """Raise `UsageError` unless a file of `kind` can be written to `path`, and may be."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give --output the name of a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a device or a pipe: give --output the name of a file")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists: choose another --output, or pass --force to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}: make it, or choose another --output")
    require_writable_folder(path)
    require_kind(path, kind)


def require_writable_folder(path: Path) -> None:
    """Raise `UsageError` unless a file can be made where `path` is to be."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"the folder {path.parent} cannot be written to ({error.strerror}): choose another place for {path.name}"
        ) from None


def require_kind(path: Path, kind: Kind) -> None:
    """Raise `UsageError` if there is a file at `path` that is not of `kind`; an empty one is nobody's."""
    name, beginning, offset = kind
    if not path.is_file():
        return
    with path.open("rb") as file:
        found = file.read(offset + len(beginning))
    if found and found[offset:] != beginning:
        raise UsageError(f"{path} exists and is no {name}, and --force replaces nothing else: choose another --output")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place at the end, or vanishes after an error."""
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
