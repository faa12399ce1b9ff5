"""Public images for a synthetic data set: those that the class means say belong to a class of the private data.

Noisy class means know more of the classes than a generator of modest size can draw. Public photographs that look like a
class teach what is missing, if they lie where images of the class lie. So a public image is a candidate for the class
that the linear discriminant (see `labelling`) finds, unless it is farther from that class's mean than generated images
ever are. Of the candidates, the data set takes some that together come near the class's mean features, by kernel
herding (Chen, Welling & Smola, UAI 2010): those that are told best from every other class would be alike, and in no
proportion to what the class holds.

Only the release, generated and public images enter: post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.image_errors import LabelOutsideError, UnreadableImageError
from dpmepf.shared.image_loading import iterate_batches, iterate_indexed_batches
from dpmepf.shared.image_sources import ImageSource, open_images
from dpmepf.synthesize.labelling import MeanDiscriminant
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.sampling import BATCH, Advance, ImageBatches

# Farthest candidate, in squared radii of a class. Generated images vary less than real ones: of the test images of
# MNIST and of CIFAR-10, over 99.9 % are within 1.5 for their own release. So are 51 % of Tiny ImageNet's for CIFAR-10's
# release, but only 0.03 % for MNIST's.
REACH = 1.5
# Of the public images that an even spread would give a class. Of those from Tiny ImageNet that are told best from other
# classes, 15 or 40 % alone train a CNN for CIFAR-10 to 56.0 %, 80 % to 53.7 %.
LARGEST_SHARE_OF_PUBLIC = 0.25
LARGEST_SHARE_OF_CLASS = 0.5  # so that a class never rests on public images alone
LARGEST_BLOCK = 4096  # candidates that are herded together: their products take 64 MiB
SMALLEST_BLOCK = 64
BLOCK_VALUES = 2**26  # of the features of a block, 256 MiB


@dataclass(frozen=True, kw_only=True)
class PublicScores:
    """What the choice needs to know of N public images.

    Fields:
        classes: int64 N, the class of the best score.
        alike: bool N, whether it may be chosen for that.
        unreadable: number of images that could not be decoded, which may not.
    """

    classes: np.ndarray
    alike: np.ndarray
    unreadable: int


@dataclass(frozen=True, kw_only=True)
class ChosenImages:
    """What a data set takes from one public source.

    Fields:
        path: of the source.
        source: all its images.
        unreadable: number of them that could not be decoded.
        places: int64 n, where the chosen ones are in `source`, class by class, ascending in each.
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
        except LabelOutsideError as error:
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
    seed: int = 0,
    workers: int | None = None,
    on_images: Callable[[int, int], None] = lambda count, total: None,
) -> list[ChosenImages]:
    """Choose the images of `sources` that a data set of `numbers` images of each class is to hold.

    Args:
        sources: from `open_public_images`.
        discriminant: of the K classes.
        numbers: K numbers of images, generated and public together.
        resolution, channels: of the data set.
        seed: of which candidates are herded together, where they are many.
        workers: decoding processes; None: the default.
        on_images: called with the number of images just looked at and the number of all; of some features are computed
            twice, which are counted twice, once it is known which.

    Returns:
        What is taken from each source, in their order.
    """
    total = sum(len(source) for source in sources.values())

    def advance(count: int) -> None:
        on_images(count, total)

    form = {"resolution": resolution, "channels": channels}
    scores = [
        score_images(source, discriminant, workers=workers, advance=advance, **form) for source in sources.values()
    ]
    found = [[np.flatnonzero(part.alike & (part.classes == label)) for label in range(len(numbers))] for part in scores]
    limits = [
        min(int(LARGEST_SHARE_OF_PUBLIC * total / len(numbers)), int(LARGEST_SHARE_OF_CLASS * number))
        for number in numbers
    ]
    shares = [shares_of(limit, [*map(len, of_sources)]) for limit, *of_sources in zip(limits, *found, strict=True)]
    random = np.random.default_rng(seed)
    block = max(SMALLEST_BLOCK, min(LARGEST_BLOCK, BLOCK_VALUES // discriminant.means.shape[1]))
    drafts = [
        _draft(places, share, random=random, block=block)
        for places, share in zip(found, zip(*shares, strict=True), strict=True)
    ]
    total += sum(len(part.places) for draft in drafts for part in draft if part.count < len(part.places))
    return [
        _chosen(path, source, part.unreadable, draft, discriminant, workers=workers, advance=advance, **form)
        for (path, source), part, draft in zip(sources.items(), scores, drafts, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Candidates of a class that are herded together: of `places`, ascending, `count` are to be chosen."""

    class_index: int
    places: np.ndarray
    count: int


def _draft(
    places: Sequence[np.ndarray], shares: Sequence[int], *, random: np.random.Generator, block: int
) -> list[_Block]:
    """Divide the candidates of each class in one source at random into blocks of about the same size, at most `block`.

    Args:
        places: of the candidates of each class.
        shares: how many of them are to be chosen.
    """
    blocks = []
    for class_index, (candidates, share) in enumerate(zip(places, shares, strict=True)):
        if share:
            parts = np.array_split(random.permutation(candidates), -(-len(candidates) // block))
            counts = shares_of(share, [*map(len, parts)])
            blocks += [
                _Block(class_index=class_index, places=np.sort(part), count=count)
                for part, count in zip(parts, counts, strict=True)
                if count
            ]
    return blocks


def _chosen(
    path: Path,
    source: ImageSource,
    unreadable: int,
    blocks: Sequence[_Block],
    discriminant: MeanDiscriminant,
    *,
    resolution: int,
    channels: int,
    workers: int | None,
    advance: Advance,
) -> ChosenImages:
    """Choose from one source; features are of one block at a time, and images are read in one go."""

    def of(blocks: Sequence[_Block], numbers: Sequence[int]) -> ChosenImages:
        places = np.concatenate([np.empty(0, np.int64), *(part.places for part in blocks)])
        classes = np.repeat(np.asarray(numbers, np.int64), [len(part.places) for part in blocks])
        order = np.lexsort((places, classes))  # a source is read forward once for each of `numbers`
        return ChosenImages(
            path=path, source=source, unreadable=unreadable, places=places[order], classes=classes[order]
        )

    chosen = [part for part in blocks if part.count == len(part.places)]
    to_herd = [part for part in blocks if part.count < len(part.places)]
    features: list[Tensor] = []
    for images, number in of(to_herd, range(len(to_herd))).batches(
        resolution=resolution, channels=channels, workers=workers
    ):
        features.append(discriminant.features(torch.from_numpy(images)))
        advance(len(images))
        part = to_herd[number]
        if sum(map(len, features)) == len(part.places):
            rows = herd(torch.cat(features), discriminant.means[part.class_index], discriminant.metric, part.count)
            chosen.append(replace(part, places=part.places[rows]))
            features.clear()
    return of(chosen, [part.class_index for part in chosen])


def shares_of(limit: int, sizes: Sequence[int]) -> list[int]:
    """Spread `limit`, or all there are if that is less, over parts in proportion to their `sizes`."""
    total = sum(sizes)
    ends = min(limit, total) * np.cumsum([0, *sizes]) // max(total, 1)
    return [int(share) for share in np.diff(ends)]


def score_images(
    source: ImageSource,
    discriminant: MeanDiscriminant,
    *,
    resolution: int,
    channels: int,
    workers: int | None = None,
    advance: Advance = lambda count: None,
) -> PublicScores:
    """Find each image's class, and whether it is within `REACH` times the discriminant's radius² of its mean."""
    classes = np.zeros(len(source), np.int64)
    alike = np.zeros(len(source), bool)
    read = 0
    for images, places in iterate_indexed_batches(
        source,
        resolution=resolution,
        channels=channels,
        batch_size=BATCH,
        workers=workers,
        skip_unreadable=True,
    ):
        best, _, squared_distances = discriminant.judge(images)
        classes[places] = best.cpu().numpy()
        alike[places] = (squared_distances <= REACH * discriminant.squared_radius).cpu().numpy()
        read += len(places)
        advance(len(places))
    if read < len(source):
        advance(len(source) - read)
    return PublicScores(classes=classes, alike=alike, unreadable=len(source) - read)


@torch.inference_mode()
def herd(features: Tensor, mean: Tensor, metric: WithinClassMetric, count: int) -> np.ndarray:
    """Choose `count` of n×D `features` so that their mean comes near `mean` (D).

    One after another, each the one that brings the mean of those so far nearest: with g the offsets from `mean` and G
    the sum of the chosen ones, (G + g)ᵀA(G + g) is least where gᵀAG + gᵀAg/2 is. For features of one length that is
    kernel herding (Chen, Welling & Smola, UAI 2010; Bach, Lacoste-Julien & Obozinski, ICML 2012).

    Returns:
        The rows, int64 `count`, in the order of their choice.
    """
    offsets = features - mean
    products = offsets @ metric.apply(offsets).T  # n x n
    lengths, to_chosen = products.diagonal() / 2, torch.zeros(len(features), device=features.device)
    rows = []
    for _ in range(count):
        row = int((to_chosen + lengths).argmin())
        rows.append(row)
        to_chosen += products[row]
        to_chosen[row] = torch.inf
    return np.array(rows, np.int64)
