"""Tar files at random: headers are gone through once, and an image is then read by its place. Nothing is unpacked.

Headers are read by the standard library, and every claim in them is checked: names as in a zip; regular files and
folders only (no link, device or sparse file); each member where the one before it ends, up to an end that is marked as
one. WebDataset's naming (`KEY.png` beside `KEY.cls`) needs no more than that, so its library is not used.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpmepf.shared.image_decoding import LARGEST_FILE, NOT_AN_IMAGE, TOO_LARGE, DecodingError
from dpmepf.shared.image_errors import LabelError, RepeatedImageError, UnreadableDataError
from dpmepf.shared.image_layout import is_image, is_visible
from dpmepf.shared.shards import compressed_tar

MOST_IMAGES = 10_000_000  # the index of so many takes about 4 GB
_LARGEST_HEADER = 2**16  # bytes of a long name, or of attributes
_LONGEST_END = 2**20  # bytes of zeros
_LONGEST_LABEL = 1024  # bytes of a .cls
_MAGIC = slice(257, 262)
_COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_OTHERS = (b"PK\x03\x04", b"PAR1")  # zip and parquet
_ATTRIBUTE = re.compile(rb"([1-9]\d{0,5}) ([^=\n\0]+)=")
_LONG_NUMBER = re.compile(rb"\d{256}")
_DAMAGED = "a tar file is truncated or damaged: fetch or pack it again"
_SPECIAL = "a tar file holds links, devices or sparse files: pack it again without"
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_ATTRIBUTES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar by its content or, as very old ones have no mark, by its name."""
    with path.open("rb") as file:
        start = file.read(_MAGIC.stop)
    marked = start[_MAGIC] == b"ustar" and not start.startswith(_OTHERS)  # in which pixels may lie there
    return marked or path.suffix.lower() == ".tar"


def key_of(name: str) -> str:
    """What WebDataset calls a sample: the path without what follows the first dot of the file's own name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """Where the images of one or more tar files are; image i is `starts[i]`, `sizes[i]` in `shards[shard_numbers[i]]`.

    `names` are those inside the tar files, and `labels` maps keys to places in `label_texts`.
    """

    shards: tuple[str, ...]
    names: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    labels: dict[str, int] = field(default_factory=dict)
    label_texts: dict[str, int] = field(default_factory=dict)
    starts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    shard_numbers: array[int] = field(default_factory=lambda: array("i"))


def index_tars(root: Path, shards: Sequence[str], *, public: bool) -> TarIndex:
    """Go through the headers of tar files in the folder `root`, or of `root` itself if `shards` is a single "".

    Raises:
        UnreadableDataError: a file is damaged, compressed, or holds what is refused.
        RepeatedImageError: a name is there twice, in one file or in two.
        LabelError: a label is no short text.
    """
    index = TarIndex(shards=tuple(shards))
    for number, shard in enumerate(shards):
        path = root / shard
        for name, start, size, file in _members(path, public):
            location = f"{path}/{name}".encode("utf-8", "backslashreplace").decode()
            if not is_visible(name):
                continue
            if start is None:
                index.folders.add(name)
            elif is_image(name):
                if name in index.names:
                    raise _repeated(location, public)
                if len(index.names) == MOST_IMAGES:
                    raise UnreadableDataError(f"tar files hold more than {MOST_IMAGES:,} images: pass them in parts")
                index.names[name] = len(index.names)
                index.starts.append(start)
                index.sizes.append(size)
                index.shard_numbers.append(number)
            elif name[len(key_of(name)) :].lower() == ".cls":
                text = _label_text(file, start, size)
                if text is None:
                    raise LabelError(
                        "a .cls file holds no label: it is the name or the number of a class, in UTF-8",
                        location=location,
                        public=public,
                    )
                if key_of(name) in index.labels:
                    raise _repeated(location, public)
                index.labels[key_of(name)] = index.label_texts.setdefault(text, len(index.label_texts))
    return index


def _repeated(location: str, public: bool) -> RepeatedImageError:
    return RepeatedImageError(
        "tar files hold one name twice, and an image would count twice: give each image a name of its own",
        location=location,
        public=public,
    )


class TarMembers:
    """Image files inside tar files, read by place."""

    def __init__(self, root: Path, index: TarIndex, names: dict[str, int]) -> None:
        """`names`: what the source calls image i of `index`, to i."""
        self.root = root
        self._index = index
        self._names = names

    def file(self, name: str) -> Path:
        return self.root / self._index.shards[self._index.shard_numbers[self._names[name]]]

    def directory(self) -> bytes:
        index = self._index
        digest = hashlib.sha256()
        for places in (index.starts, index.sizes, index.shard_numbers):
            digest.update(places.tobytes())
        return digest.digest()

    def read(self, name: str, size: int = -1) -> bytes:
        place = self._names[name]
        whole = self._index.sizes[place]
        if whole > LARGEST_FILE:
            raise DecodingError(TOO_LARGE)
        expected = whole if size < 0 else min(size, whole)
        with self.file(name).open("rb") as file:
            file.seek(self._index.starts[place])
            data = file.read(expected)
        if len(data) < expected:  # cut since it was indexed
            raise DecodingError(NOT_AN_IMAGE)
        return data


class _Headers(io.FileIO):
    """A file of which little is read at once, and never all: a header may claim gigabytes, or less than nothing."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError
        return super().read(size) or b""

    def read_end(self) -> bytes:
        return super().read(_LONGEST_END) or b""


class _SparseFileError(tarfile.TarError):
    """A sparse file, by its attributes."""


class _Member(tarfile.TarInfo):
    """A member whose attributes are checked before the standard library reads them.

    Attributes that are longer than they say, long numbers (CVE-2024-6232) and sparse files, which are refused anyway,
    can make it take time and memory out of all proportion to their size.
    """

    __slots__ = ()

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            return self._proc_builtin(tar)  # type: ignore[attr-defined]
        if self.type in _ATTRIBUTES and tar.fileobj is not None:
            start = tar.fileobj.tell()
            _check_attributes(tar.fileobj.read(_in_blocks(self.size)))
            tar.fileobj.seek(start)
        return super()._proc_member(tar)  # type: ignore[misc]


def _check_attributes(data: bytes) -> None:
    """Raise unless `data` are lines `LENGTH KEY=VALUE`, each as long as it says, and zeros behind them."""
    place = 0
    while (found := _ATTRIBUTE.match(data, place)) is not None:
        place += int(found[1])
        if not found.end() < place <= len(data) or data[place - 1 : place] != b"\n":
            raise tarfile.ReadError
        if found[2].startswith(b"GNU.sparse."):
            raise _SparseFileError
    if data[place:].strip(b"\0") or _LONG_NUMBER.search(data):
        raise tarfile.ReadError


def _in_blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _members(path: Path, public: bool) -> Iterator[tuple[str, int | None, int, _Headers]]:
    """Name, place and size of each file of a tar, and the open tar; a folder has no place."""

    def refused(sentence: str) -> UnreadableDataError:
        return UnreadableDataError.in_shard(sentence, path=path, public=public)

    with _Headers(path) as file:
        beginning = file.read(_MAGIC.stop)
        if beginning.startswith(_COMPRESSIONS) and beginning[_MAGIC] != b"ustar":  # a first name may begin with BZh
            raise compressed_tar()
        file.seek(0)
        length = os.fstat(file.fileno()).st_size
        try:
            tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", tarinfo=_Member)
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or every header stays in memory
                tar.pax_headers = {}
                is_folder = member.isdir()
                if member.sparse is not None or not (is_folder or member.type in _FILES):
                    raise refused(_SPECIAL)
                end = member.offset_data + (0 if is_folder else _in_blocks(member.size))
                if member.size < 0 or tar.offset != end or end > length:
                    raise refused(_DAMAGED)
                name = member.name.removeprefix("./")
                if is_folder and name in ("", "."):
                    continue
                if "\\" in name:
                    raise refused("a tar file separates folders by backslashes: unpack it and pass the folder")
                if {"", ".", ".."} & set(name.split("/")):
                    raise refused("a tar file has names like /a, a//b or ../a: unpack it and pass the folder")
                yield name, None if is_folder else member.offset_data, member.size, file
            file.seek(tar.offset)
            end_of_archive = file.read_end()
        except _SparseFileError:
            raise refused(_SPECIAL) from None
        except (tarfile.TarError, ValueError, OverflowError, RecursionError):
            raise refused(_DAMAGED) from None
    if (
        len(end_of_archive) < tarfile.BLOCKSIZE
        or end_of_archive.strip(b"\0")
        or tar.offset + len(end_of_archive) < length
    ):
        raise refused("a tar file does not end where it should, or holds more behind its end: fetch or pack it again")


def _label_text(file: _Headers, start: int, size: int) -> str | None:
    if size > _LONGEST_LABEL:
        return None
    file.seek(start)
    try:
        return file.read(size).decode("utf-8").strip() or None
    except UnicodeDecodeError:
        return None
