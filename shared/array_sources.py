"""Data that are arrays already, as image sources: IDX files and npz archives."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from dpmepf.shared.class_names import UNLABELLED, check_class_names, numbered_classes, undeclared
from dpmepf.shared.idx_files import IdxPair, open_idx_images, read_idx_labels
from dpmepf.shared.image_errors import ClassesError
from dpmepf.shared.image_layout import choose_split, require_undivided
from dpmepf.shared.image_source_types import ArrayImageSource, ImageSource, Pixels
from dpmepf.shared.npz_files import find_npz_splits, read_npz_classes, read_npz_images, read_npz_labels


def open_idx(
    pairs: dict[str, IdxPair], declared: tuple[str, ...] | None, split: str | None, default_split: str, public: bool
) -> ImageSource:
    chosen = choose_split({name: name for name in pairs}, split, default_split, public=public)
    pair = pairs[chosen]
    if declared is None and not pair.conventional and not public:
        raise undeclared("IDX files")
    open_pixels = functools.partial(_idx_pixels, pair.images, whole=public)
    pixels = open_pixels()
    labels = read_idx_labels(pair.labels, count=len(pixels))
    classes = declared or numbered_classes(10)
    if declared is None and public:
        largest = int(labels.max(initial=0))
        classes = numbered_classes(max(largest + 1, 10 if pair.conventional else 1))
    return ArrayImageSource(
        path=pair.images,
        pixels=pixels,
        open_pixels=open_pixels,
        kind="folder with IDX files",
        classes=classes,
        classes_declared=declared is not None,
        labels=labels,
        split=chosen,
        public=public,
    )


def _idx_pixels(path: Path, *, whole: bool) -> Pixels:
    """Public images are read at once: after hours of training nobody may remember that they have to stay."""
    pixels = open_idx_images(path)
    return pixels[:] if whole else pixels


def open_npz(
    path: Path, declared: tuple[str, ...] | None, split: str | None, default_split: str, public: bool
) -> ImageSource:
    splits = find_npz_splits(path)
    if None in splits:
        require_undivided(split)
        chosen = None
    else:
        chosen = choose_split({str(name): str(name) for name in splits}, split, default_split, public=public)
    images_name, labels_name = splits[chosen]
    open_pixels = functools.partial(read_npz_images, path, images_name)
    pixels = open_pixels()
    count = len(pixels)
    stored = read_npz_classes(path)
    if labels_name is None:
        if declared is not None and len(declared) > 1:
            raise ClassesError("several classes are declared, but the file holds no labels y: declare one class")
        labels, classes = np.zeros(count, np.int64), declared or (UNLABELLED,)
    else:
        labels = read_npz_labels(path, labels_name, count=count)
        if declared is not None:
            classes = declared
        elif stored is not None:
            classes = check_class_names(stored, quoted=public)
        elif public:
            classes = numbered_classes(int(labels.max(initial=0)) + 1)
        else:
            raise undeclared("an .npz without an array `classes`")
    return ArrayImageSource(
        path=path,
        pixels=pixels,
        open_pixels=open_pixels,
        kind="npz file",
        classes=classes,
        classes_declared=declared is not None,
        labels=labels,
        split=chosen,
        public=public,
    )
