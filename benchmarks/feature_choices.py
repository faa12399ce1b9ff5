"""What can be released: feature maps that differ by layers, pooling, moments, statistics and dimension.

Each is a feature map with features of norm at most 1, made of public things alone, so that all can be released by the
same code at the same ε. Those made of perceptual features use the built-in encoder; those that need more statistics of
public images take them from the images they are given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpmepf.shared.feature_map import DEFAULT, FeatureMap, Segment, build_feature_map, describe_feature_map
from dpmepf.shared.feature_map_description import FeatureMapDescription

SECOND_ORDER_DIRECTIONS = 64
RANDOM_FEATURES = 2_000
PROJECTED = 1_000
SCATTERING_SCALE = 2  # J: averages over 2^J pixels
SCATTERING_POSITIONS = 4
BATCH = 250
LAYERS = 8  # of the built-in encoder


@dataclasses.dataclass(frozen=True)
class Form:
    """Of the images: side in pixels, and 1 (grey) or 3 (RGB) channels."""

    resolution: int
    channels: int


class Derived(nn.Module):
    """Features of features: what a feature map of ours needs to be released, and trained towards, besides φ itself.

    Attributes: as `dpmepf.shared.feature_map.FeatureMap`. There is one segment, all of it channels, so that the
        within-class metric is that of the whole vector.
    """

    def __init__(self, name: str, form: Form, dimension: int, constants: Sequence[Tensor]) -> None:
        super().__init__()
        for index, constant in enumerate(constants):
            self.register_buffer(f"constant{index}", constant)
        digest = hashlib.sha256(b"".join(constant.numpy().tobytes() for constant in constants)).hexdigest()
        self.dimension = dimension
        self.segments: tuple[Segment, ...] = (Segment("all", 1, 0, dimension, channels=dimension),)
        self.non_negative = False
        self.description = FeatureMapDescription(
            preset="benchmark",
            encoder=name.replace("-", "_"),
            weights_sha256=digest,
            layers=("all",),
            pooling=(1,),
            normalisation="joint",
            moments=(1,),
            layer_weights=(1.0,),
            resolution=form.resolution,
            channels=form.channels,
            pixel_mean=(0.0, 0.0, 0.0),
            pixel_std=(1.0, 1.0, 1.0),
        )


class SecondOrder(Derived):
    """First and second moments of φ's principal components: the entries of uuᵀ, u = (a, z)/‖(a, z)‖, z = Pᵀ(φ − μ).

    Entries off the diagonal stand once, times √2: ‖uuᵀ‖ = ‖u‖² = 1. a² is the mean of ‖z‖² over the public images, so
    that the constant, the components and their products share the norm about equally.
    """

    def __init__(self, features: FeatureMap, form: Form, public: Tensor, directions: int) -> None:
        vectors = features_of(features, public)
        centre = vectors.mean(dim=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            axes = torch.pca_lowrank(vectors - centre, q=directions, center=False, niter=4)[2]
        constant = ((vectors - centre) @ axes).square().sum(dim=1).mean().sqrt()
        length = directions + 1
        super().__init__("second-order", form, length * (length + 1) // 2, (axes.contiguous(), centre, constant))
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            z = (self.features(images) - self.constant1) @ self.constant0
            u = functional.normalize(torch.cat([self.constant2.expand(len(z), 1), z], dim=1), dim=1)
            rows, columns = torch.triu_indices(u.shape[1], u.shape[1], device=u.device)
            weights = torch.where(rows == columns, 1.0, math.sqrt(2.0))
            return u[:, rows] * u[:, columns] * weights


class RandomFeatures(Derived):
    """Random Fourier features of φ: DP-MERF with perceptual features in place of pixels.

    The squared bandwidth is the mean squared distance of two public images' features, as the authors of DP-MERF chose
    theirs of digits'.
    """

    def __init__(self, features: FeatureMap, form: Form, public: Tensor, dimension: int) -> None:
        vectors = features_of(features, public)
        squared_bandwidth = 2 * (vectors.square().sum(dim=1).mean() - vectors.mean(dim=0).square().sum())
        random = torch.Generator().manual_seed(0)
        frequencies = torch.randn(features.dimension, dimension // 2, generator=random) / squared_bandwidth.sqrt()
        super().__init__("random-features", form, 2 * (dimension // 2), (frequencies,))
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            phases = self.features(images) @ self.constant0
        return torch.cat([phases.cos(), phases.sin()], dim=1) * math.sqrt(2 / self.dimension)


class RandomProjection(Derived):
    """φ in fewer dimensions by a random matrix (Johnson and Lindenstrauss 1984), then scaled to norm 1."""

    def __init__(self, features: FeatureMap, form: Form, dimension: int) -> None:
        random = torch.Generator().manual_seed(0)
        matrix = torch.randn(features.dimension, dimension, generator=random) / math.sqrt(dimension)
        super().__init__("random-projection", form, dimension, (matrix,))
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return functional.normalize(self.features(images) @ self.constant0, dim=1)


class Scattering(Derived):
    """Wavelet scattering of the pixels (Mallat 2012), by kymatio: features that no image was needed for.

    Orders 0, 1 and 2 share the norm equally; pooled to at most 4×4 positions, as activations are.
    """

    def __init__(self, form: Form) -> None:
        from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D  # kymatio.torch needs an old SciPy

        transform = ScatteringTorch2D(J=SCATTERING_SCALE, shape=(form.resolution, form.resolution))
        angles, scales = transform.L, transform.J
        sizes = (1, scales * angles, angles**2 * scales * (scales - 1) // 2)  # coefficients of each order
        positions = SCATTERING_POSITIONS**2
        ends = [form.channels * positions * sum(sizes[:order]) for order in range(4)]
        super().__init__("scattering", form, ends[-1], ())
        self.transform, self.sizes = transform, sizes
        self.segments = tuple(
            Segment(f"order {order}", 1, ends[order], ends[order + 1], channels=size * form.channels)
            for order, size in enumerate(sizes)
        )

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        with torch.autocast(images.device.type, enabled=False):
            found = self.transform(pixels.contiguous())  # N x C x coefficients x side x side
            pooled = functional.adaptive_avg_pool2d(found.flatten(0, 1), SCATTERING_POSITIONS).unflatten(
                0, found.shape[:2]
            )
            orders = [functional.normalize(part.flatten(1), dim=1) for part in pooled.split(self.sizes, dim=2)]
        return torch.cat(orders, dim=1) / math.sqrt(len(orders))


def features_of(features: nn.Module, images: Tensor) -> Tensor:
    """Features of uint8 images, without gradients."""
    with torch.inference_mode():
        vectors = torch.cat([features(batch) for batch in images.split(BATCH)])
    return vectors.clone()


def builtin(
    form: Form,
    *,
    layers: slice = slice(None),
    pooling: tuple[int, ...] | None = None,
    shares: Sequence[float] | None = None,
    **changes: Any,
) -> FeatureMap:
    """The default feature map of the built-in encoder, with changes.

    Args:
        layers: which of them.
        pooling: of each layer, before some are left out; None: the default.
        shares: of the layers in the squared norm, up to a factor; None: the default.
    """
    description = describe_feature_map(preset=DEFAULT, resolution=form.resolution, channels=form.channels)
    pooling = description.pooling if pooling is None else pooling
    weights = (description.layer_weights if shares is None else tuple(shares))[layers]
    return build_feature_map(
        dataclasses.replace(
            description,
            layers=description.layers[layers],
            pooling=pooling[layers],
            layer_weights=tuple(weight / sum(weights) for weight in weights),
            **changes,
        )
    )


EQUAL = (1.0,) * LAYERS
CHOICES: dict[str, tuple[str, Callable[[Form, Tensor], nn.Module]]] = {
    "default": (
        "all eight activations, whitened by public images; shares of the squared norm in proportion to channels; "
        "2×2 positions",
        lambda form, public: builtin(form),
    ),
    "1x1": ("averages over the whole image", lambda form, public: builtin(form, pooling=(1,) * LAYERS)),
    "4x4": ("4×4 positions", lambda form, public: builtin(form, pooling=(4,) * LAYERS)),
    "mixed": (
        "averages over the whole image of the first four layers, 2×2 positions of the others",
        lambda form, public: builtin(form, pooling=(1,) * 4 + (2,) * 4),
    ),
    "equal-shares": ("equal shares of the squared norm", lambda form, public: builtin(form, shares=EQUAL)),
    "early": ("the first four layers", lambda form, public: builtin(form, layers=slice(4))),
    "late": ("the last four layers", lambda form, public: builtin(form, layers=slice(4, None))),
    "unwhitened": ("not whitened", lambda form, public: builtin(form, normalisation="per-layer")),
    "two-moments": (
        "not whitened, activations and their squares",
        lambda form, public: builtin(form, normalisation="per-layer", moments=(1, 2)),
    ),
    "joint-two-moments": (
        "activations and their squares, each normalised all together, as in DP-MEPF; 4×4 positions",
        lambda form, public: builtin(form, pooling=(4,) * LAYERS, shares=EQUAL, normalisation="joint", moments=(1, 2)),
    ),
    "second-order": (
        f"all products of {SECOND_ORDER_DIRECTIONS} public principal components",
        lambda form, public: SecondOrder(builtin(form), form, public, SECOND_ORDER_DIRECTIONS),
    ),
    "random-features": (
        f"{RANDOM_FEATURES:,} random Fourier features of the last layer",
        lambda form, public: RandomFeatures(builtin(form, layers=slice(-1, None)), form, public, RANDOM_FEATURES),
    ),
    "random-projection": (
        f"in {PROJECTED:,} random directions",
        lambda form, public: RandomProjection(builtin(form), form, PROJECTED),
    ),
    "scattering": ("wavelet scattering, without public images", lambda form, public: Scattering(form)),
}
"""By name: how it differs from the default, and what makes it of the images' form and of public images
(uint8 N×3×32×32)."""
