"""Which files of a folder are the shards of one data set, tar or parquet files, by their names alone.

1. Hidden files and folders do not exist, as in `image_layout`.
2. A split is a word of a shard's path: `train-00000-of-00005.parquet`, `imagenet-val-0001.tar`, `test/0001.tar`. Either
   each shard names one, or none does.
3. The shards of a split lie in one folder (`data/`, say) and spell it alike: folders of shards are not classes.
4. No shard is there twice: neither under a second name, by a link, nor as the same part of N (`-00001-of-00005`); and
   of such parts none is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dpmepf.shared.image_errors import AmbiguousLayoutError, DataNotFoundError, RepeatedImageError, UnreadableDataError
from dpmepf.shared.image_layout import canonical_split, choose_split, is_visible, require_undivided

_COMPRESSED_TAR = re.compile(r".+\.(tar\.(gz|bz2|xz|zst|lz4|lzma|lz|Z)|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
_PART = re.compile(r"-(\d{1,9})-of-(\d{1,9})(?!\d)")


def is_compressed_tar(name: str) -> bool:
    """Whether the file of this name is a tar that has to be unpacked before images can be read from it by place."""
    return _COMPRESSED_TAR.fullmatch(name) is not None


def compressed_tar() -> UnreadableDataError:
    """The refusal of one."""
    return UnreadableDataError(
        "a tar file is compressed, but images are read from it by their place: decompress it (gunzip, zstd -d) and "
        "pass the .tar"
    )


def find_shards(files: Iterable[str], *, others: bool) -> dict[str, list[str]]:
    """Shards among slash-separated names, by form: "tar files" and "parquet files", the forms that occur.

    Compressed tar files are refused beside tar files and where there are no data in `others` forms: left out, their
    images would be missed in silence.
    """
    visible = [name for name in files if is_visible(name)]
    shards = {
        "tar files": [name for name in visible if name.lower().endswith(".tar")],
        "parquet files": [name for name in visible if name.lower().endswith(".parquet")],
    }
    found = {form: sorted(names) for form, names in shards.items() if names}
    if ("tar files" in found or not (found or others)) and any(map(is_compressed_tar, visible)):
        raise compressed_tar()
    return found


def choose_shards(
    root: Path, names: Sequence[str], *, split: str | None, default_split: str, public: bool
) -> tuple[tuple[str, ...], str | None]:
    """The shards of one split, or of undivided data, by rules 2 to 4; and the split.

    Raises:
        AmbiguousLayoutError: the names can be read in more than one way.
        DataNotFoundError: a shard is missing.
        RepeatedImageError: a shard is there twice.
        SplitError: the asked split is absent, or has to be confirmed.
        UnreadableDataError: a shard is no file.
    """
    found: dict[str | None, list[str]] = {}
    places: dict[str | None, set[tuple[str, ...]]] = {}
    for name in names:
        words = {word for word in re.split(r"[^A-Za-z]+", name) if canonical_split(word)}
        splits = {canonical_split(word) for word in words} or {None}
        if len(splits) > 1:
            raise AmbiguousLayoutError(
                "the name of a tar or parquet file holds two splits (train, test, val): rename it"
            )
        key = splits.pop()
        found.setdefault(key, []).append(name)
        places.setdefault(key, set()).add((name.rpartition("/")[0], *sorted(words)))
    if None in found and len(found) > 1:
        raise AmbiguousLayoutError(
            "some tar or parquet files name a split (train, test, val), others none: rename them"
        )
    if any(len(ways) > 1 for ways in places.values()):
        raise AmbiguousLayoutError(
            "tar or parquet files of one split lie in several folders or spell it in several ways: put them into one "
            "folder, and pass that"
        )
    chosen = None
    if None not in found:
        chosen = choose_split({str(key): str(key) for key in found}, split, default_split, public=public)
    else:
        require_undivided(split)
    shards = found[chosen]
    _require_each_once(root, shards, public)
    return tuple(shards), chosen


def _require_each_once(root: Path, shards: list[str], public: bool) -> None:
    files: set[tuple[int, int]] = set()
    parts: set[int] = set()
    wholes: set[int] = set()
    for name in shards:
        if not (root / name).is_file():  # a link to nowhere, or a pipe, which would block for ever
            raise UnreadableDataError.in_shard(
                "a tar or parquet file cannot be read: check that it is a file and there",
                path=root / name,
                public=public,
            )
        status = (root / name).stat()
        found = _PART.search(name.rpartition("/")[2])
        part, whole = (None, None) if found is None else (int(found[1]), int(found[2]))
        number = (status.st_dev, status.st_ino)
        if number in files or part in parts or (whole is not None and wholes - {whole}):
            raise RepeatedImageError(
                "a tar or parquet file is there twice (by a link, or as the same part of a set), and its images would "
                "count twice: keep one",
                location=str(root / name),
                public=public,
            )
        files.add(number)
        if part is not None and whole is not None:
            parts.add(part)
            wholes.add(whole)
    if any(len(parts) < whole for whole in wholes):
        raise DataNotFoundError(
            "tar or parquet files are named as parts of a set (-00001-of-00005) of which others are missing: fetch "
            "those, or give the files names without -of- to use them alone"
        )
