"""Ways to edit an artifact behind the HDF5 library's back, its checksums made right again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
from malformed_structure import external_link_that_nobody_needs, put_sums
from metadata_blocks import checksummed_blocks, reseal, set_end_of_file

from dpmepf.artifacts import errors
from dpmepf.shared.errors import DpmepfError

FORMAT = ("v110", "v110")
_LINK_CLASS, _EXTERNAL, _USER_DEFINED = 2, 64, 65  # offset in a link message; types of link


def _edit(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    blocks = checksummed_blocks(bytes(content))
    change(content)
    reseal(content, blocks)
    path.write_bytes(content)


def link_of_an_unknown_kind(path: Path) -> None:
    with h5py.File(path, "r+", libver=FORMAT) as file:
        external_link_that_nobody_needs(file)

    def change(content: bytearray) -> None:
        (message,) = re.finditer(rb"\x01[\x08-\x1f]\x40.{0,9}\x04more", content, flags=re.DOTALL)
        content[message.start() + _LINK_CLASS] = _USER_DEFINED

    _edit(path, change)


def rows_that_share_their_bytes(path: Path) -> None:
    """The chunk index says that all rows lie where the first does: one large row stands for many."""
    with h5py.File(path, "r+", libver=FORMAT) as file:
        sums = put_sums(file, shape=(3, 2**16), chunks=(1, 2**16))
        for row in range(3):
            sums.id.write_direct_chunk((row, 0), bytes(2**18 if row == 0 else 16))

    def change(content: bytearray) -> None:
        first, size = content.rindex(b"FADB") + 14, _chunk_entry_size(content)
        content[first : first + 3 * size] = content[first : first + size] * 3

    _edit(path, change)


def freed_row(path: Path) -> None:
    """The second row lies where the first does, so that its own bytes can say anything; the file has its size."""

    def change(content: bytearray) -> None:
        first, size = content.rindex(b"FADB") + 14, _chunk_entry_size(content)
        freed = int.from_bytes(content[first + size : first + size + 8], "little")
        content[first + size : first + 2 * size] = content[first : first + size]
        content[freed : freed + 7] = b"patient"

    _edit(path, change)


def counts_inside_a_row(path: Path) -> None:
    """What is read as counts lies in the deflated first row."""
    with h5py.File(path) as file:
        counts, row = (file["noisy_counts"].id.get_offset(), file["noisy_sums"].id.get_chunk_info(0).byte_offset)

    def change(content: bytearray) -> None:
        place = counts.to_bytes(8, "little") + (24).to_bytes(8, "little")
        assert content.count(place) == 1
        start = content.index(place)
        content[start : start + 8] = (row + 8).to_bytes(8, "little")

    _edit(path, change)


def _renamed(path: Path, old: bytes, new: bytes) -> None:
    def change(content: bytearray) -> None:
        assert content.count(old) == 1
        start = content.index(old)
        content[start : start + len(old)] = new

    _edit(path, change)


def path_as_a_name(path: Path) -> None:
    """For whoever asks the library what it names, it could lead through a link to another file."""
    with h5py.File(path, "r+", libver=FORMAT) as file:
        file["classes_x"] = file["noisy_counts"]
    _renamed(path, b"classes_x", b"classes/x")


def name_that_goes_on_after_its_end(path: Path) -> None:
    """The library reads it as `classes`, of which there is another."""
    with h5py.File(path, "r+", libver=FORMAT) as file:
        file["classes_x"] = file["noisy_counts"]
    _renamed(path, b"classes_x", b"classes\0x")


def one_name_twice(path: Path) -> None:
    with h5py.File(path, "r+", libver=FORMAT) as file:
        file["classez"] = [1]
    _renamed(path, b"classez", b"classes")


def list_of_a_trillion_rows(path: Path) -> None:
    """None of them is there, and the library counts them all."""

    def change(content: bytearray) -> None:
        start = content.rindex(b"FAHD")
        content[start + 8 : start + 16] = (2**40).to_bytes(8, "little")
        content[start + 16 : start + 24] = b"\xff" * 8

    _edit(path, change)


def _rows_in_a_tree(path: Path, *format_: str) -> None:
    with h5py.File(path, "r+", libver=FORMAT) as file:
        rows = file["noisy_sums"][()]
    with h5py.File(path, "r+", libver=format_) as file:
        put_sums(file)[...] = rows


def rows_in_a_tree(path: Path) -> None:
    """Its branches could all be one node, and the library would walk through each."""
    _rows_in_a_tree(path, "v108", "v110")


def rows_in_a_tree_of_an_earlier_format(path: Path) -> None:
    _rows_in_a_tree(path, "earliest", "v110")


def header_without_end(path: Path) -> None:
    """The root group's header goes on where it begins."""
    long = b"x" * 40
    with h5py.File(path, "r+", libver=FORMAT) as file:
        file[long] = file["noisy_counts"]

    def change(content: bytearray) -> None:
        link = content.index(long) - 7  # of four bytes: type, length in two, flags; then version, flags, length
        assert content[link] == 6
        begin, end = next(block for block in checksummed_blocks(bytes(content)) if block[0] <= link < block[1])
        first = begin + (4 if content[begin : begin + 4] == b"OCHK" else 6 + (1 << (content[begin + 5] & 3)))
        where = (first - 4).to_bytes(8, "little") + (end - first + 8).to_bytes(8, "little")
        rest = content[link + 1] - 20
        content[link : link + 24] = bytes([16, 16, 0, 0]) + where + bytes([0, rest, 0, 0])

    _edit(path, change)


def _message_of_the_counts(path: Path, kind: int, change: Callable[[bytearray, int], None]) -> None:
    """Change the message of this type in the counts' header, given where it begins."""
    with h5py.File(path) as file:
        start = h5py.h5o.get_info(file.id, b"noisy_counts").addr

    def edit(content: bytearray) -> None:
        place = start + 6 + (1 << (content[start + 5] & 3))
        while content[place] != kind:
            place += 4 + int.from_bytes(content[place + 1 : place + 3], "little")
        change(content, place)

    _edit(path, edit)


def shape_by_reference(path: Path) -> None:
    """The library would look for it in another header, which may refer to itself."""

    def refer(content: bytearray, place: int) -> None:
        content[place + 3] |= 2

    _message_of_the_counts(path, 1, refer)


def comment_in_a_header(path: Path) -> None:
    def remark(content: bytearray, place: int) -> None:
        content[place] = 13
        content[place + 4 : place + 12] = b"patient\0"

    _message_of_the_counts(path, 0, remark)


def type_of_a_thousand_bytes(path: Path) -> None:
    """As one of types in types would have."""
    with h5py.File(path, "r+", libver=FORMAT) as file:
        deep: Any = h5py.h5t.STD_I64LE
        for _ in range(300):
            deep = h5py.h5t.vlen_create(deep)
        del file["noisy_counts"]
        h5py.h5d.create(file.id, b"noisy_counts", deep, h5py.h5s.create_simple((3,)))


def row_of_a_gigabyte(path: Path) -> None:
    """The chunk index says so of one row; the file has no such bytes."""

    def change(content: bytearray) -> None:
        first, size = content.rindex(b"FADB") + 14, _chunk_entry_size(content)
        width = size - 12  # address, length, filter mask
        content[first + 8 : first + 8 + width] = (2 ** min(30, 8 * width - 1)).to_bytes(width, "little")

    _edit(path, change)


def bytes_that_belong_to_nothing(path: Path) -> None:
    content = bytearray(path.read_bytes() + b"secret" * 20_000)
    set_end_of_file(content)
    path.write_bytes(content)


def few_bytes_that_belong_to_nothing(path: Path) -> None:
    content = bytearray(path.read_bytes() + b"patient" * 400)
    set_end_of_file(content)
    path.write_bytes(content)


def terabyte_of_nothing(path: Path) -> None:
    """A sparse file: a few kilobytes on the disk, and a terabyte for whoever reads all of it."""
    content = bytearray(path.read_bytes())
    size = 2**40
    content[28:36] = size.to_bytes(8, "little")
    reseal(content, [(0, 44)])
    path.write_bytes(content)
    os.truncate(path, size)


def appended_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"secret")


def prepended_bytes(path: Path) -> None:
    path.write_bytes(bytes(512) + path.read_bytes())


def end_of_file_beyond_the_end(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[28:36] = (2**62).to_bytes(8, "little")
    reseal(content, [(0, 44)])
    path.write_bytes(content)


def marked_as_being_written(path: Path) -> None:
    def change(content: bytearray) -> None:
        content[11] = 1

    _edit(path, change)


def earlier_superblock(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        file["ledger"] = 1


def later_superblock(path: Path) -> None:
    def change(content: bytearray) -> None:
        content[8] = 4

    _edit(path, change)


def foreign_file(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w", libver=FORMAT) as file:
        file["weights"] = [1.0, 2.0]


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _chunk_entry_size(content: bytearray) -> int:
    return content[content.rindex(b"FAHD") + 6]


BYTES: list[tuple[Callable[[Path], None], type[DpmepfError], str]] = [
    (link_of_an_unknown_kind, errors.UnknownLinkError, "'more': a link of an unknown kind"),
    (rows_that_share_their_bytes, errors.StorageLayoutError, "two of its values overlap"),
    (path_as_a_name, errors.UndeclaredObjectError, "'classes/x': an artifact has no such object"),
    (name_that_goes_on_after_its_end, errors.UndeclaredObjectError, r"'classes\\x00x': an artifact has no such"),
    (one_name_twice, errors.SharedObjectError, "classes: two links have this name"),
    (list_of_a_trillion_rows, errors.StorageLayoutError, "noisy_sums: its values are not found by a list"),
    (rows_in_a_tree, errors.StorageLayoutError, "noisy_sums: its values are not found by a list"),
    (rows_in_a_tree_of_an_earlier_format, errors.StorageLayoutError, "header is of another version"),
    (header_without_end, errors.CorruptArtifactError, "header does not end"),
    (shape_by_reference, errors.StorageLayoutError, r"noisy_counts: its header holds .* \(1\)"),
    (comment_in_a_header, errors.StorageLayoutError, r"noisy_counts: its header holds .* \(13\)"),
    (type_of_a_thousand_bytes, errors.StorageLayoutError, r"noisy_counts: its header holds .* \(3\)"),
    (freed_row, errors.StorageLayoutError, "two of its values overlap"),
    (counts_inside_a_row, errors.StorageLayoutError, "two of its values overlap"),
    (row_of_a_gigabyte, errors.CompressionBombError, "noisy_sums.*stored for 1536 declared"),
    (bytes_that_belong_to_nothing, errors.HiddenBytesError, "belong to none"),
    (few_bytes_that_belong_to_nothing, errors.HiddenBytesError, r"4\d{3} bytes.* belong to none"),
    (terabyte_of_nothing, errors.HiddenBytesError, r"10995\d{8} bytes.* belong to none"),
    (appended_bytes, errors.TruncatedArtifactError, "truncated or extended"),
    (prepended_bytes, errors.NotAnArtifactError, "not an HDF5 file"),
    (end_of_file_beyond_the_end, errors.TruncatedArtifactError, "header says 4611686018427387904"),
    (marked_as_being_written, errors.NotAnArtifactError, "marked as open in another program"),
    (earlier_superblock, errors.NotAnArtifactError, "superblock"),
    (later_superblock, errors.NotAnArtifactError, "superblock"),
    (foreign_file, errors.MissingObjectError, "ledger.*no dpmepf artifact"),
    (empty_file, errors.NotAnArtifactError, "not an HDF5 file"),
    (folder, errors.ArtifactMissingError, "is not a file"),
    (named_pipe, errors.ArtifactMissingError, "is not a file"),
    (endless_device, errors.ArtifactMissingError, "is not a file"),
]
