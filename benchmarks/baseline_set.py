"""Synthetic sets with features that our commands do not offer: released, trained towards and drawn by the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.embed.checkpoint import Checkpoint
from dpmepf.embed.pipeline import EmbedSettings, embed_images
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.schema import ImageSchema
from dpmepf.synthesize.generator import Generator
from dpmepf.synthesize.pictures import preview_images, write_preview
from dpmepf.synthesize.public_images import ChosenImages, per_class
from dpmepf.synthesize.sampling import NPZ_FILE, Label, draw_images, images_per_class, write_npz
from dpmepf.synthesize.settings import SynthesisSettings
from dpmepf.synthesize.targets import class_sizes
from dpmepf.synthesize.training import TrainingCallbacks, train_generator

SECONDS_BETWEEN_SUMS = 1.0


def release_and_train(
    source: ImageSource,
    settings: SynthesisSettings,
    *,
    schema: ImageSchema,
    feature_map: Any,
    epsilon: float,
    delta: float,
    relation: NeighbouringRelation,
    device: str = "cpu",
    sums: Path | None = None,
    callbacks: TrainingCallbacks | None = None,
    prior: Generator | None = None,
) -> tuple[Artifact, Generator]:
    """Release the class means of any feature map with the attributes of `dpmepf.shared.feature_map.FeatureMap`, once.

    Args:
        sums: file in which exact sums are kept, for another release of the same features to go on from.
        callbacks, prior: of training.
    Returns: the release, and a generator trained on it.
    """
    checkpoint = None if sums is None else Checkpoint(path=sums, interval_seconds=SECONDS_BETWEEN_SUMS)
    release = embed_images(
        source,
        schema=schema,
        feature_map=feature_map,
        settings=EmbedSettings(epsilon=epsilon, delta=delta, relation=relation, device=device),
        checkpoint=checkpoint,
    )
    if checkpoint is not None:
        checkpoint.let_go()
    trained = train_generator(release, feature_map, settings, device=device, callbacks=callbacks, prior=prior)
    return release, trained.generator


def draw_set(
    folder: Path,
    release: Artifact,
    generator: Generator,
    *,
    seed: int,
    label: Label | None = None,
    images: int | None = None,
    choose: Callable[[Sequence[int]], list[ChosenImages]] = lambda numbers: [],
) -> Path:
    """Draw `images`, by default as many as the release says that there are; return the file of the set, in `folder`.

    Args:
        choose: called with the number of images of each class: public ones that take the place of some.
    """
    numbers = images_per_class(class_sizes(release), samples=images)
    form = generator.configuration
    shape = (sum(numbers), form.channels, form.resolution, form.resolution)
    chosen = choose(numbers)
    public = per_class(chosen, len(numbers))
    drawn = draw_images(generator, (np.array(numbers) - public).tolist(), seed=seed, label=label)
    taken = (part.batches(resolution=form.resolution, channels=form.channels) for part in chosen)
    write_npz(folder, chain(drawn, *taken), release.classes, shape, public=int(public.sum()) if chosen else None)
    write_preview(folder, preview_images(generator), release.classes)
    return folder / NPZ_FILE
