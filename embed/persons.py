"""Whose image each image is, where the guarantee is for a person: from a list, or from the folders images lie in.

The guarantee rests on the answer: two spellings of one person are two persons. Names are compared without spaces
around them and in Unicode's normal form C, and are forgotten here: what goes on are numbers.
"""

from __future__ import annotations

import csv
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
        source: N images. One from a folder or zip is called by its path below the data (`cat/0001.png`), one from an
            array by its number, counted from 0.
        file: UTF-8 text of two columns, separated by commas, semicolons or tabs. A first line that names the columns
            `image` and `person` may put them in any order, among others. Images that are not in the data are passed
            over: the list may be for more.
    Returns: int64 [N].
    Raises: UsageError if the file cannot be read, an image has no person, or two.
    """
    person_of: dict[str, str] = {}
    for image, person in _rows(file):
        name, owner = _image_name(image), _person_name(person)
        if not name or not owner:
            raise UsageError(f"--unit {file} has a line without an image or without a person: fill both columns")
        if person_of.setdefault(name, owner) != owner:
            raise UsageError(f"--unit {file} gives one image to two persons: name one person for each image")
    try:
        return _numbered(person_of[_image_name(source.name(index))] for index in range(len(source)))
    except KeyError:
        raise UsageError(
            f"--unit {file} does not name the person of every image: give each a line, with the image's path below "
            "--data (cat/0001.png) or, for arrays, its number counted from 0"
        ) from None


def persons_from_folders(source: ImageSource) -> npt.NDArray[np.int64]:
    """Number the person of each image of `source` by the folder below its class folder: class/person/image.

    A folder of the same name in another class is the same person; folders below it do not matter.

    Returns: int64 [N].
    Raises: UsageError if an image lies in no such folder.
    """
    if not isinstance(source, EncodedImageSource):
        raise UsageError(f"--unit-from-folder needs images in folders, and this is a {source.kind}: use --unit FILE")
    inside = [source.name(index)[len(source.entered) :].split("/") for index in range(len(source))]
    if any(len(parts) < 3 for parts in inside):
        raise UsageError(
            "--unit-from-folder needs every image in a folder named for its person, inside its class folder "
            "(class/person/image); a class folder that is the only one has to be declared with --classes"
        )
    return _numbered(_person_name(parts[1]) for parts in inside)


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    """Image and person of each line but the first, if that names the columns."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        first_line = text.partition("\n")[0]
        separator = next((mark for mark in _SEPARATORS if mark in first_line), ",")
        lines = [line for line in csv.reader(text.splitlines(), delimiter=separator, strict=True) if line]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UsageError(f"--unit {file} cannot be read as a table of text: save it as CSV in UTF-8") from None
    heading = [cell.strip().lower() for cell in lines[0]] if lines else []
    named = all(heading.count(column) == 1 for column in COLUMNS)
    image, person = (heading.index(column) for column in COLUMNS) if named else (0, 1)
    width = len(heading) if named else len(COLUMNS)
    for line in lines[1:] if named else lines:
        if len(line) != width:
            raise UsageError(
                f"--unit {file} has a line that is not of {width} columns: give an image and a person on each line, or "
                "a first line that names the columns image and person"
            )
        yield line[image], line[person]


def _image_name(text: str) -> str:
    name = unicodedata.normalize("NFC", text.strip().replace("\\", "/"))
    return PurePosixPath(name).as_posix() if name else ""  # ./cat/1.png is cat/1.png


def _person_name(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _numbered(names: Iterable[str]) -> npt.NDArray[np.int64]:
    """A number for each name, the same for the same name."""
    known: dict[str, int] = {}
    return np.fromiter((known.setdefault(name, len(known)) for name in names), dtype=np.int64)
