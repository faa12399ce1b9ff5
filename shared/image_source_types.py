"""What a set of images is to the rest of the program: labelled records that are read one by one, or an array of pixels.

A source can be pickled to a worker process of any start method; it opens its files again there. Whether a source is
`public` decides one thing: whether an error message may name a file.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import hashlib
import os
import stat
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.image_decoding import (
    HEADER_FIRST,
    LARGEST_FILE,
    NO_ACCESS,
    NO_FILE,
    NOT_AN_IMAGE,
    TOO_LARGE,
    DecodingError,
    ImageHeader,
    decode_image,
    read_header,
)
from dpmepf.shared.image_errors import LabelOutsideError, UnreadableDataError

HEADER_BYTES = 2**16  # read of an image for its header; all of it only where a header is longer, or says less
_ZIP_HEADER = struct.Struct("<4s22x2H")  # of a member: lengths of its name and of what else lies before its data
_ZIP_MAGIC, _UTF_8 = b"PK\x03\x04", 0x800

OUT_OF_RANGE = "its values leave [0, 1]; an array holds uint8, or floats from 0 to 1"


class ImageSource(ABC):
    """Images with labels.

    Attributes:
        kind: the form that was recognised, in words.
        classes: K class names; label i means classes[i].
        classes_declared: whether the names came from the user; otherwise they were read from the form of the data.
        labels: int64 [N], each in 0..K-1.
        split: "train", "test" or "val" if the data are divided and one part was chosen, else None.
        public: whether errors may name files.
    """

    def __init__(
        self,
        *,
        kind: str,
        classes: tuple[str, ...],
        classes_declared: bool,
        labels: NDArray[np.int64],
        split: str | None,
        public: bool,
    ) -> None:
        self.kind = kind
        self.classes = classes
        self.classes_declared = classes_declared
        self.labels = labels
        self.split = split
        self.public = public
        outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if outside.size:
            raise LabelOutsideError(
                f"a label is outside 0..{len(classes) - 1}: declare every class (--classes 12, or cat,dog,…)",
                location=self.location(int(outside[0])),
                public=public,
            )

    def __len__(self) -> int:
        return len(self.labels)

    def rearranged(self, order: NDArray[np.int64]) -> Self:
        """The same images in another order, or some of them: image i of the result is image `order[i]` of this one."""
        other = copy.copy(self)
        other.labels = self.labels[order]
        return other

    @abstractmethod
    def name(self, index: int) -> str:
        """What a list of the images calls image `index`: its path below the data, or its number in an array."""

    @abstractmethod
    def read(self, index: int, *, at_least: int = 0) -> Image.Image | NDArray[np.uint8]:
        """The image `index`, decoded but not prepared; `at_least` as in `decode_image`. Raises `DecodingError`."""

    @abstractmethod
    def header(self, index: int) -> ImageHeader:
        """Size and colour of image `index` without decoding it. Raises `DecodingError`."""

    @abstractmethod
    def location(self, index: int) -> str:
        """Where image `index` is, for the custodian's eyes."""

    @abstractmethod
    def file(self, index: int) -> Path:
        """The file that image `index` is read from, with others or alone."""


class ImageFiles(Protocol):
    """Encoded images that are read by name, from `root`."""

    root: Path

    def read(self, name: str, size: int = -1) -> bytes:
        """An image, or no more than its first `size` bytes."""

    def file(self, name: str) -> Path: ...

    def directory(self) -> bytes:
        """A hash of where in its files each image is, as they said when they were opened; b"" where each is a file."""


class FolderFiles:
    """Files below a folder, read by relative name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, name: str) -> Path:
        return self.root / name

    def directory(self) -> bytes:
        return b""

    def read(self, name: str, size: int = -1) -> bytes:
        path = self.root / name
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or device would block for ever
            raise DecodingError(NO_FILE)
        if status.st_size > LARGEST_FILE:
            raise DecodingError(TOO_LARGE)
        with path.open("rb") as file:
            return file.read(size)


class ZipMembers:
    """Members of a zip archive, read by name. Every process opens the archive for itself: a file offset is shared.

    Some versions of zipfile do not read a member that reaches into the next one, or the last one if it reaches into the
    archive's directory, and others do: that an image can be read would then depend on another. So an archive with a
    member that reaches into any other, or into the directory or behind it, is refused, whatever the version.
    """

    def __init__(self, path: Path) -> None:
        self.root = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._beginnings: list[int] = []  # of all members, in order

    def file(self, name: str) -> Path:
        return self.root

    def directory(self) -> bytes:
        digest = hashlib.sha256()
        for member in self._archive().infolist():
            place = (member.filename, member.header_offset, member.compress_size, member.file_size, member.CRC)
            digest.update(repr(place).encode())
        return digest.digest()

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            archive = zipfile.ZipFile(self.root)
            self._beginnings = sorted(member.header_offset for member in archive.infolist())
            self._opened = (os.getpid(), archive)
        return self._opened[1]

    def read(self, name: str, size: int = -1) -> bytes:
        archive = self._archive()
        member = archive.getinfo(name)
        self._require_alone(archive, member)
        if member.file_size > LARGEST_FILE:
            raise DecodingError(TOO_LARGE)
        with archive.open(member) as file:
            return file.read(size)

    def _require_alone(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        """Refuse the archive if another member, or its directory, begins before the end of this one.

        A header that is damaged by itself is left to zipfile, which refuses the member, whatever else there is.
        """
        assert archive.fp is not None
        archive.fp.seek(member.header_offset)  # who reads a member seeks its place first
        header = archive.fp.read(_ZIP_HEADER.size)
        if len(header) < _ZIP_HEADER.size:
            return
        magic, name_length, extra_length = _ZIP_HEADER.unpack(header)
        name = archive.fp.read(name_length).decode("utf-8" if member.flag_bits & _UTF_8 else "cp437", "replace")
        if magic != _ZIP_MAGIC or name != member.orig_filename:
            return
        end = member.header_offset + _ZIP_HEADER.size + name_length + extra_length + member.compress_size
        following = bisect.bisect_left(self._beginnings, member.header_offset) + 1
        if min([archive.start_dir, *self._beginnings[following : following + 1]]) < end:
            raise UnreadableDataError(
                "the zip archive is damaged, or holds a file inside another one: unpack it and pass the folder"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_opened": None, "_beginnings": []}


class EncodedImageSource(ImageSource):
    """Image files, each decoded when it is read.

    `levels_above`: how many levels of a name lie above the class folders; None where names do not lead through folders
    that mean something.
    """

    def __init__(
        self, *, members: ImageFiles, names: tuple[str, ...], levels_above: int | None, **attributes: Any
    ) -> None:
        self.members = members
        self.names = names
        self.levels_above = levels_above
        super().__init__(**attributes)

    def rearranged(self, order: NDArray[np.int64]) -> Self:
        other = super().rearranged(order)
        other.names = tuple(self.names[place] for place in order.tolist())
        return other

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int, *, at_least: int = 0) -> Image.Image:
        return decode_image(self._bytes(index), at_least=at_least)

    def header(self, index: int) -> ImageHeader:
        beginning = self._bytes(index, HEADER_BYTES)
        if len(beginning) == HEADER_BYTES:  # most likely there is more
            with contextlib.suppress(DecodingError):
                return read_header(beginning, formats=HEADER_FIRST)
            beginning = self._bytes(index)
        return read_header(beginning)

    def location(self, index: int) -> str:
        place = f"{self.members.root}/{self.names[index]}"
        return place.encode("utf-8", "backslashreplace").decode()  # a name need not be valid text

    def file(self, index: int) -> Path:
        return self.members.file(self.names[index])

    def _bytes(self, index: int, size: int = -1) -> bytes:
        try:
            return self.members.read(self.names[index], size)
        except (DecodingError, MemoryError, DpmepfError):  # of a whole container: it must not pass for one image's
            raise
        except OSError as error:  # of the system, or of bz2 about a member that is damaged, without a number
            raise DecodingError(NOT_AN_IMAGE if error.errno is None else NO_ACCESS) from None
        except Exception:  # zipfile: BadZipFile, zlib.error, NotImplementedError, EOFError, …
            raise DecodingError(NOT_AN_IMAGE) from None


class Pixels(Protocol):
    """An array N x H x W x C of uint8, or of floats in [0, 1]; in memory (NumPy's) or in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice | NDArray[np.int64], /) -> NDArray[Any]: ...


class ArrayImageSource(ImageSource):
    """Images that are one array already.

    `open_pixels` gives an array in memory again in another process, so that pixels are never pickled.
    """

    def __init__(self, *, path: Path, pixels: Pixels, open_pixels: Callable[[], Pixels], **attributes: Any) -> None:
        self.path = path
        self._pixels: Pixels | None = pixels
        self._open_pixels = open_pixels
        self._order: NDArray[np.int64] | None = None  # place in the array of each image, None if as stored
        super().__init__(**attributes)

    def rearranged(self, order: NDArray[np.int64]) -> Self:
        other = super().rearranged(order)
        other._order = order if self._order is None else self._order[order]
        return other

    def name(self, index: int) -> str:
        return str(index if self._order is None else self._order[index])

    @property
    def pixels(self) -> Pixels:
        """The stored array, N x H x W x C."""
        if self._pixels is None:
            self._pixels = self._open_pixels()
        return self._pixels

    def block(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Images `start` to `stop` as uint8 N x H x W x C, and for each whether its values were in range."""
        stored = self.pixels[start:stop] if self._order is None else self.pixels[self._order[start:stop]]
        if stored.dtype == np.uint8:
            return stored, np.ones(len(stored), np.bool_)
        in_range = np.all((stored >= 0) & (stored <= 1), axis=(1, 2, 3))  # false for NaN
        scaled = np.where(in_range[:, None, None, None], stored, 0).astype(np.float32) * np.float32(255)
        return np.rint(scaled).astype(np.uint8), in_range

    def read(self, index: int, *, at_least: int = 0) -> NDArray[np.uint8]:
        images, in_range = self.block(index, index + 1)
        if not in_range.all():
            raise DecodingError(OUT_OF_RANGE)
        return images[0]

    def header(self, index: int) -> ImageHeader:
        _, height, width, channels = self.pixels.shape
        return ImageHeader(shorter_side=min(height, width), grey=channels == 1)

    def location(self, index: int) -> str:
        return f"{self.path}: image {self.name(index)}, counted from 0"

    def file(self, index: int) -> Path:
        return self.path

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None if isinstance(self._pixels, np.ndarray) else self._pixels}
