"""The IDX files of MNIST: `train-images-idx3-ubyte` with `train-labels-idx1-ubyte`, or `t10k-…`, plain or gzipped.

Layout: two zero bytes, the element type (8 is uint8), the number of dimensions, each dimension as a big-endian uint32,
then the elements. A file whose length disagrees with its header is refused.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dpmepf.shared.image_errors import AmbiguousLayoutError, UnreadableDataError
from dpmepf.shared.image_layout import canonical_split

_IMAGES_NAME = re.compile(r"(?P<prefix>|.*-)(?P<split>train|t10k|test)-images[-.]idx[34]-ubyte(\.gz)?")
_CHUNK = 2**24
_UINT8 = 8
_MOST_DIMENSIONS = 4


@dataclass(frozen=True, kw_only=True)
class IdxPair:
    """The two files of one split. `conventional` marks the very names of MNIST, which stand for ten classes."""

    images: Path
    labels: Path
    conventional: bool


def find_idx_pairs(folder: Path) -> dict[str, IdxPair]:
    """Find the IDX files of a folder (or of its `raw` or `MNIST/raw`): canonical split to files; empty if none.

    Raises:
        AmbiguousLayoutError: two data sets are in the folder.
        UnreadableDataError: images without labels.
    """
    for candidate in (folder, folder / "raw", folder / "MNIST" / "raw"):
        pairs: dict[str, IdxPair] = {}
        prefixes = set()
        # Sorted, a plain file comes before its .gz, and is preferred.
        for path in sorted(candidate.iterdir()) if candidate.is_dir() else ():
            match = _IMAGES_NAME.fullmatch(path.name)
            if match is None:
                continue
            prefixes.add(match["prefix"])
            split = str(canonical_split(match["split"]))
            pairs.setdefault(split, IdxPair(images=path, labels=_labels_of(path), conventional=not match["prefix"]))
        if len(prefixes) > 1:
            raise AmbiguousLayoutError("the folder holds IDX files of several data sets: keep one data set per folder")
        if pairs:
            return pairs
    return {}


def read_idx_images(path: Path) -> NDArray[np.uint8]:
    """Images as uint8 N x H x W x C (C = 1 for three-dimensional files)."""
    array = read_idx(path)
    if array.ndim == 3:
        array = array[:, :, :, None]
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4) or 0 in array.shape[1:]:
        raise UnreadableDataError(
            f"an IDX file in {path.parent} holds no images: expected N x H x W, or N x H x W x C with C = 1, 3 or 4"
        )
    return array


def read_idx_labels(path: Path, *, count: int) -> NDArray[np.int64]:
    """Labels as int64 [count]."""
    array = read_idx(path)
    if array.ndim != 1 or len(array) != count:
        raise UnreadableDataError(
            f"the IDX labels in {path.parent} are not one label for each image of the images file beside it"
        )
    return array.astype(np.int64)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a whole IDX file of uint8.

    Raises:
        UnreadableDataError: the file is truncated, too long, damaged, or of another element type.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(file, path)
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error):
        raise UnreadableDataError(
            f"an IDX file in {path.parent} is truncated or damaged: fetch or unpack it again"
        ) from None


def _parse(file: BinaryIO | gzip.GzipFile, path: Path) -> NDArray[np.uint8]:
    zeros, element, dimensions = struct.unpack(">HBB", file.read(4))
    if zeros != 0 or element != _UINT8 or not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise UnreadableDataError(
            f"a file in {path.parent} is no IDX file of unsigned bytes: check that it is what its name says"
        )
    shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
    content = _compressed(file, math.prod(shape)) if isinstance(file, gzip.GzipFile) else _plain(file, math.prod(shape))
    if content is None:
        raise UnreadableDataError(
            f"an IDX file in {path.parent} is not as long as its header says: fetch or unpack it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _plain(file: BinaryIO, length: int) -> NDArray[np.uint8] | None:
    """The rest of a file, in one piece of memory, if it has that many bytes."""
    if os.fstat(file.fileno()).st_size - file.tell() != length:
        return None
    content = np.fromfile(file, np.uint8, length)
    return content if len(content) == length else None


def _compressed(file: gzip.GzipFile, length: int) -> bytearray | None:
    """In pieces, because the length is only a claim: nothing is reserved for bytes that are not there."""
    content = bytearray()
    while piece := file.read(min(_CHUNK, length + 1 - len(content))):
        content += piece
    return content if len(content) == length else None


def _labels_of(images: Path) -> Path:
    stem = images.name.removesuffix(".gz").replace("images", "labels")
    stem = re.sub(r"idx[34]-ubyte$", "idx1-ubyte", stem)
    for name in (stem, f"{stem}.gz"):
        if (images.parent / name).is_file():
            return images.parent / name
    raise UnreadableDataError(
        f"{images.parent} holds IDX images without their labels: put the labels file beside them, named alike"
    )
