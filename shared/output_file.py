"""Where a command may write a file: asked before the work, so that nothing is lost to it and it is not lost itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dpmepf.shared.errors import UsageError


def check_output_file(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise `UsageError` unless a file can be written to `path`, and would replace none that is not to be replaced.

    Args:
        force: whether a file may be replaced.
        inputs: what the command reads.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give --output the name of a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a device or a pipe: give --output the name of a file")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists: choose another --output, or pass --force to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}: make it, or choose another --output")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} cannot be written to: choose another --output")
    refuse_inputs(path, inputs)


def refuse_inputs(path: Path, inputs: Iterable[Path]) -> None:
    """Raise `UsageError` if writing `path` would replace one of `inputs`, or a file in one that is a folder."""
    if not path.exists():
        return
    for one in inputs:
        if one.exists() and (path.samefile(one) or path.resolve().is_relative_to(one.resolve())):
            among = "is" if path.samefile(one) else "lies among"
            raise UsageError(f"{path} {among} what this command reads, and would be replaced: choose another --output")
