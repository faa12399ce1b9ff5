"""Parquet files with a column of encoded images, as the Hugging Face Hub keeps image sets, read by pyarrow.

Labels are read up front. Images are read one row group at a time, of their column alone; a process keeps the last group
and earlier ones up to 128 MiB. A row group whose images take more than 1 GiB is refused, at first by what the file
claims and then by what is found; from a file that lies, one page (below 2 GiB) may come on top.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.image_decoding import LARGEST_FILE, NO_FILE, TOO_LARGE, DecodingError
from dpmepf.shared.image_errors import (
    AmbiguousLayoutError,
    LabelError,
    UnlabelledImageError,
    UnreadableDataError,
)
from dpmepf.shared.parquet_columns import Columns, pyarrow_library, read_columns

MOST_ROWS = 10_000_000
LARGEST_ROW_GROUP = 2**30  # bytes of encoded images, and of labels
KEPT_ROW_GROUPS = 2**27  # bytes
_LONGEST_LABEL = 1024
_LABELS_AT_ONCE = 2**16
_MAGIC = b"PAR1"
_BUFFER = 2**20
_DAMAGED = "a parquet file is truncated, damaged or encrypted: fetch or write it again"


def is_parquet(path: Path) -> bool:
    """Whether a file is one by its content, or says so by its name."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC or path.suffix.lower() == ".parquet"


@dataclass(frozen=True, kw_only=True)
class ParquetTable:
    """Of one or more parquet files: the number of rows of each, and the labels of all, int64, None if unlabelled.

    Labels that are text are places in `label_texts`, the different ones that occur.
    """

    columns: Columns
    rows: tuple[int, ...]
    labels: NDArray[np.int64] | None
    label_texts: tuple[str, ...]
    footers: bytes  # a hash


def read_parquets(root: Path, shards: Sequence[str], *, public: bool) -> ParquetTable:
    """Read everything but images of the parquet files `shards` in `root`, or of `root` itself if that is a single "".

    Raises:
        MissingLibraryError: pyarrow is not installed.
        DataNotFoundError: there is no column of images.
        AmbiguousLayoutError: several columns could be meant, or the files differ in their columns or classes.
        UnreadableDataError: a file is damaged, or too large in one of the ways above.
        UnlabelledImageError, LabelError: a label is missing, or is no short text.
    """
    schemas: set[Columns] = set()
    rows: list[int] = []
    labels: list[NDArray[np.int64]] = []
    texts: dict[str, int] = {}
    footers = hashlib.sha256()
    for shard in shards:
        path = root / shard
        with _reading(path, public), _open(path) as file:
            columns = read_columns(file.schema_arrow)
            schemas.add(columns)
            if len(schemas) > 1:
                raise AmbiguousLayoutError(
                    "parquet files differ in their columns or class names: keep those of one set"
                )
            _check_sizes(file.metadata, columns, path, public)
            rows.append(file.metadata.num_rows)
        if sum(rows) > MOST_ROWS:
            raise UnreadableDataError(f"parquet files hold more than {MOST_ROWS:,} images: pass them in parts")
        footers.update(_footer(path, public))
        if columns.labels is not None:
            labels.append(_read_labels(path, columns, rows[-1], texts, public))
    return ParquetTable(
        columns=columns,
        rows=tuple(rows),
        labels=np.concatenate(labels) if labels else None,
        label_texts=tuple(texts),
        footers=footers.digest(),
    )


class ParquetRows:
    """Encoded images in parquet files, called by file and row (`train.parquet/17`), or by row alone in a single file.

    Rows are counted from 0. Every process opens the files for itself.
    """

    def __init__(self, root: Path, table: ParquetTable, *, public: bool) -> None:
        self.root = root
        self._footers = table.footers
        self._column = table.columns.images
        self._public = public
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._shard: str | None = None  # which is open as `_file`, and its row groups begin at the rows `_starts`
        self._file: Any = None
        self._starts: list[int] = []
        self._kept: dict[tuple[str, int], list[bytes | None]] = {}
        self._kept_sizes: dict[tuple[str, int], int] = {}  # bytes, `_kept_size` in all
        self._kept_size = 0

    def file(self, name: str) -> Path:
        return self.root / name.rpartition("/")[0]

    def directory(self) -> bytes:
        return self._footers

    def read(self, name: str, size: int = -1) -> bytes:
        shard, _, number = name.rpartition("/")
        if self._process != os.getpid():
            self._forget()
        with _reading(self.root / shard, self._public):
            if shard != self._shard:
                if self._file is not None:
                    self._file.close()
                self._file = _open(self.root / shard)
                metadata = self._file.metadata
                sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                self._shard, self._starts = shard, [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
            row = int(number)
            group = bisect.bisect_right(self._starts, row) - 1
            images = self._kept.get((shard, group)) or self._read_group(shard, group)
            data = images[row - self._starts[group]]
        if data is None:  # an image that lies elsewhere, or none
            raise DecodingError(NO_FILE)
        if len(data) > LARGEST_FILE:
            raise DecodingError(TOO_LARGE)
        return data if size < 0 else data[:size]

    def _read_group(self, shard: str, group: int) -> list[bytes | None]:
        path = self.root / shard
        self._forget_oldest(keep=0)
        images: list[bytes | None] = []
        size = 0
        # A row at a time: one value may stand for many rows in the file, and must not be copied for all at once.
        for batch in self._file.iter_batches(1, row_groups=[group], columns=[self._column], use_threads=False):
            data = batch.column(0)[0].as_py()
            data = data["bytes"] if isinstance(data, dict) else data
            size += len(data or b"")
            if size > LARGEST_ROW_GROUP:
                raise _too_large(path, self._public)
            images.append(data)
        if len(images) != self._starts[group + 1] - self._starts[group]:
            raise UnreadableDataError.in_shard(_DAMAGED, path=path, public=self._public)
        self._kept[shard, group], self._kept_sizes[shard, group] = images, size
        self._kept_size += size
        self._forget_oldest(keep=1)
        return images

    def _forget_oldest(self, *, keep: int) -> None:
        """Until all row groups are within the limit, or only `keep` are left."""
        while len(self._kept) > keep and self._kept_size > KEPT_ROW_GROUPS:
            oldest = next(iter(self._kept))
            self._kept_size -= self._kept_sizes.pop(oldest)
            del self._kept[oldest]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_file": None, "_kept": {}, "_kept_sizes": {}}


def _open(path: Path, **options: Any) -> Any:
    return pyarrow_library().parquet.ParquetFile(path, buffer_size=_BUFFER, **options)


@contextlib.contextmanager
def _reading(path: Path, public: bool) -> Iterator[None]:
    """What is raised inside, of whatever type, becomes one sentence: it must not pass for a damaged image."""
    try:
        yield
    except (DpmepfError, DecodingError, MemoryError):
        raise
    except Exception:
        raise UnreadableDataError.in_shard(_DAMAGED, path=path, public=public) from None


def _check_sizes(metadata: Any, columns: Columns, path: Path, public: bool) -> None:
    """What the file claims of itself."""
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        if group.num_rows < 0 or rows > metadata.num_rows:
            raise UnreadableDataError.in_shard(_DAMAGED, path=path, public=public)
        if group.total_byte_size <= LARGEST_ROW_GROUP:  # pyarrow ends the process where details of a column are damaged
            continue
        for place in range(group.num_columns):
            column = group.column(place)
            if (
                column.path_in_schema in (columns.images, columns.labels)
                and column.total_uncompressed_size > LARGEST_ROW_GROUP
            ):
                raise _too_large(path, public)
    if rows != metadata.num_rows:
        raise UnreadableDataError.in_shard(_DAMAGED, path=path, public=public)


def _too_large(path: Path, public: bool) -> UnreadableDataError:
    return UnreadableDataError.in_shard(
        f"a parquet file has a row group of more than {LARGEST_ROW_GROUP // 2**20} MiB, which is read at once: "
        "write it with smaller ones (row_group_size=100)",
        path=path,
        public=public,
    )


def _footer(path: Path, public: bool) -> bytes:
    """The bytes of the footer, which holds sizes and places of everything in the file."""
    with _reading(path, public), path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)


def _read_labels(path: Path, columns: Columns, rows: int, texts: dict[str, int], public: bool) -> NDArray[np.int64]:
    """The labels of a file; those that are text are numbered in `texts`, as they come."""
    labels = np.empty(rows, np.int64)
    filled = 0
    # A text that many rows share is read once.
    options = {"read_dictionary": [columns.labels]} if columns.labels_are_text else {}
    with _reading(path, public), _open(path, **options) as file:
        for batch in file.iter_batches(_LABELS_AT_ONCE, columns=[columns.labels], use_threads=False):
            column = batch.column(0)
            if column.null_count:
                raise UnlabelledImageError(
                    "a parquet file holds an image without its label: give each image one, or leave the column out",
                    location=str(path),
                    public=public,
                )
            if columns.labels_are_text:
                found, places = np.unique(column.indices.to_numpy(zero_copy_only=False), return_inverse=True)
                numbers = [_number(column.dictionary[place], texts, path, public) for place in found.tolist()]
                values = np.array(numbers, np.int64)[places]
            else:
                values = column.cast("int64").to_numpy(zero_copy_only=False)
            if filled + len(values) > rows:
                break
            labels[filled : filled + len(values)] = values
            filled += len(values)
    if filled < rows:
        raise UnreadableDataError.in_shard(_DAMAGED, path=path, public=public)
    return labels


def _number(text: Any, texts: dict[str, int], path: Path, public: bool) -> int:
    if not text.is_valid or text.as_buffer().size > _LONGEST_LABEL:
        raise LabelError(
            "a parquet file holds a label that is no name of a class: it is a short text",
            location=str(path),
            public=public,
        )
    return texts.setdefault(text.as_py().strip(), len(texts))
