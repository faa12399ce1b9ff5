"""What is private about a data set, as bytes, and where those bytes turn up."""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from metadata_blocks import checksummed_blocks

from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.register import SQLITE_MAGIC
from dpmepf.artifacts.sensitivity import count_weight_lattice

WINDOW = 8  # neighbouring sums that have to agree: noise hides each but with probability 1/40
FEWEST_CLASSES = 3  # of two classes, noisy counts are the exact ones in one artifact of 1,400
IMAGE_BYTES = 16  # neighbouring pixels, or bytes of a compressed image
BLANK = b"\xff"  # no zero, which makes a number below 256 of the byte before it
UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """Of one data set. sums: K x D, exact, in lattice units of `ledger`. counts: K. images: some bytes of canaries."""

    names: tuple[str, ...]
    images: tuple[bytes, ...]
    sums: np.ndarray
    counts: tuple[int, ...]
    ledger: Ledger

    def __post_init__(self) -> None:
        if len(self.counts) < FEWEST_CLASSES:
            raise ValueError(f"{len(self.counts)} classes: noisy counts would equal the exact ones by chance.")

    def anywhere(self) -> Iterator[tuple[str, bytes]]:
        """Patterns that appear by chance practically nowhere, noisy numbers included."""
        for name in self.names:
            yield "a name", name.encode()
            yield "a name", name.encode("utf-16-le")
        for image in self.images:
            yield "an image", image
        step = 2**self.ledger.coarsening_exponent
        unit = 2.0**self.ledger.lattice_exponent
        for row, count in zip(self.sums, self.counts, strict=True):
            start = min(int(np.argmax(row)), len(row) - WINDOW)
            window = row[start : start + WINDOW]
            for values in (window, (window + step // 2) // step):
                yield "exact sums", values.astype("<i8").tobytes()
            for scale in (unit, unit * count):
                for number in ("<f8", "<f4"):
                    yield "exact sums", (window / scale).astype(number).tobytes()
            yield "an exact sum", str(int(window.max())).encode()
            yield "a norm", f"{math.sqrt(float(np.square(row / unit).sum())):.5f}".encode()
        weight = count_weight_lattice(self.ledger.lattice_exponent)
        weighted = np.array(self.counts, dtype="<i8") * weight
        yield "exact counts", ((weighted + step // 2) // step).astype("<i8").tobytes()
        yield "exact counts", np.array(self.counts, dtype="<i8").tobytes()
        for value in (*weighted.tolist(), int(weighted.sum())):
            yield "an exact count", value.to_bytes(8, "little")
            yield "an exact count", str(value).encode()

    def outside_of_noisy_numbers(self) -> Iterator[tuple[str, re.Pattern[bytes]]]:
        """The counts themselves, which noisy numbers may equal by chance; as text, a number of their own.

        Counts below 100 are left out: every file holds such numbers.
        """
        for value in (value for value in (sum(self.counts), *self.counts) if value >= 100):
            yield "the number of records", re.compile(rb"(?<![\w.])%d(?!\w|\.\d)" % value)
            yield "the number of records", re.compile(re.escape(value.to_bytes(4, "little")))


def leaks(secrets: Secrets, folder: Path) -> set[str]:
    """What of `secrets` the files in `folder` hold, their names included: kinds of leak, with the file."""
    found = set()
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        pieces = [(name.encode(), True)]
        if path.is_file():
            pieces += list(_pieces(path))
        for content, noisy in pieces:
            found |= {f"{kind} in {name}" for kind, pattern in secrets.anywhere() if pattern in content}
            if not noisy:
                content = UUID.sub(b"", content).replace(str(folder).encode(), b"")  # known, and full of numbers
                numbers = secrets.outside_of_noisy_numbers()
                found |= {f"{kind} in {name}" for kind, pattern in numbers if pattern.search(content)}
    return found


def _pieces(path: Path) -> Iterator[tuple[bytes, bool]]:
    """The bytes of a file as they are and, of an artifact, its numbers and what lies between them; whether noisy.

    Of a register, the entries: between them are offsets of SQLite's, which look like counts.
    """
    content = path.read_bytes()
    if content.startswith(SQLITE_MAGIC):
        yield content, True
        with contextlib.closing(sqlite3.connect(path)) as register:
            yield "\n".join(text for (text,) in register.execute("SELECT content FROM entries")).encode(), False
        return
    if not content.startswith(b"\x89HDF"):
        yield content, False
        return
    yield content, True
    rest = bytearray(content)
    with h5py.File(path) as file:
        for row in range(file["noisy_sums"].id.get_num_chunks()):
            chunk = file["noisy_sums"].id.get_chunk_info(row)
            rest[chunk.byte_offset : chunk.byte_offset + chunk.size] = BLANK * chunk.size
        start, size = file["noisy_counts"].id.get_offset(), file["noisy_counts"].id.get_storage_size()
        rest[start : start + size] = BLANK * size
        for _, end in checksummed_blocks(bytes(rest)):  # checksums of noisy numbers' places look like anything
            rest[end : end + 4] = BLANK * 4
        yield file["noisy_sums"][()].tobytes(), True
        yield file["noisy_counts"][()].tobytes(), True
    yield bytes(rest), False


def is_nothing_but_what_reading_gives(path: Path, scratch: Path) -> bool:
    """Whether the artifact at `path` has no byte, slack included, that its published content does not determine."""
    from dpmepf.artifacts.hdf5_file import write_artifact

    write_artifact(scratch, read_artifact(path))
    return scratch.read_bytes() == path.read_bytes()
