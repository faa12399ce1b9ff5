"""The schema of a data set, which is public: class names, resolution, grey or RGB.

Declared by the user, or inferred from the form of the data and then marked so, because the release treats it as public.
Inference looks at folder names and image headers, never at which labels occur, and at no pixel:

- classes: as `image_sources` reads them;
- resolution: the most frequent shorter side (of equally frequent ones the smaller), taken to the nearest supported
  resolution (of equally near ones the smaller): 8 to 28, 48 to 32, 96 to 64, 100 to 128;
- channels: 1 if every image is stored as grey, else 3.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dpmepf.shared.class_names import check_class_names
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map_description import SUPPORTED_RESOLUTIONS
from dpmepf.shared.image_decoding import EXTENSIONS
from dpmepf.shared.image_ranges import summarise_headers
from dpmepf.shared.image_source_types import ArrayImageSource, ImageSource
from dpmepf.shared.image_workers import map_ranges, usable_cores

SUPPORTED_CHANNELS = (1, 3)
_FIELDS = ("classes", "resolution", "channels")
_RANGE = 512  # headers read by a worker at a time


class SchemaError(UsageError):
    """A part of the schema is not supported, missing, or cannot be inferred."""


@dataclass(frozen=True, kw_only=True)
class ImageSchema:
    """What is public of a data set; `inferred` lists the fields that were read from its form rather than declared."""

    classes: tuple[str, ...]
    resolution: int
    channels: int
    inferred: tuple[str, ...]

    def __post_init__(self) -> None:
        check_class_names(self.classes)
        _check_resolution(self.resolution)
        _check_channels(self.channels)
        if [field for field in _FIELDS if field in self.inferred] != list(self.inferred):
            raise SchemaError(f"inferred fields must be among {', '.join(_FIELDS)}, each once and in this order")


def infer_schema(
    source: ImageSource,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    strict: bool = False,
    workers: int | None = None,
) -> ImageSchema:
    """Complete the declared schema of `source` (its classes were declared, or not, when it was opened).

    Args:
        source: from `open_images`.
        resolution: declared side in pixels, None to infer it.
        channels: declared number of channels, None to infer it.
        strict: refuse to infer anything.
        workers: processes that read headers, None for the default.

    Raises:
        SchemaError: a declared value is not supported, `strict` meets an undeclared one, or there is no readable image
            to infer from.
    """
    declared = (source.classes_declared, resolution is not None, channels is not None)
    inferred = tuple(field for field, is_declared in zip(_FIELDS, declared, strict=True) if not is_declared)
    if strict and inferred:
        options = ", ".join(f"--{field}" for field in inferred)
        raise SchemaError(f"--strict infers nothing from the data: declare {options} too")
    # Declared values are checked before any header is read.
    if resolution is not None:
        _check_resolution(resolution)
    if channels is not None:
        _check_channels(channels)
    if resolution is None or channels is None:
        sides, all_grey = _scan(source, workers)
        if not sides:
            raise SchemaError(
                "no readable image to infer from: declare "
                + " and ".join(f"--{field}" for field in inferred if field != "classes")
                + f", or check the data (images are the files that end in {', '.join(sorted(EXTENSIONS))})"
            )
        if resolution is None:
            most_frequent = min(sides, key=lambda side: (-sides[side], side))
            resolution = nearest_resolution(most_frequent)
        if channels is None:
            channels = 1 if all_grey else 3
    return ImageSchema(classes=source.classes, resolution=resolution, channels=channels, inferred=inferred)


def nearest_resolution(side: int) -> int:
    """The supported resolution nearest to `side` pixels, of two equally near ones the smaller."""
    return min(SUPPORTED_RESOLUTIONS, key=lambda supported: (abs(supported - side), supported))


def _scan(source: ImageSource, workers: int | None) -> tuple[Counter[int], bool]:
    if isinstance(source, ArrayImageSource):  # one size for all
        ranges = [(0, 1)] if len(source) else []
        workers = 0
    else:
        ranges = [(start, min(start + _RANGE, len(source))) for start in range(0, len(source), _RANGE)]
        if workers is None:
            workers = usable_cores() if len(ranges) > 2 else 0
    sides: Counter[int] = Counter()
    all_grey = True
    for summary in map_ranges(summarise_headers, source, ranges, workers=workers):
        sides.update(summary.shorter_sides)
        all_grey = all_grey and summary.all_grey
    return sides, all_grey


def _check_resolution(resolution: int) -> None:
    if resolution not in SUPPORTED_RESOLUTIONS:
        choices = ", ".join(map(str, SUPPORTED_RESOLUTIONS))
        raise SchemaError(f"--resolution {resolution} is not supported: choose one of {choices}")


def _check_channels(channels: int) -> None:
    if channels not in SUPPORTED_CHANNELS:
        raise SchemaError(f"--channels {channels} is not supported: choose 1 (grey) or 3 (RGB)")
