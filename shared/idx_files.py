"""The IDX files of MNIST: `train-images-idx3-ubyte` with `train-labels-idx1-ubyte`, or `t10k-…`, plain or gzipped.

Layout: two zero bytes, the element type (8 is uint8), the number of dimensions, each dimension as a big-endian uint32,
then the elements. A file whose length disagrees with its header is refused. Plain files of images are read a few at a
time, so that no memory is taken for all; gzipped ones, which cannot be, are held whole.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dpmepf.shared.image_decoding import LARGEST_IMAGE
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


class IdxPixels:
    """The uint8 images N x H x W x C of a plain IDX file, read when they are asked for, as `pixels[3:5]`.

    Each time the file is opened anew, so that processes do not share a position in it, and refused unless, before and
    after, it is the one that was opened first, as it was then.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], *, start: int, state: tuple[int, ...]) -> None:
        self.shape = shape
        self._path = path.absolute()
        self._folder = path.parent  # as errors name it
        self._start = start
        self._state = state

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some of the images, by a slice or by places from 0 up.

        Raises: UnreadableDataError when the file has changed or cannot be read any more; IndexError.
        """
        places = np.arange(*where.indices(len(self))) if isinstance(where, slice) else where
        images = np.empty((len(places), *self.shape[1:]), np.uint8)
        if not len(places):
            return images
        if places.min() < 0 or places.max() >= len(self):
            raise IndexError(f"places from {places.min()} to {places.max()} of {len(self)} images")
        runs = np.split(images, np.flatnonzero(np.diff(places) != 1) + 1)  # neighbours in the file, read at once
        firsts = places[np.cumsum([0, *map(len, runs[:-1])])]
        try:
            with open(self._path, "rb", opener=_without_waiting) as file:
                complete = _state_of(file) == self._state
                for first, run in zip(firsts.tolist(), runs, strict=True):
                    file.seek(self._start + first * math.prod(self.shape[1:]))
                    complete = complete and file.readinto(run.data) == run.nbytes
                complete = complete and _state_of(file) == self._state
        except OSError as error:
            raise UnreadableDataError(
                f"an IDX file in {self._folder} cannot be read any more ({error.strerror or 'no access'})"
            ) from None
        if not complete:
            raise UnreadableDataError(
                f"an IDX file in {self._folder} was changed while it was read: begin again with files that "
                "stay as they are"
            )
        return images


def open_idx_images(path: Path) -> NDArray[np.uint8] | IdxPixels:
    """Images as uint8 N x H x W x C (C = 1 for three-dimensional files).

    Raises:
        UnreadableDataError: the file is truncated, too long, damaged, of another element type, or holds no images.
    """
    with _opened(path) as file:
        shape = _read_shape(file, path)
        images = shape if len(shape) == 4 else (*shape, 1)
        holds_images = len(images) == 4 and images[3] in (1, 3, 4) and 0 not in images[1:]
        if not holds_images or images[1] * images[2] > LARGEST_IMAGE:
            raise UnreadableDataError(
                f"an IDX file in {path.parent} holds no images: expected N x H x W, or N x H x W x C with C = 1, 3 "
                f"or 4, of at most {LARGEST_IMAGE // 1_000_000} million pixels"
            )
        if isinstance(file, gzip.GzipFile):
            return np.frombuffer(_read_elements(file, math.prod(shape), path), np.uint8).reshape(images)
        start = file.tell()
        if os.fstat(file.fileno()).st_size - start != math.prod(shape):
            raise _of_another_length(path)
        return IdxPixels(path, images, start=start, state=_state_of(file))


def read_idx_labels(path: Path, *, count: int) -> NDArray[np.int64]:
    """Labels as int64 [count].

    Raises:
        UnreadableDataError: the file is truncated, too long, damaged, of another element type, or has other labels.
    """
    with _opened(path) as file:
        shape = _read_shape(file, path)
        if shape != (count,):
            raise UnreadableDataError(
                f"the IDX labels in {path.parent} are not one label for each image of the images file beside it"
            )
        return np.frombuffer(_read_elements(file, count, path), np.uint8).astype(np.int64)


def _without_waiting(path: str, flags: int) -> int:
    """An opener for which a pipe that was put in a file's place is no reason to wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    if not path.is_file():
        raise UnreadableDataError(
            f"what is named like an IDX file in {path.parent} is no file: put the file there, or remove it"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error):
        raise UnreadableDataError(
            f"an IDX file in {path.parent} is truncated or damaged: fetch or unpack it again"
        ) from None
    except MemoryError:
        raise UnreadableDataError(
            f"an IDX file in {path.parent} does not fit into memory: unpack it; plain files are read a few "
            "images at a time"
        ) from None


def _read_shape(file: BinaryIO | gzip.GzipFile, path: Path) -> tuple[int, ...]:
    zeros, element, dimensions = struct.unpack(">HBB", file.read(4))
    if zeros != 0 or element != _UINT8 or not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise UnreadableDataError(
            f"a file in {path.parent} is no IDX file of unsigned bytes: check that it is what its name says"
        )
    return struct.unpack(f">{dimensions}I", file.read(4 * dimensions))


def _read_elements(file: BinaryIO | gzip.GzipFile, count: int, path: Path) -> bytearray:
    """In pieces, because the count is only a claim: nothing is reserved for bytes that are not there."""
    content = bytearray()
    while piece := file.read(min(_CHUNK, count + 1 - len(content))):
        content += piece
    if len(content) != count:
        raise _of_another_length(path)
    return content


def _of_another_length(path: Path) -> UnreadableDataError:
    return UnreadableDataError(
        f"an IDX file in {path.parent} is not as long as its header says: fetch or unpack it again"
    )


def _state_of(file: BinaryIO) -> tuple[int, ...]:
    """What changes when a file is written to, or another is put in its place."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _labels_of(images: Path) -> Path:
    stem = images.name.removesuffix(".gz").replace("images", "labels")
    stem = re.sub(r"idx[34]-ubyte$", "idx1-ubyte", stem)
    for name in (stem, f"{stem}.gz"):
        if (images.parent / name).is_file():
            return images.parent / name
    raise UnreadableDataError(
        f"{images.parent} holds IDX images without their labels: put the labels file beside them, named alike"
    )
