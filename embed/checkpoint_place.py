"""Where a run may keep its exact sums: in a file that is nothing else, and one for each process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from dpmepf.embed.checkpoint import Checkpoint
from dpmepf.embed.distributed import Processes
from dpmepf.shared.errors import UsageError


def place_checkpoint(
    file: Path,
    processes: Processes | None,
    *,
    data: Path | None,
    taken: Iterable[Path],
    say: Callable[[str], None],
) -> Checkpoint:
    """The checkpoint `file`, or of several processes this one's, `file` with its rank behind a point.

    Args:
        data: the private images, among which it must not lie.
        taken: files that are, or will be, something else.
        say: called with a sentence for the custodian.
    Raises: UsageError for a file that is taken, or where another number of processes kept theirs.
    """
    if file.name in ("", ".."):
        raise UsageError(f"--checkpoint {file} names no file: name one of its own")
    files = [file]
    if processes is not None:
        files = [file.with_name(f"{file.name}.{rank}") for rank in range(processes.count)]
    real = [Path(os.path.realpath(other)) for other in taken]
    for path in (Path(os.path.realpath(own)) for own in files):
        if any(other.is_relative_to(path) for other in real):
            raise UsageError(f"--checkpoint {file} is, or will be, a file that holds something else: name another one")
    if data is not None and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(data)):
        raise UsageError(f"--checkpoint {file} lies among the data: name a file elsewhere")
    for other in sorted(_kept(file) - set(files)):
        raise UsageError(
            f"{other} was kept by a run with another number of processes: start as many again, delete it, or name "
            "another file with --checkpoint"
        )
    return Checkpoint(path=files[0 if processes is None else processes.rank], say=say)


def _kept(file: Path) -> set[Path]:
    """The files that a run of any number of processes would have kept as `file`."""
    names = re.compile(re.escape(file.name) + r"(\.\d+)?")
    try:
        return {path for path in file.parent.iterdir() if names.fullmatch(path.name)}
    except OSError:  # which is said when it is written to
        return set()
