"""What can be made of one release: generators that are trained or drawn from otherwise than by default.

Each differs from the default by one thing. All of it is post-processing of the same release, at no cost of privacy.
What `dpmepf-synth` has no option for is done by its callbacks, between steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from public_choices import AS_THE_COMMAND, BY_MARGIN, OF_ALL
from torch import Tensor

from dpmepf.shared.feature_map import Segment
from dpmepf.shared.precision import autocast
from dpmepf.synthesize.feature_function import FeatureFunction
from dpmepf.synthesize.generator import Generator
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.settings import SynthesisSettings
from dpmepf.synthesize.training import GeneratorTraining, TrainingCallbacks

CANDIDATES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of the steps
IMAGES = 2_000  # to choose by
BATCH = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a generator is trained and drawn from.

    Fields:
        description: how that differs from the default.
        changes: of the preset's settings and the images' channels: settings that differ.
        relabels: whether the class means may correct labels.
        callbacks: what is done between steps.
        prior: whether training begins with a generator that was trained on public images.
        public: how public images are chosen that take the place of generated ones (`public_choice`); "": there are
            none.
    """

    description: str
    changes: Callable[[SynthesisSettings, int], dict[str, Any]] = lambda preset, channels: {}
    relabels: bool = True
    callbacks: Callable[[], TrainingCallbacks] = TrainingCallbacks
    prior: bool = False
    public: str = ""


AS_BY_DEFAULT = Training(description="")


class Weighted(WithinClassMetric):
    """The metric with each segment's part times a weight."""

    weights: Tensor  # of each feature

    def apply(self, vectors: Tensor) -> Tensor:
        return super().apply(vectors) * self.weights


def weigh_by_signal(training: GeneratorTraining) -> None:
    """Weigh each layer by the share of its class means' squared distances from their centre that is not noise."""
    metric, targets = training.objective.metric, training.targets
    weighted = Weighted(metric.segments, ridge=training.settings.metric_ridge, noise_variance=metric.noise_variance)
    weights = signal_weights(metric.segments, targets.means, float(targets.noise_variance.mean()))
    weighted.weights = weights.to(training.device)
    training.objective.metric = weighted


def signal_weights(segments: Sequence[Segment], means: Tensor, noise_variance: float) -> Tensor:
    """Of each feature its segment's share of signal, in mean 1: D from noisy class means K×D. Ones, if all is noise."""
    offsets = means - means.mean(dim=0)
    noise = noise_variance * (1 - 1 / len(means))
    weights = torch.empty(means.shape[1])
    for segment in segments:
        found = float(offsets[:, segment.start : segment.stop].square().mean())
        weights[segment.start : segment.stop] = 1 - noise / found if found > noise else 0.0
    return weights / weights.mean() if weights.any() else torch.ones_like(weights)


class Selection:
    """Keeps the averaged weights that are nearest to what is trained towards, by the privatised loss alone."""

    def __init__(self) -> None:
        self.distance = float("inf")
        self.kept: dict[str, Tensor] = {}

    def look(self, training: GeneratorTraining) -> None:
        steps = training.settings.steps
        if training.step not in {round(share * steps) for share in CANDIDATES}:
            return
        averaged = training.average.module
        found = distance_to(training.objective.released, training.finished_generator(), training.features_of)
        if found < self.distance:
            self.distance = found
            self.kept = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
        if training.step == steps:
            averaged.load_state_dict(self.kept)


@torch.no_grad()
def distance_to(released: Tensor, generator: Generator, features_of: FeatureFunction) -> float:
    """Squared distance of generated to released means K×D, over classes on average; unbiased, but for their noise."""
    random = torch.Generator().manual_seed(0)
    per_class = max(2, IMAGES // len(released))
    classes = torch.arange(len(released)).repeat_interleave(per_class)
    latents = torch.randn(len(classes), generator.configuration.latent_dimension, generator=random)
    with autocast(released.device):
        features = torch.cat(
            [
                features_of(generator(part.to(released.device), some.to(released.device))).float()
                for part, some in zip(latents.split(BATCH), classes.split(BATCH), strict=True)
            ]
        ).unflatten(0, (len(released), per_class))
    by_chance = features.var(dim=1).sum(dim=1) / per_class
    return float(((features.mean(dim=1) - released).square().sum(dim=1) - by_chance).mean())


TRAININGS = {
    "variation": Training(
        description="the other way about: images in colour are not changed at random as they are drawn, grey ones are",
        changes=lambda preset, channels: {"vary": channels == 1},
    ),
    "no-relabel": Training(
        description="labels are not corrected, and no noise is added to judge labels by",
        changes=lambda preset, channels: {"probe": False},
        relabels=False,
    ),
    "euclidean": Training(
        description="a generator's means are compared by Euclidean distance, not within classes",
        changes=lambda preset, channels: {"metric_ridge": 1e3},
    ),
    "mean-memory": Training(
        description="images are repelled from a moving average of generated means (0.9 of it is kept), as in GFMN",
        changes=lambda preset, channels: {"mean_memory": 0.9},
    ),
    "signal-weights": Training(
        description="each layer weighs by the share of its class means' distances that is not noise",
        callbacks=lambda: TrainingCallbacks(on_start=weigh_by_signal),
    ),
    "selected": Training(
        description="of the averaged weights after half of the steps, and every tenth from then on, those whose images "
        "are nearest to the release, by its noisy means alone",
        callbacks=lambda: TrainingCallbacks(on_step=Selection().look),
    ),
    "prior": Training(
        description="training begins with a generator trained on a release of public images (standard preset)",
        prior=True,
    ),
    "public": Training(
        description="public images that look like a class and together come near its mean features (kernel herding) "
        "take the place of half of its generated ones, as by `dpmepf-synth --public`",
        public=AS_THE_COMMAND,
    ),
    "public-margin": Training(
        description="likewise, but those that are told best from every other class", public=BY_MARGIN
    ),
    "public-of-all": Training(
        description="likewise, but herded among all public images, whatever each looks like", public=OF_ALL
    ),
    "no-average": Training(
        description="weights are not averaged", changes=lambda preset, channels: {"average_decay": 0.0}
    ),
    "wide": Training(
        description="twice the channels",
        changes=lambda preset, channels: {"base_channels": 2 * preset.base_channels},
    ),
    "deep": Training(
        description="two convolutions in each block", changes=lambda preset, channels: {"second_convolution": True}
    ),
    "large-batches": Training(
        description="four times the images in a step, through the encoder a quarter at a time (two passes)",
        changes=lambda preset, channels: {
            "batch_size": 4 * preset.batch_size,
            "micro_batch_size": preset.batch_size,
        },
    ),
}
