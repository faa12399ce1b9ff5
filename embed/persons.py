"""Whose image each image is, where the guarantee is for a person: from a list, or from the folders images lie in.

The guarantee rests on the answer, both ways. One person under two names moves the sums by two persons' bound. Two
persons under one name are clipped together, so that one of them moves the sums by up to twice the bound. Names of
persons are compared without spaces around them and in Unicode's normal form C, and are forgotten here: what goes on are
numbers.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from dpmepf.shared.errors import UsageError
from dpmepf.shared.image_source_types import EncodedImageSource, ImageSource

COLUMNS = ("image", "person")
_SEPARATORS = ",;\t"


def persons_from_list(source: ImageSource, file: Path) -> npt.NDArray[np.int64]:
    """Number the person of each image of `source` by a list of images and persons.

    Args:
        source: N images. One from a folder, zip or tar is called by its path below the data (`cat/0001.png`), one from
            an array or a parquet file by its number, counted from 0. In a folder of tar or parquet files the path of
            the file comes first (`train-0001.tar/cat/0001.png`, `data/train-00000-of-00005.parquet/17`).
        file: UTF-8 text in columns separated by commas, semicolons or tabs, with a first line that names the columns
            `image` and `person`, in any order and among others. Images that are not in the data are passed over: the
            list may be for more.
    Returns: int64 [N].
    Raises: UsageError if the file cannot be read, an image has no person, or two, two images the same name but for
        what `_image_name` passes over, or image files no declared classes.
    """
    _require_declared_classes(source)
    names = [_image_name(source.name(index)) for index in range(len(source))]
    if len(set(names)) < len(names):
        raise UsageError(
            "--unit tells images by their paths, and those of two images differ in backslashes, spaces around them or "
            "Unicode form only: rename one"
        )
    person_of: dict[str, str] = {}
    for image, person in _rows(file):
        name, owner = _image_name(image), _person_name(person)
        if not image.strip() or not owner:
            raise UsageError(f"--unit {file} has a line without an image or without a person: fill both columns")
        if person_of.setdefault(name, owner) != owner:
            raise UsageError(f"--unit {file} gives one image to two persons: name one person for each image")
    if not person_of.keys() >= set(names):
        raise UsageError(
            f"--unit {file} does not name the person of every image: give each a line, with the image's path below "
            "--data (cat/0001.png) or, for arrays, its number counted from 0"
        )
    return _numbered(person_of[name] for name in names)


def persons_from_folders(source: ImageSource) -> npt.NDArray[np.int64]:
    """Number the person of each image of `source` by the folder below its class folder: class/person/image.

    A folder of the same name in another class is the same person; folders below it do not matter.

    Returns: int64 [N].
    Raises: UsageError if an image lies in no such folder, or the classes are not declared.
    """
    if not isinstance(source, EncodedImageSource) or source.levels_above is None:
        raise UsageError(f"--unit-from-folder needs images in folders, and this is a {source.kind}: use --unit FILE")
    _require_declared_classes(source)
    inside = [source.name(index).split("/")[source.levels_above :] for index in range(len(source))]
    if any(len(parts) < 3 or not _person_name(parts[1]) for parts in inside):
        raise UsageError(
            "--unit-from-folder needs every image in a folder named for its person, inside its class folder "
            "(class/person/image)"
        )
    return _numbered(_person_name(parts[1]) for parts in inside)


def _require_declared_classes(source: ImageSource) -> None:
    """Undeclared, a single class folder is taken for a wrapper and what is in it for classes, whose names are public.

    One person's images could decide that, and folders named for persons would be classes.
    """
    in_folders = isinstance(source, EncodedImageSource) and source.levels_above is not None
    if in_folders and not source.classes_declared:
        raise UsageError(
            "to protect persons, images in folders need --classes: only declared names tell class folders from others"
        )


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    """Image and person of each line below the heading."""
    if not file.exists():
        raise UsageError(f"--unit {file} does not exist: name a table with the columns image and person")
    try:
        text = file.read_text(encoding="utf-8-sig")
        for separator in _SEPARATORS:
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            heading = [cell.strip().lower() for cell in next(lines, [])]
            if all(heading.count(column) == 1 for column in COLUMNS):
                break
        else:
            raise UsageError(
                f"--unit {file} does not begin with a line that names its columns: make it image,person, and others in "
                "between or after"
            )
        image, person = (heading.index(column) for column in COLUMNS)
        for line in lines:
            if len(line) == len(heading):
                yield line[image], line[person]
            elif line:
                raise UsageError(f"--unit {file} has a line that is not of {len(heading)} columns, as its first is")
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UsageError(f"--unit {file} cannot be read as a table of text: save it as CSV in UTF-8") from None


def _image_name(text: str) -> str:
    """A path as a list may spell it otherwise: .\\cat\\1.png is cat/1.png."""
    return PurePosixPath(unicodedata.normalize("NFC", text.strip().replace("\\", "/"))).as_posix()


def _person_name(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _numbered(names: Iterable[str]) -> npt.NDArray[np.int64]:
    """A number for each name, the same for the same name."""
    known: dict[str, int] = {}
    return np.fromiter((known.setdefault(name, len(known)) for name in names), dtype=np.int64)
