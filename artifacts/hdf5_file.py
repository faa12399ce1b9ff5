"""Trusted core: the artifact as one HDF5 file.

Layout, complete (file format 1.10, superblock version 3, so that the library checks its own metadata's checksums):

    /ledger         UTF-8 JSON   the ledger (ledger.py; merged_ledger.py for the sum of several releases); its
                                 schema_version, 1 or 2, governs everything else
    /feature_map    UTF-8 JSON   the description of the feature map (dpmepf.shared.feature_map)
    /classes        UTF-8 JSON   the list of class names; row c of the arrays belongs to name c
    /noisy_sums     int64 K x D  little-endian; one chunk per class, shuffle and deflate
    /noisy_counts   int64 K      little-endian; contiguous

A text is a scalar, null-padded string of fixed length, in the one spelling that `write_artifact` gives it. There are no
groups, attributes, links, timestamps or other data sets. By hand:

    h5dump -d /ledger artifact.h5
    python -c "import h5py, json; print(json.loads(h5py.File('artifact.h5')['ledger'][()]))"

True values in feature units are noisy_sums * 2^coarsening_exponent / 2^lattice_exponent; in records,
noisy_counts * 2^coarsening_exponent / count_weight_lattice. Of merged releases the least coarsening_exponent counts.

Reading refuses whatever is not in this list before it reads it (hdf5_headers.py, hdf5_inspection.py). Rows are inflated
here, into buffers of known size, not by the HDF5 library.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from dpmepf.artifacts import hdf5_inspection as inspection
from dpmepf.artifacts.artifact import Artifact, check_size
from dpmepf.artifacts.atomic_file import check_writable_target, write_atomically
from dpmepf.artifacts.claims import check_claims
from dpmepf.artifacts.errors import (
    ArtifactError,
    CompressionBombError,
    CorruptArtifactError,
    InconsistentArtifactError,
    OversizeError,
    TextError,
    UnsupportedVersionError,
)
from dpmepf.artifacts.hdf5_headers import check_headers
from dpmepf.artifacts.ledger import LARGEST_CLASS_COUNT, Ledger
from dpmepf.artifacts.merged_ledger import MergedLedger, read_ledger
from dpmepf.artifacts.strict_json import check_spelling, parse_json, parse_names
from dpmepf.shared.feature_map_description import FeatureMapDescription, FeatureMapError

_COMPRESSION_LEVEL = 6


def write_artifact(path: Path, artifact: Artifact, *, force: bool = False) -> None:
    """Write `artifact` to `path`, completely or not at all.

    Raises:
        ArtifactExistsError: something is at `path` and `force` is not given.
        ArtifactWriteError: the disk is full, the folder missing or read-only; nothing is left behind.
        InconsistentArtifactError: a claim of the ledger does not hold, so that an audit would reject the file.
        OversizeError: a text is too long (`rehearse` tells before).
    """
    check_writable_target(path, force=force)
    failed = [check for check in check_claims(artifact) if not check.holds]
    if failed:
        raise InconsistentArtifactError(f"the artifact was not written: {failed[0].name}: {failed[0].detail}")
    write_atomically(path, _serialised(artifact).getbuffer(), force=force)


def rehearse(*, classes: tuple[str, ...], feature_map: FeatureMapDescription, ledger: Ledger) -> None:
    """Write and read, in memory, an artifact with these texts and one zero for each class: before anything is spent.

    Raises:
        ArtifactError: such a file cannot be written, or not be read again; here, with the libraries that are installed.
    """
    zeros = np.zeros((len(classes), 1), dtype=np.int64)
    artifact = Artifact(
        noisy_sums=zeros, noisy_counts=zeros[:, 0], classes=classes, feature_map=feature_map, ledger=ledger
    )
    buffer = _serialised(artifact)
    check_headers(buffer)
    with inspection.hdf5_failures(), h5py.File(buffer, "r") as file:
        _read(file)


def _serialised(artifact: Artifact) -> io.BytesIO:
    texts = {
        "ledger": _ledger_text(artifact.ledger),
        "feature_map": artifact.feature_map.to_json(),
        "classes": _classes_text(artifact.classes),
    }
    for name, parse in (("ledger", _parse_ledger), ("feature_map", _parse_feature_map), ("classes", _parse_classes)):
        parse(texts[name])  # what is written can be read
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v110", "v110")) as file:
        for name, text in texts.items():
            encoded = text.encode()
            if len(encoded) > inspection.LARGEST_TEXTS[name]:
                raise OversizeError(f"{name}: {len(encoded)} bytes exceed {inspection.LARGEST_TEXTS[name]}")
            file.create_dataset(name, data=np.array(encoded, dtype=h5py.string_dtype("utf-8", len(encoded))))
        file.create_dataset("noisy_counts", data=artifact.noisy_counts.astype("<i8"))
        sums = file.create_dataset(
            "noisy_sums",
            shape=artifact.noisy_sums.shape,
            dtype="<i8",
            chunks=(1, artifact.dimension),
            shuffle=True,
            compression="gzip",
            compression_opts=_COMPRESSION_LEVEL,
        )
        for row, values in enumerate(artifact.noisy_sums):
            sums.id.write_direct_chunk((row, 0), _deflate_row(values))
    return buffer


def read_artifact(path: Path) -> Artifact:
    """Read the artifact at `path`, trusting nothing in it.

    The ledger's claims are not checked against each other here: `dpmepf.artifacts.audit` does that.

    Edge cases:
        Memory stays below about twice the size of the arrays, which is at most 256 MiB, whatever the file holds.
    Raises:
        ArtifactMissingError: nothing is at `path`, or not a file.
        ArtifactError: the file is not exactly as the layout says; one subclass for each malformation.
    """
    path = Path(path)
    inspection.check_superblock(path)
    with _named(path):
        with inspection.hdf5_failures(), path.open("rb") as content:
            check_headers(content)
        with inspection.hdf5_failures(), h5py.File(path, "r", locking="best-effort") as file:
            return _read(file)


def read_verified_artifact(path: Path) -> Artifact:
    """Read the artifact at `path`, every claim of whose ledger is recomputed and holds.

    Raises:
        InconsistentArtifactError: the ledger claims what its own numbers do not support.
        ArtifactMissingError, ArtifactError: as `read_artifact`.
    """
    artifact = read_artifact(path)
    failed = [check for check in check_claims(artifact) if not check.holds]
    if failed:
        raise InconsistentArtifactError(
            f"{path} claims what its numbers do not support ({failed[0].name}): see dpmepf-audit, and ask its custodian"
        )
    return artifact


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file it is what is found in it, and what to do."""
    try:
        yield
    except UnsupportedVersionError as error:
        raise UnsupportedVersionError(f"{path}: {error}") from error
    except (ArtifactError, FeatureMapError) as error:
        if type(error) is ArtifactError:  # of no malformation: this machine cannot read it
            raise
        raise type(error)(f"{path} is damaged or altered ({error}): get it again from its custodian") from error


def _read(file: h5py.File) -> Artifact:
    ledger = _parse_ledger(_read_text(file, "ledger"))  # first: it holds the version
    feature_map = _parse_feature_map(_read_text(file, "feature_map"))
    classes = _parse_classes(_read_text(file, "classes"))
    counts = inspection.open_counts(file)
    sums = inspection.open_sums(file)
    check_size(*sums.shape)
    inspection.check_storage(file)
    return Artifact(
        noisy_sums=_read_rows(sums),
        noisy_counts=counts[()].astype(np.int64, copy=False),
        classes=classes,
        feature_map=feature_map,
        ledger=ledger,
    )


def _ledger_text(ledger: Ledger | MergedLedger) -> str:
    return json.dumps(ledger.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)


def _classes_text(classes: tuple[str, ...]) -> str:
    return json.dumps(classes, ensure_ascii=False)


def _parse_ledger(text: str) -> Ledger | MergedLedger:
    ledger = read_ledger(parse_json(text, "ledger"))
    check_spelling(text, _ledger_text(ledger), "ledger")
    return ledger


def _parse_feature_map(text: str) -> FeatureMapDescription:
    parse_json(text, "feature_map")
    feature_map = FeatureMapDescription.from_json(text)
    if text != feature_map.to_json(one_pooling=True):  # so it was written once, where layers are pooled alike
        check_spelling(text, feature_map.to_json(), "feature_map")
    return feature_map


def _parse_classes(text: str) -> tuple[str, ...]:
    names = tuple(parse_names(text, "classes", most=LARGEST_CLASS_COUNT))
    check_spelling(text, _classes_text(names), "classes")
    return names


def _read_text(file: h5py.File, name: str) -> str:
    dataset = inspection.open_text(file, name)
    content = bytes(dataset[()])  # without the nulls at its end
    if len(content) != dataset.dtype.itemsize:
        raise TextError(f"{name}: nulls follow the text, as in no artifact")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise TextError(f"{name}: the text is not UTF-8") from None


def _read_rows(sums: h5py.Dataset) -> npt.NDArray[np.int64]:
    values = np.empty(sums.shape, dtype=np.int64)
    buffer = np.empty(inspection.largest_stored_size(1, values.shape[1]), dtype=np.uint8)
    for row in range(len(values)):
        try:
            filter_mask, stored = sums.id.read_direct_chunk((row, 0), out=buffer)
        except ValueError:  # it does not fit
            raise CompressionBombError(f"noisy_sums: row {row} is stored in more than {len(buffer)} bytes") from None
        if filter_mask != 0:
            raise CorruptArtifactError(f"noisy_sums: row {row} skips a filter")
        values[row] = _inflate_row(stored, values.shape[1], row)
    return values


def _deflate_row(values: npt.NDArray[np.int64]) -> bytes:
    """HDF5's shuffle (byte planes of the eight bytes, lowest first) and deflate filters."""
    planes = values.astype("<i8").view(np.uint8).reshape(-1, 8).T
    return zlib.compress(planes.tobytes(), _COMPRESSION_LEVEL)


def _inflate_row(stored: bytes | memoryview, dimension: int, row: int) -> npt.NDArray[np.int64]:
    expected = 8 * dimension
    inflater = zlib.decompressobj()
    try:
        planes = inflater.decompress(stored, expected + 1)  # one byte more shows a stream that is too long
    except zlib.error:
        raise CorruptArtifactError(f"noisy_sums: row {row} is damaged") from None
    if len(planes) != expected or not inflater.eof or inflater.unused_data:
        raise CorruptArtifactError(f"noisy_sums: row {row} does not inflate to {dimension} numbers exactly")
    columns = np.frombuffer(planes, dtype=np.uint8).reshape(8, dimension).T
    return np.ascontiguousarray(columns).view("<i8").reshape(dimension)
