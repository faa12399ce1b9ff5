"""Trusted core: looking at a possibly hostile HDF5 file without reading its values.

Each check compares with the one thing an artifact has in that place (hdf5_file.py) and raises the type of its own
malformation. Links, attributes and where values lie were looked at before (hdf5_headers.py). Names out of the file are
shown escaped and cut. After keras `saving_lib.py`, safe_get_h5_dataset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
from h5py import h5d, h5s, h5t, h5z

from dpmepf.artifacts import errors
from dpmepf.artifacts.artifact import LARGEST_SIZE
from dpmepf.artifacts.hdf5_headers import MEMBERS
from dpmepf.artifacts.ledger import LARGEST_CLASS_COUNT, LARGEST_DIMENSION
from dpmepf.shared.errors import DpmepfError

LARGEST_TEXTS = {"ledger": 2**16, "feature_map": 2**16, "classes": 2**25}
"""Bytes of each text; 100,000 class names of 200 bytes fit, if they are not of quotation marks, which take two."""
LARGEST_COMPRESSION = 64
"""Declared over stored bytes. Noise of sigma >= 16 stored steps has over 6 bits of entropy in 64: at most 11."""
_FREE_COMPRESSION_BYTES = 2**20
_METADATA_BYTES, _METADATA_BYTES_OF_A_ROW = 2**12, 24
"""What HDF5 may take beside the values: versions 1.14 and 2.0 take some 1,620 bytes, and at most 16 for each row's
place in the index.
"""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK_VERSION = 3
# Signature; version, two sizes, flags; base, extension, end of file, root; checksum.
_SUPERBLOCK = struct.Struct("<8sBBBBQQQQI")
_NOWHERE = 2**64 - 1


@contextmanager
def hdf5_failures() -> Iterator[None]:
    """Turn failures of the HDF5 library into one typed error."""
    try:
        yield
    except DpmepfError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, IndexError) as error:
        raise errors.CorruptArtifactError(
            f"the HDF5 file is damaged ({type(error).__name__}: {str(error)[:80]!a})"
        ) from None


def check_superblock(path: Path) -> None:
    """Check the first 48 bytes, before the HDF5 library sees the file: kind, version, and no byte more or less."""
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise errors.ArtifactMissingError(f"{path} {found}: name an artifact written by dpmepf-embed")
    try:
        with path.open("rb") as file:
            header = file.read(_SUPERBLOCK.size)
            size = file.seek(0, 2)
    except OSError as error:
        raise errors.NotAnArtifactError(f"{path} cannot be read ({error.strerror})") from error
    if not header.startswith(_SIGNATURE):
        raise errors.NotAnArtifactError(f"{path} is not an HDF5 file: name an artifact written by dpmepf-embed")
    if len(header) < _SUPERBLOCK.size:
        raise errors.TruncatedArtifactError(f"{path} is truncated: get it again from the custodian")
    _, version, offset_size, length_size, flags, base, extension, end, _, _ = _SUPERBLOCK.unpack(header)
    if (version, offset_size, length_size) != (_SUPERBLOCK_VERSION, 8, 8) or (base, extension) != (0, _NOWHERE):
        raise errors.NotAnArtifactError(f"{path} is an HDF5 file, but not one written by dpmepf-embed (its superblock)")
    if flags:
        raise errors.NotAnArtifactError(f"{path} is marked as open in another program, as no artifact is")
    if end != size:
        raise errors.TruncatedArtifactError(
            f"{path} has {size} bytes where its header says {end}: it is truncated or extended; get it again"
        )


def open_text(file: h5py.File, name: str) -> h5py.Dataset:
    """The text called `name`, known to be a scalar string of fixed, permitted length."""
    dataset = h5d.open(file.id, name.encode())
    element, space = dataset.get_type(), dataset.get_space()
    if not isinstance(element, h5t.TypeStringID) or element.is_variable_str():
        raise errors.ElementTypeError(f"{name}: expected a string of fixed length")
    if element.get_cset() != h5t.CSET_UTF8 or element.get_strpad() != h5t.STR_NULLPAD:
        raise errors.ElementTypeError(f"{name}: expected null-padded UTF-8")
    if element.get_size() > LARGEST_TEXTS[name]:
        raise errors.OversizeError(f"{name}: {element.get_size()} bytes exceed the limit of {LARGEST_TEXTS[name]}")
    if space.get_simple_extent_type() != h5s.SCALAR:
        raise errors.ShapeError(f"{name}: expected a single text")
    _require_contiguous(dataset, name, element.get_size())
    return h5py.Dataset(dataset)


def open_counts(file: h5py.File) -> h5py.Dataset:
    """The noisy counts, known to be a contiguous int64 vector of permitted length."""
    name = "noisy_counts"
    dataset = h5d.open(file.id, name.encode())
    (length,) = _int64_shape(dataset, name, rank=1)
    if not 1 <= length <= LARGEST_CLASS_COUNT:
        raise errors.OversizeError(f"{name}: {length} classes; allowed are 1 to {LARGEST_CLASS_COUNT}")
    _require_contiguous(dataset, name, 8 * length)
    return h5py.Dataset(dataset)


def open_sums(file: h5py.File) -> h5py.Dataset:
    """The noisy sums, known to be int64 of permitted shape, in one present chunk of plausible size for each row."""
    name = "noisy_sums"
    dataset = h5d.open(file.id, name.encode())
    rows, columns = _int64_shape(dataset, name, rank=2)
    if not (1 <= rows <= LARGEST_CLASS_COUNT and 1 <= columns <= LARGEST_DIMENSION and rows * columns <= LARGEST_SIZE):
        raise errors.OversizeError(
            f"{name}: the shape {rows} x {columns} is outside the limits ({LARGEST_CLASS_COUNT} x {LARGEST_DIMENSION}, "
            f"{LARGEST_SIZE} numbers)"
        )
    plist = dataset.get_create_plist()
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    if plist.get_layout() != h5d.CHUNKED or plist.get_chunk() != (1, columns):
        raise errors.StorageLayoutError(f"{name}: expected one chunk for each row")
    if filters != [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE]:
        raise errors.FilterError(f"{name}: the filters {filters} are not shuffle and deflate, which artifacts use")
    declared, stored = 8 * rows * columns, dataset.get_storage_size()
    if declared > LARGEST_COMPRESSION * stored + _FREE_COMPRESSION_BYTES:
        raise errors.CompressionBombError(f"{name}: {declared} bytes declared, {stored} stored: this cannot be noise")
    if stored > largest_stored_size(rows, columns):
        raise errors.CompressionBombError(f"{name}: {stored} bytes stored for {declared} declared")
    if dataset.get_num_chunks() != rows:
        raise errors.StorageLayoutError(f"{name}: some rows are not stored")
    return h5py.Dataset(dataset)


def largest_stored_size(rows: int, columns: int) -> int:
    """Bytes that `rows` deflated rows can take: zlib adds at most a little to what it cannot compress."""
    return 8 * rows * columns + (8 * rows * columns >> 8) + 64 * rows


def check_storage(file: h5py.File) -> None:
    """No byte belongs to two values, and the file is about as large as they are: nothing large hides in it.

    Otherwise equal rows could share their bytes, and those of all but one would be free.
    """
    places: list[tuple[int, int]] = []
    sums: Any = file["noisy_sums"].id
    if not hasattr(sums, "chunk_iter"):
        raise errors.ArtifactError(
            f"h5py uses HDF5 {h5py.version.hdf5_version} here, which cannot say where rows lie: install h5py from PyPI "
            "(pip install --only-binary :all: h5py), with HDF5 1.12.3 or later"
        )
    sums.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.size)))
    for member in MEMBERS:
        if member != "noisy_sums":
            identifier = file[member].id
            places.append((identifier.get_offset(), identifier.get_storage_size()))
    end = 0
    for offset, length in sorted(places):
        if offset < end:
            raise errors.StorageLayoutError(f"two of its values overlap at byte {offset}, as no artifact's do")
        end = offset + length
    size, stored = file.id.get_filesize(), sum(length for _, length in places)
    if size > stored + _METADATA_BYTES + _METADATA_BYTES_OF_A_ROW * len(file["noisy_sums"]):
        raise errors.HiddenBytesError(f"{size - stored} bytes of the file belong to none of its data sets")


def _int64_shape(dataset: Any, name: str, *, rank: int) -> tuple[int, ...]:
    if not dataset.get_type().equal(h5t.STD_I64LE):
        raise errors.ElementTypeError(f"{name}: expected little-endian 64-bit integers")
    space = dataset.get_space()
    if space.get_simple_extent_type() != h5s.SIMPLE or space.get_simple_extent_ndims() != rank:
        raise errors.ShapeError(f"{name}: expected {rank} dimension(s)")
    shape = tuple(int(length) for length in space.get_simple_extent_dims())
    if tuple(space.get_simple_extent_dims(True)) != shape:
        raise errors.ShapeError(f"{name}: it is extensible, as no artifact's is")
    return shape


def _require_contiguous(dataset: Any, name: str, size: int) -> None:
    plist = dataset.get_create_plist()
    if plist.get_nfilters():
        raise errors.FilterError(f"{name}: expected no filter")
    if plist.get_layout() != h5d.CONTIGUOUS or dataset.get_storage_size() != size:
        raise errors.StorageLayoutError(f"{name}: expected {size} bytes stored in one piece")
