"""Tar and parquet files, one or the shards of a split, as image sources."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpmepf.shared.class_names import UNLABELLED, check_class_names, numbered_classes, undeclared
from dpmepf.shared.file_sources import open_files
from dpmepf.shared.image_errors import (
    AmbiguousLayoutError,
    ClassesError,
    RepeatedImageError,
    UndeclaredClassError,
    UnlabelledImageError,
)
from dpmepf.shared.image_layout import canonical_split, read_layout, require_undivided
from dpmepf.shared.image_source_types import EncodedImageSource, ImageSource
from dpmepf.shared.parquet_files import ParquetRows, read_parquets
from dpmepf.shared.tar_files import TarIndex, TarMembers, index_tars, key_of
from dpmepf.shared.text_labels import classes_of_texts

_NAMELESS = "a parquet file without the names of its classes"


def open_tars(
    root: Path,
    shards: tuple[str, ...],
    declared: tuple[str, ...] | None,
    split: str | None,
    default_split: str,
    public: bool,
    *,
    of_split: str | None = None,
) -> ImageSource:
    """The images of tar files below `root`: with labels beside them, or else in folders as in a zip, for all together.

    Args:
        root: the folder, or the tar itself if `shards` is a single "".
        of_split: the split that the names of the shards were chosen for.
    """
    index = index_tars(root, shards, public=public)
    # Images come as they lie in the files. Their names begin with that of the file, unless there is but one.
    names = {_joined(shards[index.shard_numbers[place]], name): place for name, place in index.names.items()}
    members = TarMembers(root, index, names)
    container = "tar" if shards == ("",) else "folder of tar files"
    if index.labels:
        require_undivided(split)
        return _with_labels_beside(members, index, tuple(names), container, declared, of_split, public)
    layout = read_layout(
        index.names, index.folders, split=split, default_split=default_split, declared=declared, public=public
    )
    places = [index.names[name] for name in layout.files]
    order = np.argsort(places).tolist()
    layout = dataclasses.replace(
        layout,
        files=tuple(_joined(shards[index.shard_numbers[places[i]]], layout.files[i]) for i in order),
        folder_numbers=tuple(layout.folder_numbers[i] for i in order),
        split=of_split or layout.split,
    )
    levels = 0 if shards == ("",) else 1 + shards[0].count("/")  # shards of a split lie in one folder
    return open_files(members, container, layout, declared, public, levels_above=levels)


def _with_labels_beside(
    members: TarMembers,
    index: TarIndex,
    names: tuple[str, ...],
    container: str,
    declared: tuple[str, ...] | None,
    split: str | None,
    public: bool,
) -> ImageSource:
    """WebDataset naming. Folders inside are part of the key and mean nothing."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in index.names}
    if sum(canonical_split(top) is not None for top in tops) > 1:  # whatever one record beside them is called
        raise AmbiguousLayoutError(
            "a tar file with labels beside its images holds folders named as splits: pack each split for itself"
        )
    classes, label_of_text = classes_of_texts(
        tuple(index.label_texts), declared=declared, form="a tar with labels beside its images", public=public
    )
    labels = np.empty(len(names), np.int64)
    keys = set()
    for place, (name, shown) in enumerate(zip(index.names, names, strict=True)):
        key, location = key_of(name), f"{members.root}/{shown}".encode("utf-8", "backslashreplace").decode()
        if key in keys:
            raise RepeatedImageError(
                "tar files hold two images for one label: give each image a key and a label of its own",
                location=location,
                public=public,
            )
        keys.add(key)
        if key not in index.labels:
            raise UnlabelledImageError(
                "tar files hold an image without its label: give each image one (KEY.png, KEY.cls), or none to any",
                location=location,
                public=public,
            )
        labels[place] = label_of_text[index.labels[key]]
    return EncodedImageSource(
        members=members,
        names=names,
        levels_above=None,
        kind=f"{container} in WebDataset naming",
        classes=classes,
        classes_declared=declared is not None,
        labels=labels,
        split=split,
        public=public,
    )


def open_parquets(
    root: Path, shards: tuple[str, ...], declared: tuple[str, ...] | None, split: str | None, public: bool
) -> ImageSource:
    """The rows of parquet files below `root`, or of the parquet file `root` itself if `shards` is a single ""."""
    table = read_parquets(root, shards, public=public)
    names = tuple(
        _joined(shard, str(row)) for shard, rows in zip(shards, table.rows, strict=True) for row in range(rows)
    )
    columns = table.columns
    if table.labels is None:
        if declared is not None and len(declared) > 1:
            raise ClassesError("several classes are declared, but there is no column label: declare one class")
        classes, labels = declared or (UNLABELLED,), np.zeros(len(names), np.int64)
    elif columns.labels_are_text:
        classes, label_of_text = classes_of_texts(table.label_texts, declared=declared, form=_NAMELESS, public=public)
        labels = label_of_text[table.labels]
    elif columns.classes is not None:
        stored = check_class_names(columns.classes, quoted=public)
        classes = declared or stored
        labels = _renumbered(table.labels, stored, classes, root, public)
    elif declared is not None or public:
        classes, labels = declared or numbered_classes(int(table.labels.max(initial=0)) + 1), table.labels
    else:
        raise undeclared(_NAMELESS)
    return EncodedImageSource(
        members=ParquetRows(root, table, public=public),
        names=names,
        levels_above=None,
        kind="parquet file" if shards == ("",) else "folder of parquet files",
        classes=classes,
        classes_declared=declared is not None,
        labels=labels,
        split=split,
        public=public,
    )


def _renumbered(
    labels: NDArray[np.int64], stored: tuple[str, ...], classes: tuple[str, ...], root: Path, public: bool
) -> NDArray[np.int64]:
    """Labels that number `stored` names, as numbers of the same names in `classes`; -1 for what numbers none."""
    unknown = [name for name in stored if name not in classes]
    if unknown:
        raise UndeclaredClassError(
            "a class name in a parquet file is not among the declared classes: add it to --classes, or declare none",
            location=f"{root}: {unknown[0]!a}",
            public=public,
        )
    numbers = np.array([*map(classes.index, stored), -1], np.int64)
    return numbers[np.where((labels >= 0) & (labels < len(stored)), labels, -1)]


def _joined(shard: str, name: str) -> str:
    return f"{shard}/{name}" if shard else name
