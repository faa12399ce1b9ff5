"""Trusted core: the headers of a possibly hostile HDF5 file, looked at before the HDF5 library follows them.

The library takes a file's word for how much there is to walk through: an index of 2^40 rows that are not there, a tree
whose branches are all one node, a name that leads through another file. It walks in C, where neither Ctrl-C nor a limit
reaches it. So objects are allowed the forms alone in which artifacts have them, which are short.

Source: HDF5 File Format Specification, version 3.0, sections III.C, IV.A.1.b, IV.A.2 and VII.C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from dpmepf.artifacts import errors
from dpmepf.artifacts.ledger import LARGEST_CLASS_COUNT

_ROOT = 36  # where the superblock has the root group's address
_NOWHERE = 2**64 - 1
_MOST_BLOCKS, _LONGEST_BLOCK = 16, 2**16
_TIMES, _ATTRIBUTE_PHASE, _ORDERED = 0x20, 0x10, 0x04  # flags of an object header
_LINK_INFO, _LINK, _LAYOUT, _CONTINUATION, _SYMBOL_TABLE, _ATTRIBUTE_INFO = 0x02, 0x06, 0x08, 0x10, 0x11, 0x15
_CHUNKED = 2
_SINGLE_CHUNK, _FIXED_ARRAY = 1, 3
_HARD = 0


def check_headers(file: BinaryIO) -> None:
    """Refuse a root group, or an object that it links to, whose header leads to anything long.

    Raises:
        UndeclaredObjectError, UndeclaredAttributeError: more links or attributes than a header holds, a path as a name.
        SharedObjectError: two links have one name.
        StorageLayoutError: rows are found in another way than by a list of at most as many as an artifact can have.
        CorruptArtifactError: a header is damaged.
    """
    with _damage():
        (root,) = struct.unpack("<Q", _read(file, _ROOT, 8))
        names: set[bytes] = set()
        for name, address in _links(file, root):
            if name in names:
                raise errors.SharedObjectError(f"{_shown(name)}: two links have this name")
            if b"/" in name or name == b".":
                raise errors.UndeclaredObjectError(f"{_shown(name)}: a path as a name; an artifact has no such object")
            names.add(name)
            if address is not None:
                for _ in _links(file, address):
                    pass


def _links(file: BinaryIO, address: int) -> Iterator[tuple[bytes, int | None]]:
    """Name and, of a hard link, address of each link in the object at `address`, whose other messages are checked."""
    for kind, message in _messages(file, address):
        if kind == _LINK:
            yield _link(message)
        elif kind == _SYMBOL_TABLE or (kind == _LINK_INFO and _heap(message, counter=8) != _NOWHERE):
            raise errors.UndeclaredObjectError("a group with a heap for its links: an artifact has five links in all")
        elif kind == _ATTRIBUTE_INFO and _heap(message, counter=2) != _NOWHERE:
            raise errors.UndeclaredAttributeError("an object with a heap for its attributes; an artifact has none")
        elif kind == _LAYOUT and message[1 if message[0] > 2 else 2] == _CHUNKED:
            _check_index(file, message)


def _check_index(file: BinaryIO, layout: bytes) -> None:
    version, _, _, rank, width = layout[:5]
    place = 5 + rank * width  # behind the chunk's shape
    index = layout[place] if version == 4 else None
    if index == _SINGLE_CHUNK:
        return
    if index == _FIXED_ARRAY:
        (address,) = struct.unpack_from("<Q", layout, place + 2)
        if address == _NOWHERE:  # no row is stored, of which the library can tell
            return
        signature, _, rows = struct.unpack("<4s4sQ", _read(file, address, 16))
        if signature == b"FAHD" and rows <= LARGEST_CLASS_COUNT:
            return
    raise errors.StorageLayoutError("its rows are not found by a list of at most as many as an artifact can have")


def _messages(file: BinaryIO, address: int) -> Iterator[tuple[int, bytes]]:
    """Type and content of each message of the object header at `address`, of version 2."""
    signature, version, flags = struct.unpack("<4sBB", _read(file, address, 6))
    if (signature, version) != (b"OHDR", 2):
        raise errors.StorageLayoutError("an object's header is of another version than an artifact's")
    place = address + 6 + (16 if flags & _TIMES else 0) + (4 if flags & _ATTRIBUTE_PHASE else 0)
    width = 1 << (flags & 3)
    head = struct.Struct("<BHB2x" if flags & _ORDERED else "<BHB")
    blocks = [(place + width, int.from_bytes(_read(file, place, width), "little"))]
    for number, (start, length) in enumerate(blocks):
        if number == _MOST_BLOCKS or length > _LONGEST_BLOCK:
            raise errors.CorruptArtifactError("the HDF5 file is damaged: an object's header does not end")
        block = _read(file, start, length)
        place = 0
        while place + head.size <= length:
            kind, size, _ = head.unpack_from(block, place)
            message = block[place + head.size : place + head.size + size]
            place += head.size + size
            if kind == _CONTINUATION:
                further, all_of_it = struct.unpack("<QQ", message)
                blocks.append((further + 4, max(0, all_of_it - 8)))  # between signature and checksum
            else:
                yield kind, message


def _link(message: bytes) -> tuple[bytes, int | None]:
    _, flags = message[:2]
    kind = message[2] if flags & 0x08 else _HARD
    place = 2 + bool(flags & 0x08) + 8 * bool(flags & 0x04) + bool(flags & 0x10)  # type, order, character set
    width = 1 << (flags & 3)
    length = int.from_bytes(message[place : place + width], "little")
    name, rest = message[place + width :][:length], message[place + width :][length:]
    return name, struct.unpack_from("<Q", rest)[0] if kind == _HARD else None


def _heap(info: bytes, *, counter: int) -> int:
    """The address in a message on links or attributes of the heap that holds them, where the header does not."""
    return int(struct.unpack_from("<Q", info, 2 + counter * bool(info[1] & 1))[0])


def _read(file: BinaryIO, address: int, size: int) -> bytes:
    file.seek(address)
    found = file.read(size)
    if len(found) < size:
        raise errors.CorruptArtifactError("the HDF5 file is damaged: a header leads beyond its end")
    return found


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (struct.error, IndexError, ValueError, OverflowError, OSError):  # OSError: a seek beyond 2^63
        raise errors.CorruptArtifactError("the HDF5 file is damaged: a header holds something else") from None


def _shown(name: bytes) -> str:
    return ascii(name.decode("utf-8", "replace")[:80])
