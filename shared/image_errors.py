"""What can be wrong with an image data set: one error per malformation, none quoting a private value.

File names, positions and counts of private data stay out of every message. Where a custodian needs the place, it is in
the attribute `location`, which the commands write to a local file only on request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.image_decoding import NO_ACCESS


class LocatedError(DpmepfError):
    """An error about one place in the data. `location` names it; the message does so only when the data are public."""

    def __init__(self, sentence: str, *, location: str, public: bool) -> None:
        super().__init__(f"{sentence} ({location})" if public else sentence)
        self.location = location


class UnreadableImageError(LocatedError):
    """One image cannot be decoded. `reason` is one of this package's own phrases, never text of the decoder."""

    def __init__(self, reason: str, *, location: str, public: bool) -> None:
        advice = (
            "make it readable or remove it" if reason == NO_ACCESS else "repair or remove it, or pass --skip-unreadable"
        )
        super().__init__(
            f"an image cannot be used: {reason}; {advice}",
            location=location,
            public=public,
        )
        self.reason = reason


class LabelError(LocatedError):
    """A label is outside 0..K-1, or is none at all."""


class LabelOutsideError(LabelError):
    """A label numbers none of the classes."""


class UnlabelledImageError(LocatedError):
    """An image has no label where the others have one."""


class RepeatedImageError(LocatedError):
    """An image is there twice, or two under one name: it would count twice, or one label for both."""


class UnreadableDataError(DpmepfError):
    """A whole container (zip, tar, parquet, IDX or npz file) is truncated, damaged or not what its name says."""

    @classmethod
    def in_shard(cls, sentence: str, *, path: Path, public: bool) -> Self:
        """The error about one file of several, which is named only when the data are public."""
        return cls(f"{sentence} ({path})" if public else sentence)


class WorkerDiedError(DpmepfError):
    """A decoding process ended without an answer."""


class DataNotFoundError(UsageError):
    """The path is missing, or holds no image data in any accepted form."""


class AmbiguousLayoutError(UsageError):
    """The folders can be read in more than one way."""


class SplitError(UsageError):
    """The asked split (train, test, val) is not there, or one has to be chosen."""


class ClassesError(UsageError):
    """The class names are missing, malformed or do not fit the data."""


class UndeclaredClassError(LocatedError, ClassesError):
    """A class of the data (a class folder, a stored class name) is not among the declared classes."""


class MissingLibraryError(UsageError):
    """A form of data needs a library that is not installed."""
