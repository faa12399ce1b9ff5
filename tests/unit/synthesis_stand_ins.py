"""Small stand-ins for the tests of the modeller's side: a feature map of random convolutions and a release of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpmepf.shared.feature_map import Segment
from dpmepf.synthesize.generator import GeneratorConfiguration
from dpmepf.synthesize.settings import SynthesisSettings


class RandomFeatureMap(nn.Module):
    """Two random convolutions with ReLU, each pooled to 2×2 and normalised on its own: norm 1, non-negative."""

    def __init__(self, channels: int = 1, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(channels, width, 3, stride=2, padding=1)
            self.second = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.requires_grad_(False)
        self.segments = (Segment("first", 1, 0, 4 * width, width), Segment("second", 1, 4 * width, 8 * width, width))
        self.dimension = 8 * width
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.first(images - 0.5))
        y = functional.relu(self.second(x))
        parts = [functional.normalize(functional.adaptive_avg_pool2d(z, 2).flatten(1), dim=1) for z in (x, y)]
        return torch.cat(parts, dim=1) / 2**0.5


class Spots(nn.Module):
    """Draws class c as a point at `centres[c]` with Gaussian `spread[c]`, which are its features."""

    def __init__(self, centres: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.centres, self.spread = centres, spread
        self.configuration = GeneratorConfiguration(
            class_count=len(centres),
            resolution=28,
            channels=1,
            base_channels=8,
            second_convolution=False,
            latent_dimension=centres.shape[1],
        )

    def forward(self, latents: Tensor, classes: Tensor) -> Tensor:
        return self.centres[classes] + self.spread[classes, None] * latents


@dataclass
class StandInRelease:
    """What training reads of an artifact."""

    sums: np.ndarray
    noisy_counts: np.ndarray
    noise_std_features: float
    noise_std_counts: float
    classes: tuple[str, ...]
    resolution: int = 28
    channels: int = 1
    feature_map: Any = field(init=False)

    def __post_init__(self) -> None:
        self.feature_map = SimpleNamespace(
            resolution=self.resolution, channels=self.channels, normalisation="per-layer", weights_sha256=""
        )

    def feature_sums(self) -> np.ndarray:
        return self.sums

    def counts(self) -> np.ndarray:
        return self.noisy_counts


def squares(class_count: int, per_class: int, *, resolution: int = 28, channels: int = 1) -> Tensor:
    """Images, class by class, of a bright square whose place tells the class and whose brightness varies."""
    random = torch.Generator().manual_seed(1)
    images = torch.zeros(class_count, per_class, channels, resolution, resolution)
    for label in range(class_count):
        row, column = divmod(label % 9, 3)
        place = (..., slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        images[label][place] = 0.6 + 0.4 * torch.rand(per_class, 1, 1, 1, generator=random)
    return images.flatten(0, 1)


def release_of_squares(
    feature_map: RandomFeatureMap, *, class_count: int = 3, per_class: int = 50, noise_std: float = 0.0
) -> StandInRelease:
    """The class sums of `squares`, with noise."""
    random = np.random.default_rng(2)
    images = squares(class_count, per_class, channels=feature_map.channels)
    features = feature_map(images).view(class_count, per_class, -1).sum(dim=1).double().numpy()
    return StandInRelease(
        sums=features + noise_std * random.standard_normal(features.shape),
        noisy_counts=per_class + 10 * noise_std * random.standard_normal(class_count),
        noise_std_features=noise_std,
        noise_std_counts=10 * noise_std,
        classes=tuple(str(label) for label in range(class_count)),
        channels=feature_map.channels,
    )


def small_settings(**overrides: Any) -> SynthesisSettings:
    """Settings of a training run that takes about a second."""
    values = {
        "steps": 6,
        "batch_size": 12,
        "learning_rate": 2e-3,
        "average_decay": 0.9,
        "base_channels": 8,
        "second_convolution": False,
        "latent_dimension": 8,
    }
    return SynthesisSettings(**{**values, **overrides})
