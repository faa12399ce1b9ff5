"""Trusted core: the headers of a possibly hostile HDF5 file, read here before the HDF5 library follows them.

The library takes a file's word for how much there is to walk through: an index of 2^40 rows that are not there, a type
that refers to itself, a name that leads through another file. It walks in C, where neither Ctrl-C nor a limit reaches
it, and what it does not know it passes over. So headers hold what those of artifacts hold, and nothing else: five
links, and in each data set one message at most of each of five kinds.

Source: HDF5 File Format Specification, version 3.0, sections III.C, IV.A.1.b, IV.A.2 and VII.C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from dpmepf.artifacts import errors
from dpmepf.artifacts.ledger import LARGEST_CLASS_COUNT

MEMBERS = ("ledger", "feature_map", "classes", "noisy_sums", "noisy_counts")

_ROOT = 36  # where the superblock has the root group's address
_NOWHERE = 2**64 - 1
_MOST_BLOCKS, _LONGEST_BLOCK, _LONGEST_MESSAGE = 16, 2**16, 256
_TIMES, _ATTRIBUTE_PHASE, _ORDERED = 0x20, 0x10, 0x04  # flags of an object header
_CONSTANT, _SHARED = 1, 2  # flags of a message; artifacts have the first at most
_NOTHING, _DATASPACE, _LINK_INFO, _TYPE, _FILL, _LINK, _EXTERNAL_FILES = 0, 1, 2, 3, 5, 6, 7
_LAYOUT, _GROUP_INFO, _FILTERS, _ATTRIBUTE, _CONTINUATION, _TABLE, _ATTRIBUTE_INFO = 8, 10, 11, 12, 16, 17, 21
_OF_GROUPS = (_LINK_INFO, _LINK, _GROUP_INFO, _TABLE)
_OF_DATASETS = (_DATASPACE, _TYPE, _FILL, _FILTERS, _LAYOUT)
_CHUNKED, _VIRTUAL = 2, 3
_SINGLE_CHUNK, _FIXED_ARRAY = 1, 3
_HARD, _SOFT, _EXTERNAL = 0, 1, 64


def check_headers(file: BinaryIO) -> None:
    """The root group has a link to a data set of its own for each of `MEMBERS`, and nothing else; all in headers alone.

    Raises: the type of `errors` for what is there instead; CorruptArtifactError for what is no header.
    """
    with _damage():
        for address, name in _members(file).items():
            _check_dataset(file, address, name)


def _members(file: BinaryIO) -> dict[int, str]:
    """The names of `MEMBERS`, by the addresses that the root group gives, after checking that it holds nothing else."""
    (root,) = struct.unpack("<Q", _read(file, _ROOT, 8))
    messages = _sorted_messages(file, root, "the root group")
    for kind, _, message in messages:
        if kind == _TABLE or (kind == _LINK_INFO and _heap(message) != _NOWHERE):
            raise errors.UndeclaredObjectError("the root group: it has a heap of links; an artifact has five links")
    links = [_link(message) for kind, _, message in messages if kind == _LINK]
    if MEMBERS[0].encode() not in {name for name, _, _ in links}:  # before other names: it may be anybody's file
        raise errors.MissingObjectError(
            f"{MEMBERS[0]}: there is no such data set; this HDF5 file is no dpmepf artifact"
        )
    members: dict[int, str] = {}
    for link in links:
        name, address = _member(*link)
        if name in members.values():
            raise errors.SharedObjectError(f"{name}: two links have this name")
        if address in members:
            raise errors.SharedObjectError(f"{name}: it is the same object as {members[address]}")
        members[address] = name
    for name in MEMBERS:
        if name not in members.values():
            raise errors.MissingObjectError(f"{name}: there is no such data set")
    for kind, flags, _ in messages:
        if kind not in (_NOTHING, _LINK_INFO, _LINK, _GROUP_INFO, _CONTINUATION) or flags & ~_CONSTANT:
            raise errors.StorageLayoutError(f"the root group: its header holds what no artifact's does ({kind})")
    return members


def _check_dataset(file: BinaryIO, address: int, name: str) -> None:
    found: set[int] = set()
    for kind, flags, message in _sorted_messages(file, address, name):
        if kind in _OF_GROUPS:
            raise errors.UndeclaredObjectError(f"{name}: expected a data set, found a group")
        if kind == _EXTERNAL_FILES:
            raise errors.ExternalStorageError(f"{name}: its values are declared to lie in another file")
        if kind == _TYPE and flags & _SHARED:
            raise errors.ElementTypeError(f"{name}: its type is a named object of the file")
        if kind == _NOTHING:
            continue
        if kind not in _OF_DATASETS or kind in found or flags & ~_CONSTANT or len(message) > _LONGEST_MESSAGE:
            raise errors.StorageLayoutError(f"{name}: its header holds what no artifact's does ({kind})")
        found.add(kind)
        if kind == _LAYOUT:
            _check_layout(file, message, name)
    if _LAYOUT not in found:
        raise errors.UndeclaredObjectError(f"{name}: expected a data set, found a named type")


def _check_layout(file: BinaryIO, layout: bytes, name: str) -> None:
    version, storage, _, rank, width = layout[:5]
    if version in (3, 4) and storage == _VIRTUAL:
        raise errors.VirtualDatasetError(f"{name}: it is a virtual data set, assembled from other files")
    if version in (3, 4) and storage < _CHUNKED:
        return
    if version == 4 and storage == _CHUNKED:
        place = 5 + rank * width  # behind the chunk's shape
        if layout[place] == _SINGLE_CHUNK:
            return
        if layout[place] == _FIXED_ARRAY:
            (address,) = struct.unpack_from("<Q", layout, place + 2)
            if address == _NOWHERE:  # no row is stored, of which the library can tell
                return
            signature, _, rows = struct.unpack("<4s4sQ", _read(file, address, 16))
            if signature == b"FAHD" and rows <= LARGEST_CLASS_COUNT:
                return
    raise errors.StorageLayoutError(f"{name}: its values are not found by a list of at most {LARGEST_CLASS_COUNT} rows")


def _sorted_messages(file: BinaryIO, address: int, name: str) -> list[tuple[int, int, bytes]]:
    """The messages of the object called `name`, by type, after checking that none is an attribute."""
    messages = sorted(_messages(file, address), key=lambda message: message[0])
    for kind, _, message in messages:
        if kind == _ATTRIBUTE:
            (length,) = struct.unpack_from("<H", message, 2)
            shown = _shown(message[8 + (message[0] == 3) :][:length].rstrip(b"\0"))
            raise errors.UndeclaredAttributeError(f"{name}: the attribute {shown}; an artifact has none")
        if kind == _ATTRIBUTE_INFO:
            raise errors.UndeclaredAttributeError(f"{name}: it has an index of attributes; an artifact has none")
    return messages


def _messages(file: BinaryIO, address: int) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and content of each message of the object header at `address`, of version 2."""
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
            kind, size, message_flags = head.unpack_from(block, place)
            message = block[place + head.size : place + head.size + size]
            place += head.size + size
            if kind == _CONTINUATION:
                further, all_of_it = struct.unpack("<QQ", message)
                blocks.append((further + 4, max(0, all_of_it - 8)))  # between signature and checksum
            yield kind, message_flags, message


def _link(message: bytes) -> tuple[bytes, int, bytes]:
    """Name, type and target of a link."""
    _, flags = message[:2]
    kind = message[2] if flags & 0x08 else _HARD
    place = 2 + bool(flags & 0x08) + 8 * bool(flags & 0x04) + bool(flags & 0x10)  # type, order, character set
    width = 1 << (flags & 3)
    length = int.from_bytes(message[place : place + width], "little")
    return message[place + width :][:length], kind, message[place + width :][length:]


def _member(name: bytes, kind: int, target: bytes) -> tuple[str, int]:
    """Name and address, after checking that it is an ordinary link of one of `MEMBERS`."""
    if kind == _SOFT:
        raise errors.SoftLinkError(f"{_shown(name)}: a soft link")
    if kind == _EXTERNAL:
        raise errors.ExternalLinkError(f"{_shown(name)}: a link into another file")
    if kind != _HARD:
        raise errors.UnknownLinkError(f"{_shown(name)}: a link of an unknown kind")
    if name not in {member.encode() for member in MEMBERS}:
        raise errors.UndeclaredObjectError(f"{_shown(name)}: an artifact has no such object")
    return name.decode(), int(struct.unpack("<Q", target)[0])


def _heap(link_info: bytes) -> int:
    """The address of the heap that holds links, where the header does not."""
    return int(struct.unpack_from("<Q", link_info, 2 + 8 * bool(link_info[1] & 1))[0])


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
    """A name out of the file, safe to print."""
    return ascii(name.decode("utf-8", "replace")[:80])
