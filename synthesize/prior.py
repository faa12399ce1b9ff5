"""A prior: another generator that training begins with, instead of with random weights.

Trained by the same objective on a release of public images, it has learned what pictures look like, whatever they show.
The parameters that all classes share are taken as they are. Those of a class are taken from the class of the other
generator whose images' mean features are nearest to the released mean.

Only the release and the other generator enter: post-processing of both. If that one learned from private images, too,
what their release spent counts for what is drawn here (the report says so).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dpmepf.shared.errors import UsageError
from dpmepf.shared.precision import autocast
from dpmepf.synthesize.generator import WEIGHTS_FILE, Generator, GeneratorConfiguration, load_generator

if TYPE_CHECKING:
    from dpmepf.synthesize.training import FeatureFunction

IMAGES, FEWEST_OF_CLASS = 5_000, 16
BATCH = 200


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Another generator. sha256: of the file of its weights, in hexadecimal."""

    generator: Generator
    sha256: str


def load_prior(folder: Path, *, device: str | torch.device) -> Prior:
    """Read the generator in a folder that `dpmepf-synth` wrote.

    Raises: GeneratorError: it is missing or damaged.
    """
    generator, _ = load_generator(folder, device=device)
    return Prior(generator=generator, sha256=hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest())


def require_fit(prior: Generator, configuration: GeneratorConfiguration) -> None:
    """Raise UsageError, naming what differs, unless the generator differs from `configuration` by its classes alone."""
    theirs = prior.configuration
    for one in fields(configuration):
        found, needed = getattr(theirs, one.name), getattr(configuration, one.name)
        if one.name != "class_count" and found != needed:
            raise UsageError(
                f"--prior: its generator has {one.name} {found}, but that of this run has {needed}: make one from "
                "public images of the same resolution and channels, with the same options"
            )


@torch.no_grad()
def begin_with(
    generator: Generator, prior: Generator, released_means: Tensor, features_of: FeatureFunction, *, seed: int
) -> None:
    """Give `generator` the weights of the prior.

    Args:
        generator: of the same form as the prior's, but for its classes; on the same device.
        released_means: K×D, of the classes of `generator`.
        features_of: the feature map, N×C×R×R -> N×D.
        seed: of the images that the prior draws.
    """
    chosen = nearest_classes(prior, released_means, features_of, seed=seed)
    weights = generator.state_dict()
    by_class = {f"{name}.weight" for name, module in generator.named_modules() if isinstance(module, nn.Embedding)}
    for name, found in prior.state_dict().items():
        weights[name] = found[chosen] if name in by_class else found
    generator.load_state_dict(weights)


def nearest_classes(generator: Generator, means: Tensor, features_of: FeatureFunction, *, seed: int) -> Tensor:
    """Of each of K×D mean features, the class of the generator's whose images' mean is nearest: int64 K."""
    class_count = generator.configuration.class_count
    per_class = max(FEWEST_OF_CLASS, IMAGES // class_count)
    random = torch.Generator().manual_seed(seed)
    classes = torch.arange(class_count).repeat_interleave(per_class)
    latents = torch.randn(len(classes), generator.configuration.latent_dimension, generator=random)
    sums = torch.zeros(class_count, means.shape[1], device=means.device)
    squares = torch.zeros(class_count, device=means.device)
    with autocast(means.device):
        for part, some in zip(latents.split(BATCH), classes.to(means.device).split(BATCH), strict=True):
            features = features_of(generator(part.to(means.device), some)).float()
            sums.index_add_(0, some, features)
            squares.index_add_(0, some, features.square().sum(dim=1))
    found = sums / per_class
    lengths = found.square().sum(dim=1)
    lengths -= (squares / per_class - lengths) / (per_class - 1)  # what chance adds to a mean's length
    return (lengths - 2 * means @ found.T).argmin(dim=1)
