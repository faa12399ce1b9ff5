"""From an image source to a released artifact. The trusted core bounds whatever vector comes of an image.

That no image enters another's vector, and none is there twice, is the word of this module and of those that read
images: see PROOF.md, section 7.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpmepf.artifacts.accounting import calibrate_sigma
from dpmepf.artifacts.accounts import Budget
from dpmepf.artifacts.artifact import Artifact, check_size
from dpmepf.artifacts.hdf5_file import rehearse
from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON, UNNAMED, Ledger, check_dataset_name, plan_release
from dpmepf.artifacts.register import Register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.embed.checkpoint import Checkpoint, let_go_on_failure
from dpmepf.embed.distributed import Processes
from dpmepf.embed.fingerprint import run_fingerprint, state_of_files
from dpmepf.embed.release import release
from dpmepf.embed.summing import ClassSums
from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.feature_map import FeatureMap
from dpmepf.shared.image_errors import UnreadableImageError
from dpmepf.shared.image_loading import iterate_indexed_batches
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.precision import exact_float32
from dpmepf.shared.schema import ImageSchema
from dpmepf.shared.whitening import each_image_alone


class EmbeddingError(DpmepfError):
    """The encoder could not be run, or not so that an image's features are its own."""


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """How to embed and at which privacy parameters.

    epsilon: > 0, in nats. delta: in (0, 1). relation: which data sets are neighbours.
    unit_of_privacy: what neighbours differ by, "one image" or "one person".
    batch_size: images in every forward pass; the last batch is padded to it.
    workers: decoding processes, 0 for none, None to choose. device: where the encoder runs, "cpu" or "cuda".
    skip_unreadable: leave out images that cannot be decoded, instead of stopping.
    dataset_name: the custodian's public name of the data set.
    register: the custodian's book, on which the release is charged; None: it is in no book.
    budget: of a data set that `register` does not know yet.
    """

    epsilon: float
    delta: float = 1e-6
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE
    unit_of_privacy: str = ONE_IMAGE
    batch_size: int = 256
    workers: int | None = None
    device: str = "cpu"
    skip_unreadable: bool = False
    dataset_name: str = UNNAMED
    register: Register | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        try:
            calibrate_sigma(self.epsilon, self.delta, sensitivity=1.0)  # refuses parameters out of range
        except ArithmeticError:
            raise UsageError(
                f"epsilon {self.epsilon:g} at delta {self.delta:g} is too small to reckon with: choose a larger one"
            ) from None
        if self.batch_size < 1:
            raise UsageError(f"the batch size is {self.batch_size}; it must be at least 1")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"the number of workers is {self.workers}; it must be 0 or more")
        check_dataset_name(self.dataset_name)
        if self.register is not None and self.dataset_name == UNNAMED:
            raise UsageError(
                f"a register keeps releases by data set: name yours with --dataset, other than {UNNAMED!a}"
            )
        if self.register is None and self.budget is not None:
            raise UsageError("a budget needs a register that keeps it")


def plan(schema: ImageSchema, feature_map: FeatureMap, settings: EmbedSettings) -> Ledger:
    """The ledger that a release under these settings will have, but for its random id; no image is read.

    Raises: UsageError for parameters that cannot be met; ArtifactError for class names or a feature map that no
        artifact holds; RegisterError for a release that the register would refuse.
    """
    check_size(len(schema.classes), feature_map.dimension)
    ledger = plan_release(
        epsilon=settings.epsilon,
        delta=settings.delta,
        relation=settings.relation,
        feature_dimension=feature_map.dimension,
        class_count=len(schema.classes),
        non_negative_features=feature_map.non_negative,
        inferred_schema=schema.inferred,
        dataset_name=settings.dataset_name,
        unit_of_privacy=settings.unit_of_privacy,
    )
    rehearse(classes=schema.classes, feature_map=feature_map.description, ledger=ledger)
    if settings.register is not None:
        settings.register.check(ledger, budget=settings.budget)
    return ledger


def embed_images(
    source: ImageSource,
    *,
    schema: ImageSchema,
    feature_map: FeatureMap,
    settings: EmbedSettings,
    persons: npt.NDArray[np.int64] | None = None,
    processes: Processes | None = None,
    checkpoint: Checkpoint | None = None,
    on_images: Callable[[int], None] | None = None,
    on_charge: Callable[[Ledger], None] | None = None,
    on_noise: Callable[[int], None] | None = None,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
) -> Artifact:
    """Embed every image of `source` and release the class sums once.

    Args:
        source: private images with labels. schema: what is public of them.
        feature_map: φ for the schema's resolution and channels, on `settings.device`.
        persons: whose each image of `source` is, int64 [N] (persons.py), if the unit of privacy is one person.
        processes: those that work on it together, of which this is the first; the others call `embed_share` with the
            same arguments.
        checkpoint: file in which the exact sums are kept while images are read, to go on from if the run is
            interrupted; delete it when the artifact is written.
        on_images: called with the number of images just embedded here. A running total of them is private: it may be
            shown to the custodian while it runs, and must not be stored.
        on_charge: called with the ledger right before the release is charged to the register.
        on_noise: called with the number of coordinates just noised, K·(D+1) in all (public).
        on_unreadable: called with the error of each image that is skipped.
    Raises: UsageError for parameters that cannot be met, ArtifactError for names that no artifact holds and
        RegisterError for a release that the register refuses, all before any image is read; CheckpointError for a file
        that this run cannot go on from; ProcessesError if others see another data set, or end; errors of the loader;
        NoiseError.
    """
    plan(schema, feature_map, settings)

    def charge(ledger: Ledger) -> None:
        if settings.register is not None:
            if on_charge is not None:
                on_charge(ledger)
            settings.register.charge(ledger, budget=settings.budget)

    with let_go_on_failure(checkpoint):
        sums = sum_images(
            source,
            schema=schema,
            feature_map=feature_map,
            settings=settings,
            persons=persons,
            processes=processes,
            checkpoint=checkpoint,
            on_images=on_images,
            on_unreadable=on_unreadable,
        )
        if processes is not None:
            processes.collect(sums)
        return release(
            sums,
            classes=schema.classes,
            feature_map=feature_map.description,
            epsilon=settings.epsilon,
            delta=settings.delta,
            relation=settings.relation,
            inferred_schema=schema.inferred,
            dataset_name=settings.dataset_name,
            charge=charge,
            progress=on_noise,
        )


def embed_share(
    source: ImageSource,
    *,
    schema: ImageSchema,
    feature_map: FeatureMap,
    settings: EmbedSettings,
    persons: npt.NDArray[np.int64] | None = None,
    processes: Processes,
    checkpoint: Checkpoint | None = None,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
) -> None:
    """What every process but the first does: embed its share of `source` and hand the sums to the first."""
    with let_go_on_failure(checkpoint):
        sums = sum_images(
            source,
            schema=schema,
            feature_map=feature_map,
            settings=settings,
            persons=persons,
            processes=processes,
            checkpoint=checkpoint,
            on_unreadable=on_unreadable,
        )
        processes.hand_over(sums)


def sum_images(
    source: ImageSource,
    *,
    schema: ImageSchema,
    feature_map: FeatureMap,
    settings: EmbedSettings,
    persons: npt.NDArray[np.int64] | None = None,
    processes: Processes | None = None,
    checkpoint: Checkpoint | None = None,
    on_images: Callable[[int], None] | None = None,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
) -> ClassSums:
    """Exact class sums of the features of every image, or of this process's share: private until they are released.

    Every forward pass has the same shape, in float32, so that an image's features do not depend on which images share
    its batch: the sums are bit-identical for any order of the records and any number of workers. Where `persons` are
    given, the images of each are embedded in a row, so that one person's sums are in memory at a time, and by one
    process. Several `processes` have to see the same images in the same order, which is checked before any is read.
    """
    if (persons is None) == (settings.unit_of_privacy == ONE_PERSON):
        raise UsageError("persons have to be given if the unit of privacy is one person, and only then")
    if persons is not None:
        if persons.shape != (len(source),):
            raise UsageError("persons must be given for each image")
        order = np.argsort(persons, kind="stable")
        source, persons = source.rearranged(order), persons[order]
    owners = np.arange(len(source)) if persons is None else persons  # rising; an owner's images are never divided
    fingerprint = b""
    if processes is not None or checkpoint is not None:
        fingerprint = run_fingerprint(source, schema, feature_map.description, settings, persons)
    if processes is not None:
        processes.require_same(fingerprint)
        share = processes.share(owners)
        source, owners = source.rearranged(np.arange(len(source))[share]), owners[share]
        fingerprint += repr(share).encode()
    sums = ClassSums(
        class_count=len(schema.classes),
        dimension=feature_map.dimension,
        non_negative=feature_map.non_negative,
        unit_of_privacy=settings.unit_of_privacy,
    )

    def require_same_features(probe: bytes) -> None:
        if processes is not None:
            processes.require_same_features(probe)
        if checkpoint is not None:
            checkpoint.require_same_features(probe)

    done = 0
    if checkpoint is not None:
        state = hashlib.sha256(fingerprint + state_of_files(source)).digest()
        done = checkpoint.restore(sums, fingerprint=state, places=len(source), skipping=settings.skip_unreadable)
    if done:
        source, owners = source.rearranged(np.arange(done, len(source))), owners[done:]
        if on_images is not None:
            on_images(done)
    with contextlib.closing(
        _batches(source, schema, feature_map, settings, on_unreadable, require_same_features)
    ) as batches:
        for images, places in batches:
            features, labels = _features(feature_map, images, settings).numpy(), source.labels[places]
            whose = None if persons is None else owners[places]
            complete = 0
            if checkpoint is not None and checkpoint.due():
                complete = _complete(owners, places)
            if checkpoint is not None and complete:
                sums.add(features[:complete], labels[:complete], None if whose is None else whose[:complete])
                checkpoint.save(sums.checkpoint(), done=done + int(places[complete - 1]) + 1)
            sums.add(features[complete:], labels[complete:], None if whose is None else whose[complete:])
            if on_images is not None:
                on_images(len(places))
    return sums


def _batches(
    source: ImageSource,
    schema: ImageSchema,
    feature_map: FeatureMap,
    settings: EmbedSettings,
    on_unreadable: Callable[[UnreadableImageError], None] | None,
    require_same_features: Callable[[bytes], None],
) -> Generator[tuple[Tensor, npt.NDArray[np.int64]], None, None]:
    """Batches of images, with their places in `source`, once the encoder has passed the check of independence.

    What it made of that check's images goes to `require_same_features`.

    Decoding processes start before it: they would keep all the memory that it has taken by then, as it was.
    """
    batches = iterate_indexed_batches(
        source,
        resolution=schema.resolution,
        channels=schema.channels,
        batch_size=settings.batch_size,
        workers=settings.workers,
        give_way=settings.device == "cpu",  # its threads all wait for the one whose core is taken
        skip_unreadable=settings.skip_unreadable,
        on_unreadable=on_unreadable,
    )
    with contextlib.closing(batches):
        first = next(batches, None)
        require_same_features(_check_independence(feature_map, schema, settings))
        if first is not None:
            yield first
        del first
        yield from batches


def _complete(owners: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> int:
    """How many of the images at `places` to take, from the first, so that no owner of theirs has images that follow."""
    following = np.minimum(places + 1, len(owners) - 1)
    ends = np.flatnonzero((following == places) | (owners[following] != owners[places]))
    return int(ends[-1]) + 1 if len(ends) else 0


def _check_independence(feature_map: FeatureMap, schema: ImageSchema, settings: EmbedSettings) -> bytes:
    """Refuse an encoder, device or batch size with which an image's features depend on its place or its company.

    Public random images, of medium brightness, are embedded five times: as they are; one place on, with another in
    front; with every second one black or white in turn; with the others black or white; and as they were. The features
    of an image that stays have to be the same bits. That finds kernels that take another order of additions at some
    place, means or extremes taken over a batch or a part of it, and what a batch leaves behind for the next. An image
    that is alone in its batch has no company.

    Returns: SHA-256 of the features of these images, bit by bit, for another process or machine to compare with.
    """
    size = schema.channels, schema.resolution, schema.resolution
    random = torch.Generator().manual_seed(0)
    images = torch.randint(64, 192, (settings.batch_size + 1, *size), dtype=torch.uint8, generator=random)

    def features(batch: Tensor) -> Tensor:
        return _features(feature_map, batch, settings).view(torch.int32)

    expected, moved = features(images[1:]), features(images[:-1])
    same = torch.equal(moved[1:], expected[:-1])
    for first in (0, 1):
        company = images[1:].clone()
        company[first::4], company[first + 2 :: 4] = 0, 255
        same = same and torch.equal(features(company)[1 - first :: 2], expected[1 - first :: 2])
    if not (same and torch.equal(features(images[1:]), expected)):
        raise EmbeddingError(
            f"on {settings.device}, with {settings.batch_size} images at a time, this encoder gives an image other "
            "features at another place of the batch, or in other company, so that nothing was released: choose another "
            "--batch-size, --device or --encoder"
        )
    return hashlib.sha256(expected.numpy().tobytes()).digest()


def _features(feature_map: FeatureMap, images: Tensor, settings: EmbedSettings) -> Tensor:
    """float32 B×D on the CPU, from one forward pass of exactly `batch_size` images, the missing ones blank."""
    count = len(images)
    if count < settings.batch_size:
        images = torch.cat([images, images.new_zeros(settings.batch_size - count, *images.shape[1:])])
    try:
        with torch.inference_mode(), exact_float32(), each_image_alone():
            return feature_map(images.to(settings.device))[:count].float().cpu()
    except torch.OutOfMemoryError:
        raise EmbeddingError(
            f"the encoder ran out of memory with {settings.batch_size} images at a time: choose a smaller --batch-size"
        ) from None
