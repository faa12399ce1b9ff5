"""Trusted core: what can be wrong with an artifact or a register, one type for each malformation, which it names."""

from __future__ import annotations

from dpmepf.shared.errors import DpmepfError, UsageError


class ArtifactError(DpmepfError):
    """An artifact that cannot be used."""


class ArtifactMissingError(UsageError):
    """There is no file to read at the path."""


class ArtifactExistsError(UsageError):
    """There is a file at the path, and overwriting it was not asked for."""


class ArtifactWriteError(ArtifactError):
    """The artifact could not be written; nothing was left behind."""


class NotAnArtifactError(ArtifactError):
    """The file is not HDF5, or HDF5 of another kind."""


class TruncatedArtifactError(ArtifactError):
    """The file is shorter or longer than its own header says."""


class HiddenBytesError(ArtifactError):
    """More bytes in the file than its data sets need."""


class CorruptArtifactError(ArtifactError):
    """The HDF5 library or the decompressor refused part of the file."""


class UnsupportedVersionError(ArtifactError):
    """The artifact's schema version is not ours."""


class MissingObjectError(ArtifactError):
    """A data set that every artifact has is absent."""


class UndeclaredObjectError(ArtifactError):
    """A group, data set or named type that no artifact has."""


class UndeclaredAttributeError(ArtifactError):
    """An HDF5 attribute; an artifact has none."""


class SoftLinkError(ArtifactError):
    """A soft link in place of a data set."""


class ExternalLinkError(ArtifactError):
    """A link into another file."""


class UnknownLinkError(ArtifactError):
    """A user-defined link."""


class SharedObjectError(ArtifactError):
    """One object under several names."""


class ExternalStorageError(ArtifactError):
    """A data set whose values lie in another file."""


class VirtualDatasetError(ArtifactError):
    """A data set assembled from other files."""


class StorageLayoutError(ArtifactError):
    """A data set stored in another way than artifacts are."""


class FilterError(ArtifactError):
    """A filter other than shuffle and deflate."""


class ElementTypeError(ArtifactError):
    """A data set of another element type."""


class ShapeError(ArtifactError):
    """A data set of another rank or length."""


class OversizeError(ArtifactError):
    """A declared size above the limit."""


class CompressionBombError(ArtifactError):
    """Far more values declared than the stored bytes can hold as noise."""


class TextError(ArtifactError):
    """Text that is not the JSON it should be."""


class ClassNamesError(ArtifactError):
    """Class names that repeat or could not name a folder."""


class OutOfRangeError(ArtifactError):
    """A stored number that no release can produce."""


class LedgerError(ArtifactError):
    """A ledger field that is missing, unknown, of another type or out of range."""


class InconsistentArtifactError(ArtifactError):
    """An artifact that its own audit would reject."""


class MergeError(DpmepfError):
    """Artifacts, each good in itself, that cannot be merged."""


class MismatchError(MergeError):
    """They differ in what they must have in common."""


class RepeatedReleaseError(MergeError):
    """One release is in two of them."""


class RegisterError(DpmepfError):
    """The register of releases cannot be used, or was tampered with."""


class RegisterBudgetError(RegisterError):
    """The register refuses a release: over budget, or the budget is not what it should be. Nothing was charged."""
