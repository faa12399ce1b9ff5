"""Public images for a synthetic data set: those that the class means say belong to a class of the private data.

Noisy class means know more of the classes than a generator of modest size can draw. Public photographs that look like a
class teach what is missing, if they lie where images of the class lie. So a public image is a candidate for the class
that the linear discriminant (see `labelling`) finds, unless it is farther from that class's mean than generated images
ever are; of the candidates, the data set takes those that are told best from every other class.

Only the release, generated and public images enter: post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.image_errors import LabelError, UnreadableImageError
from dpmepf.shared.image_loading import iterate_batches, iterate_indexed_batches
from dpmepf.shared.image_sources import ImageSource, open_images
from dpmepf.synthesize.labelling import MeanDiscriminant
from dpmepf.synthesize.sampling import BATCH, Advance, ImageBatches

# Farthest candidate, in squared radii of a class. Generated images vary less than real ones: of the test images of
# MNIST and of CIFAR-10, over 99.9 % are within 1.5 for their own release. So are 51 % of Tiny ImageNet's for CIFAR-10's
# release, but only 0.03 % for MNIST's.
REACH = 1.5
# Of the public images that an even spread would give a class. The best 15 or 40 % of these from Tiny ImageNet, taken
# alone, train a CNN for CIFAR-10 to 56.0 %, the best 80 % to 53.7 %.
LARGEST_SHARE_OF_PUBLIC = 0.25
LARGEST_SHARE_OF_CLASS = 0.5  # so that a class never rests on public images alone


@dataclass(frozen=True, kw_only=True)
class PublicScores:
    """What the choice needs to know of N public images.

    Fields:
        classes: int64 N, the class of the best score.
        margins: float32 N, by how much that exceeds that of the second; -inf: not to be chosen.
        unreadable: number of images that could not be decoded, which are not to be chosen either.
    """

    classes: np.ndarray
    margins: np.ndarray
    unreadable: int


@dataclass(frozen=True, kw_only=True)
class ChosenImages:
    """What a data set takes from one public source.

    Fields:
        path: of the source.
        source: all its images.
        unreadable: number of them that could not be decoded.
        places: int64 n, where the chosen ones are in `source`, class by class.
        classes: int64 n, their classes, ascending.
    """

    path: Path
    source: ImageSource
    unreadable: int
    places: np.ndarray
    classes: np.ndarray

    def batches(self, *, resolution: int, channels: int, workers: int | None = None) -> ImageBatches:
        """Yield (uint8 n×C×R×R, class) until every chosen image was given.

        Raises:
            UsageError: an image has changed since it was chosen.
        """
        start = 0
        chosen = self.source.rearranged(self.places)
        try:
            for images, _ in iterate_batches(
                chosen, resolution=resolution, channels=channels, batch_size=BATCH, workers=workers
            ):
                classes = self.classes[start : start + len(images)]
                start += len(images)
                for class_index in np.unique(classes).tolist():
                    yield images.numpy()[classes == class_index], class_index
        except UnreadableImageError as error:
            raise UsageError(
                f"--public {self.path}: an image that was chosen is no longer as it was ({error.location}): go on with "
                "--resume, and keep the images as they are meanwhile"
            ) from error


def per_class(chosen: Sequence[ChosenImages], class_count: int) -> np.ndarray:
    """Return int64 K: how many of all that was chosen are of each class."""
    return np.bincount(
        np.concatenate([np.empty(0, np.int64), *(part.classes for part in chosen)]), minlength=class_count
    )


def open_public_images(paths: Sequence[Path]) -> dict[Path, ImageSource]:
    """Open each of `paths`, of any form that `open_images` knows; labels are not used.

    Raises:
        DpmepfError: a path is missing, damaged, of no known form, without images, or named twice.
    """
    sources: dict[Path, ImageSource] = {}
    for path in paths:
        if path.resolve() in {other.resolve() for other in sources}:
            raise UsageError(f"--public {path} is named twice: once is enough")
        try:
            sources[path] = open_images(path, public=True)
        except LabelError as error:
            raise UsageError(
                f"--public {path}: an image in it has a label that numbers no class, as -1 does: leave the labels out, "
                "which are not used"
            ) from error
        except DpmepfError as error:
            raise UsageError(f"--public {path}: {error}") from error
        if len(sources[path]) == 0:
            raise UsageError(f"--public {path} holds no images: name another, or leave the option out")
    return sources


def choose_public_images(
    sources: Mapping[Path, ImageSource],
    discriminant: MeanDiscriminant,
    numbers: Sequence[int],
    *,
    resolution: int,
    channels: int,
    workers: int | None = None,
    on_images: Callable[[int, int], None] = lambda count, total: None,
) -> list[ChosenImages]:
    """Choose the images of `sources` that a data set of `numbers` images of each class is to hold.

    Args:
        sources: from `open_public_images`.
        discriminant: of the K classes.
        numbers: K numbers of images, generated and public together.
        resolution, channels: of the data set.
        workers: decoding processes; None: the default.
        on_images: called with the number of images just looked at and the number of all.

    Returns:
        What is taken from each source, in their order.
    """
    total = sum(len(source) for source in sources.values())

    def advance(count: int) -> None:
        on_images(count, total)

    scores = [
        score_images(source, discriminant, resolution=resolution, channels=channels, workers=workers, advance=advance)
        for source in sources.values()
    ]
    places = best_of_each_class(
        np.concatenate([part.classes for part in scores]),
        np.concatenate([part.margins for part in scores]),
        limits=[
            min(int(LARGEST_SHARE_OF_PUBLIC * total / len(numbers)), int(LARGEST_SHARE_OF_CLASS * number))
            for number in numbers
        ],
    )
    chosen, first = [], 0
    for (path, source), part in zip(sources.items(), scores, strict=True):
        here = [of_class[(of_class >= first) & (of_class < first + len(source))] - first for of_class in places]
        chosen.append(
            ChosenImages(
                path=path,
                source=source,
                unreadable=part.unreadable,
                places=np.concatenate(here),
                classes=np.repeat(np.arange(len(here)), [len(of_class) for of_class in here]),
            )
        )
        first += len(source)
    return chosen


def score_images(
    source: ImageSource,
    discriminant: MeanDiscriminant,
    *,
    resolution: int,
    channels: int,
    workers: int | None = None,
    advance: Advance = lambda count: None,
) -> PublicScores:
    """Find each image's class and margin; images beyond `REACH` times the discriminant's radius² have none (-inf)."""
    classes = np.zeros(len(source), np.int64)
    margins = np.full(len(source), -np.inf, np.float32)
    read = 0
    for images, places in iterate_indexed_batches(
        source,
        resolution=resolution,
        channels=channels,
        batch_size=BATCH,
        workers=workers,
        skip_unreadable=True,
    ):
        best, margin, squared_distances = discriminant.judge(images)
        within = squared_distances <= REACH * discriminant.squared_radius
        classes[places] = best.cpu().numpy()
        margins[places] = torch.where(within, margin, -torch.inf).cpu().numpy()
        read += len(places)
        advance(len(places))
    return PublicScores(classes=classes, margins=margins, unreadable=len(source) - read)


def best_of_each_class(classes: np.ndarray, margins: np.ndarray, *, limits: Sequence[int]) -> list[np.ndarray]:
    """Return for each class the places, ascending, of its at most `limits` images of largest finite margin."""
    best = []
    for class_index, limit in enumerate(limits):
        candidates = np.flatnonzero((classes == class_index) & np.isfinite(margins))
        by_margin = np.argsort(-margins[candidates], kind="stable")
        best.append(np.sort(candidates[by_margin[:limit]]))
    return best
