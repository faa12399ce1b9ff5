"""The baseline DP-MERF: class means of random Fourier features of the pixels, in place of perceptual features.

Source: Harder, Adamczewski, Park, DP-MERF: Differentially Private Mean Embeddings with Random Features for Practical
Privacy-Preserving Data Generation, AISTATS 2021. Gaussian kernel k(x, y) = exp(−‖x − y‖² / 2l²), of which

    φ(x) = sqrt(2/D) (cos ω_1·x, …, cos ω_{D/2}·x, sin ω_1·x, …, sin ω_{D/2}·x),   ω_i ~ N(0, I/l²),

is an unbiased estimate (Rahimi and Recht 2007), of norm exactly 1, with coordinates of both signs: replacing one record
moves a sum by up to 2, as it does with whitened perceptual features, and by √2 with those that are never negative.

All else is ours and the same as for perceptual features: exact integer sums, one discrete Gaussian release with class
sizes, generator, optimiser, number of steps and of images. So the difference between the two rows is that of the
features and of what needs good ones: the metric is Euclidean, as in DP-MERF, no label is corrected, and images in
colour are not changed at random as they are drawn.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import torch
from baseline_set import draw_set, release_and_train
from torch import Tensor, nn

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.feature_map import Segment
from dpmepf.shared.feature_map_description import FeatureMapDescription
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.schema import infer_schema
from dpmepf.synthesize.settings import SynthesisSettings

DIMENSION = 10_000  # D, the default of the authors' code
SQUARED_BANDWIDTH_PER_VALUE = 105 / 784
"""l² divided by the number of pixel values: the authors' code has l² = 105 for MNIST, whose images have 784 values.

DPImageBench keeps 105 for CIFAR-10 too; in proportion to its 3,072 values it is 411, about the mean squared distance of
two photographs, which is what 105 is of two digits. It is fixed here: nothing is tuned on private images.
"""


class RandomFourierFeatures(nn.Module):
    """φ for images of one form. The frequencies are public: they depend on `seed` alone.

    Attributes: as `dpmepf.shared.feature_map.FeatureMap`. There is one segment with a single channel, so that the
        within-class metric is a number: Euclidean.
    """

    frequencies: Tensor

    def __init__(self, *, resolution: int, channels: int, seed: int, dimension: int = DIMENSION) -> None:
        super().__init__()
        values = channels * resolution**2
        random = torch.Generator().manual_seed(seed)
        frequencies = torch.randn(values, dimension // 2, generator=random) / math.sqrt(squared_bandwidth(values))
        self.register_buffer("frequencies", frequencies)
        self.dimension = 2 * (dimension // 2)
        self.segments = (Segment("pixels", 1, 0, self.dimension, channels=1),)
        self.non_negative = False
        self.description = FeatureMapDescription(
            preset="dp-merf",
            encoder="random_fourier_features",
            weights_sha256=hashlib.sha256(frequencies.numpy().tobytes()).hexdigest(),
            layers=("pixels",),
            pooling=(1,),
            normalisation="joint",
            moments=(1,),
            layer_weights=(1.0,),
            resolution=resolution,
            channels=channels,
            pixel_mean=(0.0, 0.0, 0.0),
            pixel_std=(1.0, 1.0, 1.0),
        )

    def forward(self, images: Tensor) -> Tensor:
        """uint8 in 0..255 or float in [0, 1], N×C×R×R, to float32 N×D of norm 1."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        with torch.autocast(images.device.type, enabled=False):  # a phase needs more digits than bfloat16 has
            phases = pixels.flatten(1) @ self.frequencies
        return torch.cat([phases.cos(), phases.sin()], dim=1) * math.sqrt(2 / self.dimension)


def squared_bandwidth(values: int) -> float:
    """l² for images of so many pixel values."""
    return SQUARED_BANDWIDTH_PER_VALUE * values


def write_dp_merf_set(
    source: ImageSource,
    folder: Path,
    settings: SynthesisSettings,
    *,
    epsilon: float,
    delta: float,
    relation: NeighbouringRelation,
    dimension: int = DIMENSION,
    device: str | torch.device = "cpu",
) -> tuple[Path, Artifact]:
    """Release, train and draw once; return the file of the synthetic set, in `folder`, and the release."""
    schema = infer_schema(source)
    feature_map = RandomFourierFeatures(
        resolution=schema.resolution, channels=schema.channels, seed=settings.seed, dimension=dimension
    ).to(device)
    release, generator = release_and_train(
        source,
        replace(settings, probe=False, vary=False),  # a probe is for labels that are corrected, and more noise
        schema=schema,
        feature_map=feature_map,
        epsilon=epsilon,
        delta=delta,
        relation=relation,
        device=str(device),
    )
    return draw_set(folder, release, generator, seed=settings.seed), release
