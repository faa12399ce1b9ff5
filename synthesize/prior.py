"""A prior: another generator that training begins with, instead of with random weights.

Trained by the same objective on a release of public images, it has learned what pictures look like, whatever they show.
The parameters that all classes share are taken as they are. Those of a class are taken from the class of the other
generator whose images' mean features are nearest to the released mean.

Only the release and the other generator enter: post-processing of both. What the other one learned from counts, too,
for what is drawn: its releases are named in the record and the report.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpmepf.shared.errors import UsageError
from dpmepf.shared.precision import autocast
from dpmepf.synthesize.feature_function import FeatureFunction
from dpmepf.synthesize.generator import WEIGHTS_FILE, Generator, GeneratorConfiguration, load_generator
from dpmepf.synthesize.output_folder import RUN_FILE

IMAGES, FEWEST_OF_CLASS = 5_000, 16
BATCH = 200
_OF_RELEASE = {"release_id": str, "dataset_name": str, "epsilon": float, "delta": float}


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Another generator.

    Fields:
        generator: ready to draw.
        origin: `sha256` of the file of its weights, in hexadecimal, and `releases`, what it learned from: a list of
            release_id, dataset_name, epsilon and delta, those of its own prior included; None: unknown.
    """

    generator: Generator
    origin: dict[str, Any]


def load_prior(folder: Path, *, device: str | torch.device) -> Prior:
    """Read the generator in a folder that `dpmepf-synth` wrote.

    Raises: GeneratorError: it is missing or damaged.
    """
    generator, _ = load_generator(folder, device=device)
    sha256 = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    return Prior(generator=generator, origin={"sha256": sha256, "releases": _releases(folder)})


def _releases(folder: Path) -> list[dict[str, Any]] | None:
    """What the record in `folder` says that its generator learned from; None where it does not say all."""
    try:
        record = json.loads((folder / RUN_FILE).read_text("utf-8"))
        earlier = record["prior"]["releases"] if record["prior"] else []
        releases = record["artifact"]["releases"] + earlier
        return [{name: kind(one[name]) for name, kind in _OF_RELEASE.items()} for one in releases]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def require_fit(prior: Generator, configuration: GeneratorConfiguration) -> None:
    """Raise UsageError, naming what differs, unless the generator differs from `configuration` by its classes alone."""
    theirs = prior.configuration
    for one in fields(configuration):
        found, needed = getattr(theirs, one.name), getattr(configuration, one.name)
        if one.name != "class_count" and found != needed:
            raise UsageError(
                f"--prior: its generator has {one.name} {found}, but that of this run has {needed}: make one from "
                "public images of the same resolution and channels, with the same options"
                + (", or give --vary or --no-vary as for it" if one.name == "varied" else "")
            )


@torch.no_grad()
def begin_with(
    generator: Generator, prior: Generator, means: Tensor, features_of: FeatureFunction, *, seed: int
) -> None:
    """Give `generator` the weights of the prior.

    Args:
        generator: on the prior's device.
        prior: in evaluation mode.
        means: K×D, of the classes of `generator`, that it is to be trained towards.
        features_of: the feature map, N×C×R×R -> N×D.
        seed: of the images that the prior draws.

    Raises: UsageError: the two differ by more than their classes.
    """
    require_fit(prior, generator.configuration)
    chosen = nearest_classes(prior, means, features_of, seed=seed)
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
