"""The pieces of work on a source: prepare a range of images, or look at the headers of a range. No torch in here."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.image_decoding import NOT_AN_IMAGE, DecodingError
from dpmepf.shared.image_preparation import prepare_array, prepare_image
from dpmepf.shared.image_source_types import OUT_OF_RANGE, ArrayImageSource, ImageSource
from dpmepf.shared.image_workers import go_on

P = ParamSpec("P")
R = TypeVar("R")


def _quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Silence warnings while images are read: their text quotes the file, which may be private."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return wrapper


@dataclass(frozen=True, kw_only=True)
class PreparedRange:
    """Prepared images of a range; what could not be used is left out and listed with the reason."""

    images: NDArray[np.uint8]  # n x C x R x R
    indices: NDArray[np.int64]  # n, their places in the source
    unreadable: tuple[tuple[int, str], ...]  # place and reason


@dataclass(frozen=True, kw_only=True)
class HeaderSummary:
    """How often each shorter side occurs in a range, and whether every image there is grey."""

    shorter_sides: Counter[int]
    all_grey: bool


def fits_already(source: ImageSource, *, resolution: int, channels: int) -> bool:
    """Whether the source is an array that needs no resampling and no mixing of colours: cutting it is enough."""
    return isinstance(source, ArrayImageSource) and (
        source.pixels.shape[1:3] == (resolution, resolution) and source.pixels.shape[3] in (1, channels)
    )


@_quietly
def prepare_range(source: ImageSource, start: int, stop: int, *, resolution: int, channels: int) -> PreparedRange:
    """Read and prepare the images `start` to `stop`."""
    if isinstance(source, ArrayImageSource):
        stored, in_range = source.block(start, stop)
        kept = np.flatnonzero(in_range)
        return PreparedRange(
            images=prepare_array(stored[in_range], resolution=resolution, channels=channels),
            indices=(start + kept).astype(np.int64),
            unreadable=tuple((start + int(place), OUT_OF_RANGE) for place in np.flatnonzero(~in_range)),
        )
    images = np.empty((stop - start, channels, resolution, resolution), np.uint8)
    indices: list[int] = []
    unreadable: list[tuple[int, str]] = []
    for index in range(start, stop):
        go_on()
        try:
            images[len(indices)] = _prepared(source, index, resolution=resolution, channels=channels)
        except DecodingError as error:
            unreadable.append((index, str(error)))
        except (MemoryError, DpmepfError):
            raise
        except Exception:  # a colour space that Pillow does not convert, say
            unreadable.append((index, NOT_AN_IMAGE))
        else:
            indices.append(index)
    return PreparedRange(
        images=images[: len(indices)], indices=np.array(indices, np.int64), unreadable=tuple(unreadable)
    )


def _prepared(source: ImageSource, index: int, *, resolution: int, channels: int) -> NDArray[np.uint8]:
    """One image; as read it is gone afterwards, so that a large one takes no memory from the next."""
    # Twice the resolution is kept where a JPEG decodes smaller, so that the resampling still averages.
    image = source.read(index, at_least=2 * resolution)
    return prepare_image(image, resolution=resolution, channels=channels)


@_quietly
def summarise_headers(source: ImageSource, start: int, stop: int) -> HeaderSummary:
    """Look at the headers of the images `start` to `stop`; an unreadable one is passed over, loading will report it."""
    sides: Counter[int] = Counter()
    all_grey = True
    for index in range(start, stop):
        go_on()
        try:
            header = source.header(index)
        except DecodingError:
            continue
        sides[header.shorter_side] += 1
        all_grey = all_grey and header.grey
    return HeaderSummary(shorter_sides=sides, all_grey=all_grey)
