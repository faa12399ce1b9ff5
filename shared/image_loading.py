"""Batches of prepared images, in the order of the source, decoded by worker processes.

What a batch holds depends neither on the number of workers nor on chance. An array that already fits (IDX, npz) is cut
into batches in the main process, since there is nothing to decode.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmepf.shared.errors import UsageError
from dpmepf.shared.image_decoding import NO_ACCESS
from dpmepf.shared.image_errors import UnreadableImageError
from dpmepf.shared.image_ranges import PreparedRange, fits_already, prepare_range
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.image_workers import map_ranges, usable_cores

# Images decoded by a worker at a time: enough to hide the hand-over, few enough for large photographs.
_RANGE = 64
_SCAN_BATCH = 256


def iterate_batches(
    source: ImageSource,
    *,
    resolution: int,
    channels: int,
    batch_size: int,
    workers: int | None = None,
    skip_unreadable: bool = False,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 B x C x R x R images and int64 B labels, in order; the rest as `iterate_indexed_batches`."""
    for images, indices in iterate_indexed_batches(
        source,
        resolution=resolution,
        channels=channels,
        batch_size=batch_size,
        workers=workers,
        skip_unreadable=skip_unreadable,
        on_unreadable=on_unreadable,
    ):
        yield images, torch.from_numpy(source.labels[indices])


def iterate_indexed_batches(
    source: ImageSource,
    *,
    resolution: int,
    channels: int,
    batch_size: int,
    workers: int | None = None,
    give_way: bool = False,
    skip_unreadable: bool = False,
    skip_inaccessible: bool | None = None,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
) -> Generator[tuple[Tensor, NDArray[np.int64]], None, None]:
    """Yield uint8 B x C x R x R images and int64 B places of theirs in `source`, in order.

    B is `batch_size`, less for the last batch, and less where unreadable images were skipped (a batch never reaches
    over into the next `batch_size` records, so that damage elsewhere does not change which records share a batch).

    Args:
        source: from `open_images`.
        resolution: side in pixels.
        channels: 1 or 3.
        batch_size: records for each batch, at least 1.
        workers: decoding processes; 0 decodes here; None takes one for each core (and 0 where nothing is decoded).
        give_way: whether these processes leave the cores to whatever else needs them.
        skip_unreadable: leave out unreadable images instead of stopping at the first.
        skip_inaccessible: leave out those as well whose file cannot be read, which says nothing of the image and may be
            so of a whole class; None: of public data only.
        on_unreadable: called with the error of each image that was left out.

    Raises:
        UnreadableImageError: an image cannot be used and is not left out.
        WorkerDiedError: a decoding process was killed.
    """
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size} is not allowed: it is 1 or more")
    in_place = fits_already(source, resolution=resolution, channels=channels)
    if workers is None or in_place:
        workers = 0 if in_place or len(source) <= 2 * _RANGE else usable_cores()
    skips_inaccessible = source.public if skip_inaccessible is None else skip_inaccessible
    step = batch_size if in_place else min(batch_size, _RANGE)
    # Each batch is cut into ranges of its own, so that no range lies across two batches.
    ranges = [
        (start, min(start + step, end))
        for first in range(0, len(source), batch_size)
        for end in (min(first + batch_size, len(source)),)
        for start in range(first, end, step)
    ]
    prepare = functools.partial(prepare_range, resolution=resolution, channels=channels)
    parts: list[PreparedRange] = []
    with contextlib.closing(map_ranges(prepare, source, ranges, workers=workers, give_way=give_way)) as prepared:
        for (_, stop), part in zip(ranges, prepared, strict=True):
            for index, reason in part.unreadable:
                error = UnreadableImageError(reason, location=source.location(index), public=source.public)
                leaves_out = skip_unreadable and (reason != NO_ACCESS or skips_inaccessible)
                if not leaves_out:
                    raise error
                if on_unreadable is not None:
                    on_unreadable(error)
            parts.append(part)
            if stop % batch_size and stop < len(source):
                continue
            indices = np.concatenate([part.indices for part in parts])
            if len(indices):
                images = parts[0].images if len(parts) == 1 else np.concatenate([part.images for part in parts])
                yield torch.from_numpy(images), indices
            parts = []


def load_all(
    source: ImageSource,
    *,
    resolution: int,
    channels: int,
    workers: int | None = None,
    skip_unreadable: bool = False,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Every image and label of a source in memory: uint8 N x C x R x R and int64 N. Arguments as `iterate_batches`."""
    images = torch.empty((len(source), channels, resolution, resolution), dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)
    filled = 0
    for batch, batch_labels in iterate_batches(
        source,
        resolution=resolution,
        channels=channels,
        batch_size=_SCAN_BATCH,
        workers=workers,
        skip_unreadable=skip_unreadable,
        on_unreadable=on_unreadable,
    ):
        images[filled : filled + len(batch)] = batch
        labels[filled : filled + len(batch)] = batch_labels
        filled += len(batch)
    return images[:filled], labels[:filled]


def find_unreadable(source: ImageSource, *, workers: int | None = None) -> list[UnreadableImageError]:
    """Try every image and return the errors, whose `location` and `reason` are for the owner of the data only."""
    errors: list[UnreadableImageError] = []
    for _ in iterate_indexed_batches(
        source,
        resolution=32,  # any: what cannot be decoded does not depend on it
        channels=3,
        batch_size=_SCAN_BATCH,
        workers=workers,
        skip_unreadable=True,
        skip_inaccessible=True,
        on_unreadable=errors.append,
    ):
        pass
    return errors
