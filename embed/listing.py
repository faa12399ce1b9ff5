"""`--list-unreadable`: what cannot be used of private data, written down for their owner alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dpmepf.artifacts.atomic_file import check_writable_target
from dpmepf.embed.outcome import Stage, stopping_plainly
from dpmepf.shared.image_errors import LocatedError, UnreadableImageError
from dpmepf.shared.image_loading import find_unreadable
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.output_file import require_writable_folder


def write_list_of_unusable(open_source: Callable[[], ImageSource], file: Path, *, workers: int | None) -> None:
    """Write to a new `file` which images cannot be decoded, or the place for which the data cannot be opened at all.

    Raises: DpmepfError if there is a file, or none can be made; what `open_source` raises that is not about one place.
    """
    check_writable_target(file, force=False)
    require_writable_folder(file)
    found: Sequence[LocatedError]
    with stopping_plainly(Stage(file)):
        try:
            found = find_unreadable(open_source(), workers=workers)
        except LocatedError as error:
            found = [error]
    lines = (f"{error.location}: {_reason(error)}\n" for error in found)
    file.touch(mode=0o600, exist_ok=False)
    file.write_text("".join(lines), encoding="utf-8")


def _reason(error: LocatedError) -> str:
    return error.reason if isinstance(error, UnreadableImageError) else str(error)
