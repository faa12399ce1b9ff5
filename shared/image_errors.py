"""What can be wrong with an image data set: one error per malformation, none quoting a private value.

File names, positions and counts of private data stay out of every message. Where a custodian needs the place, it is in
the attribute `location`, which the commands write to a local file only on request.
"""

from __future__ import annotations

from dpmepf.shared.errors import DpmepfError, UsageError


class LocatedError(DpmepfError):
    """An error about one place in the data. `location` names it; the message does so only when the data are public."""

    def __init__(self, sentence: str, *, location: str, public: bool) -> None:
        super().__init__(f"{sentence} ({location})" if public else sentence)
        self.location = location


class UnreadableImageError(LocatedError):
    """One image cannot be decoded. `reason` is one of this package's own phrases, never text of the decoder."""

    def __init__(self, reason: str, *, location: str, public: bool) -> None:
        super().__init__(
            f"an image cannot be used: {reason}; repair or remove it, or pass --skip-unreadable",
            location=location,
            public=public,
        )
        self.reason = reason


class LabelError(LocatedError):
    """A label is outside 0..K-1."""


class UnreadableDataError(DpmepfError):
    """A whole container (zip, IDX or npz file) is truncated, damaged or not what its name says."""


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
