"""The blocks of an HDF5 file that carry a checksum, and how somebody who edits them makes it right again."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

_SIGNATURES = re.compile(rb"OHDR|OCHK|FAHD|FADB|FRHP|FHDB|FHIB|BTHD|BTIN|BTLF")
_SUPERBLOCK = 44  # bytes before its checksum
_END_OF_FILE = slice(28, 36)
_LONGEST = 1500
_MASK = 0xFFFFFFFF


def checksummed_blocks(content: bytes) -> list[tuple[int, int]]:
    """(start, end) of every block whose four bytes from `end` on are the checksum of those before."""
    starts = [match.start() for match in _SIGNATURES.finditer(content)]
    return [(0, _SUPERBLOCK), *((start, end) for start in starts for end in _ends(content, start))]


def reseal(content: bytearray, blocks: list[tuple[int, int]]) -> None:
    """Write the right checksum behind each of `blocks`."""
    for start, end in blocks:
        content[end : end + 4] = lookup3(bytes(content[start:end])).to_bytes(4, "little")


def set_end_of_file(content: bytearray) -> None:
    """Make the superblock say that the file ends where it ends."""
    content[_END_OF_FILE] = len(content).to_bytes(8, "little")
    reseal(content, [(0, _SUPERBLOCK)])


def _ends(content: bytes, start: int) -> Iterator[int]:
    """The first end, if any, at which the checksum is right; blocks do not say their own length in one way."""
    for end in range(start + 12, min(start + _LONGEST, len(content) - 3)):
        if lookup3(content[start:end]) == int.from_bytes(content[end : end + 4], "little"):
            yield end
            return


def lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 hash (2006, public domain), which HDF5 uses as its checksum."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    padded = data + bytes(-len(data) % 12)
    words = struct.unpack(f"<{len(padded) // 4}I", padded)
    for first in range(0, len(words), 3):
        a, b, c = ((x + word) & _MASK for x, word in zip((a, b, c), words[first : first + 3], strict=True))
        if first + 3 < len(words):
            for shift in (4, 6, 8, 16, 19, 4):  # the same step, with the three in turn
                a = ((a - c) & _MASK) ^ _rotated(c, shift)
                a, b, c = b, (c + b) & _MASK, a
        else:
            for shift in (14, 11, 25, 16, 4, 14, 24):
                c = ((c ^ b) - _rotated(b, shift)) & _MASK
                a, b, c = b, c, a
    return b


def _rotated(word: int, shift: int) -> int:
    return (word << shift | word >> (32 - shift)) & _MASK
