"""NumPy archives: `x` with images, optional `y` with labels, optional `classes` with class names.

`x` is N x H x W, N x H x W x C or N x C x H x W (C = 1, 3 or 4), uint8 or floating-point in [0, 1]. The common names
for divided sets, `x_train`, `y_train` and `train_images`, `train_labels`, are read too. Pickled objects are refused.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmepf.shared.image_errors import DataNotFoundError, UnreadableDataError

_DEPTHS = (1, 3, 4)


def find_npz_splits(path: Path) -> dict[str | None, tuple[str, str | None]]:
    """Names of the image and label arrays by split; the key None stands for an undivided file with `x`."""
    names = set(_open(path, lambda archive: list(archive.files)))
    if "x" in names:
        return {None: ("x", "y" if "y" in names else None)}
    found: dict[str | None, tuple[str, str | None]] = {}
    for split in ("train", "val", "test"):
        for images, labels in ((f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels")):
            if images in names:
                found.setdefault(split, (images, labels if labels in names else None))
    if not found:
        raise DataNotFoundError(f"{path} has no array x: expected x with images and, if labelled, y with labels")
    return found


def read_npz_images(path: Path, name: str) -> NDArray[Any]:
    """Images as uint8 or floating-point N x H x W x C."""
    array = _open(path, lambda archive: archive[name])
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise UnreadableDataError(f"{path}: {name} has type {array.dtype}; save it as uint8, or as floats from 0 to 1")
    if array.ndim == 3:
        array = array[:, :, :, None]
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise UnreadableDataError(f"{path}: {name} holds no images; expected N x H x W, N x H x W x C or N x C x H x W")
    first, last = array.shape[1] in _DEPTHS, array.shape[3] in _DEPTHS
    if first == last:
        raise UnreadableDataError(f"{path}: it is unclear which axis of {name} is colour; one must be 1, 3 or 4 long")
    return array.transpose(0, 2, 3, 1) if first else array


def read_npz_labels(path: Path, name: str, *, count: int) -> NDArray[np.int64]:
    """Labels as int64 [count]."""
    array = _open(path, lambda archive: archive[name])
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != count or not np.issubdtype(array.dtype, np.integer):
        raise UnreadableDataError(f"{path}: {name} must hold one whole number for each image")
    return array.astype(np.int64)


def read_npz_classes(path: Path) -> list[str] | None:
    """The class names stored in the file, None if it has none."""
    array = _open(path, lambda archive: archive["classes"] if "classes" in archive.files else None)
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind != "U":
        raise UnreadableDataError(f"{path}: classes must be a list of texts, one for each class")
    return [str(name) for name in array]


def _open(path: Path, read: Any) -> Any:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return read(archive)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, NotImplementedError, AttributeError):
        raise UnreadableDataError(f"{path} is damaged or holds more than plain arrays: use numpy.savez") from None
    except MemoryError:
        raise UnreadableDataError(f"{path} claims an array that does not fit into memory") from None
