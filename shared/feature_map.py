"""The feature map φ: image -> perceptual features of norm at most 1; identical for custodian and modeller.

Built from a description that travels in the artifact. Chosen activations of a public encoder are average-pooled to at
most p×p positions (p of each layer), flattened, normalised and joined with public weights; optionally with their second
moments, or whitened first by what is known of public images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx import GraphModule, Node
from torch.fx.experimental.optimization import fuse
from torch.nn import functional

from dpmepf.shared.activations import (
    CANNOT_TAKE,
    activation_layers,
    ends_in_relu,
    put_channels_first,
    too_small,
    traced,
    with_positions,
)
from dpmepf.shared.encoders import BUILTIN, PIXEL_MEAN, PIXEL_STD, BuiltinEncoder, load_encoder
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map_description import SUPPORTED_RESOLUTIONS, FeatureMapDescription, FeatureMapError
from dpmepf.shared.whitening import Whitening

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DEFAULT = "default"
POOLING = 4
WHITENED_POOLING = 2
UNPOOLED = 512  # the most positions that a description may name


class Preset(NamedTuple):
    """A feature map but for encoder and images; fields as in `FeatureMapDescription`, but one for all layers.

    description: what is taken of the encoder's activations, for a user.
    spatial: only activations that have positions, not those of a classifier's fully connected layers.
    """

    normalisation: str
    description: str
    moments: tuple[int, ...] = (1,)
    pooling: int = POOLING
    spatial: bool = False


PRESETS = {
    DEFAULT: Preset(
        "whitened",
        "averages at 2×2 positions, whitened (as per-layer where the weights come without whitening)",
        pooling=WHITENED_POOLING,
    ),
    "per-layer": Preset("per-layer", "averages at 4×4 positions, each layer normalised by itself"),
    "two-moments": Preset("per-layer", "the same, and of the squares", moments=(1, 2)),
    "joint": Preset("joint", "averages at 4×4 positions, all layers normalised as one"),
    # Harder et al. (2023), of vgg19: all 16 of its convolutional layers, 303,104 activations of a 32-pixel image
    "dp-mepf": Preset(
        "joint",
        "as in the DP-MEPF paper, whose encoder is vgg19",
        moments=(1, 2),
        pooling=UNPOOLED,
        spatial=True,
    ),
}
SHORTEST = 1e-12  # a shorter vector is divided by this instead of its norm


class Segment(NamedTuple):
    """One layer's moment in a feature vector: coordinates start..stop, channel by channel over all positions."""

    layer: str
    moment: int
    start: int
    stop: int
    channels: int

    @property
    def positions(self) -> int:
        return (self.stop - self.start) // self.channels

    def of(self, vectors: Tensor) -> Tensor:
        """The segment of N×D vectors as N×channels×positions."""
        return vectors[:, self.start : self.stop].unflatten(1, (self.channels, self.positions))


def describe_feature_map(
    *,
    preset: str = DEFAULT,
    encoder: str = BUILTIN,
    resolution: int,
    channels: int,
    weights_file: Path | None = None,
) -> FeatureMapDescription:
    """Describe a named preset on an encoder; every ReLU-like activation counts as a layer, if the preset takes it.

    Raises: UsageError for an unknown preset or encoder or an unsupported size; EncoderWeightsError without weights.
    """
    if preset not in PRESETS:
        raise UsageError(f"unknown feature map {preset!r}: choose one of {', '.join(PRESETS)}")
    if resolution not in SUPPORTED_RESOLUTIONS:
        choices = ", ".join(map(str, SUPPORTED_RESOLUTIONS))
        raise UsageError(f"--resolution {resolution} is not supported: choose one of {choices}")
    if channels not in (1, 3):
        raise UsageError(f"{channels} channels are not supported: choose 1 (grey) or 3 (RGB)")
    model, sha256 = load_encoder(encoder, weights_file)
    layers = activation_layers(model, encoder)
    chosen = PRESETS[preset]
    whitening = _whitening_by_layer(model)
    if chosen.normalisation == "whitened" and not whitening:
        preset, chosen = "per-layer", PRESETS["per-layer"]
    if chosen.spatial:
        layers = with_positions(model, layers, encoder=encoder, resolution=resolution)
    builtin = encoder == BUILTIN
    sizes = [1] * len(layers)
    if chosen.normalisation == "whitened":  # the same noise for a channel's average, whatever its layer
        sizes = [len(whitening[layer].shift) for layer in layers]
    return FeatureMapDescription(
        preset=preset,
        encoder=encoder,
        weights_sha256=sha256,
        layers=layers,
        pooling=(chosen.pooling,) * len(layers),
        normalisation=chosen.normalisation,
        moments=chosen.moments,
        layer_weights=tuple(size / sum(sizes) for size in sizes),
        resolution=resolution,
        channels=channels,
        pixel_mean=PIXEL_MEAN if builtin else IMAGENET_MEAN,
        pixel_std=PIXEL_STD if builtin else IMAGENET_STD,
    )


def _whitening_by_layer(model: nn.Module) -> dict[str, Whitening]:
    """The whitening of each activation that `activation_layers` names; empty if the weights come without."""
    if not isinstance(model, BuiltinEncoder) or not model.whitening:
        return {}
    return dict(zip(activation_layers(model, BUILTIN), cast(Iterable[Whitening], model.whitening), strict=True))


def build_feature_map(
    description: FeatureMapDescription, *, weights_file: Path | None = None, device: str | torch.device = "cpu"
) -> FeatureMap:
    """Load the described encoder and build the feature map.

    Raises: EncoderWeightsError when the weights at hand have another SHA-256 than the description names, or are
        missing; FeatureMapError when the encoder has no such layer; UsageError when it cannot take images of that size,
        or the layer is neither vectors nor images.
    """
    encoder, _ = load_encoder(description.encoder, weights_file, required_sha256=description.weights_sha256)
    return FeatureMap(description, encoder).to(device).to(memory_format=torch.channels_last)


class FeatureMap(nn.Module):
    """φ for one description. Always in evaluation mode: no example influences another's features.

    Attributes:
        description: what it was built from.
        dimension: D, the length of a feature vector.
        segments: the parts of the vector, in order.
        non_negative: True when every coordinate is non-negative by construction (ReLU activations, squares), which
            whitened ones are not.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, description: FeatureMapDescription, encoder: nn.Module) -> None:
        super().__init__()
        self.description = description
        try:
            extractor = traced(encoder.eval(), description.layers).eval()
        except ValueError as error:
            raise FeatureMapError(
                f"the encoder {description.encoder} lacks a layer that the feature map names"
            ) from error
        # Batch norm folded into the convolutions: training through the encoder then is a third faster.
        self.extractor = cast(GraphModule, fuse(extractor, inplace=True, no_trace=True).eval())
        if not isinstance(encoder, BuiltinEncoder):
            put_channels_first(self.extractor, encoder=description.encoder, resolution=description.resolution)
        if description.normalisation == "whitened":
            _round_to_bfloat16(self.extractor)
        self._pooling_extractor = _pooling_early(
            self.extractor, dict(zip(description.layers, description.pooling, strict=True)), description.moments
        )
        self.whitening = nn.ModuleList()
        if description.normalisation == "whitened":
            whitening = _whitening_by_layer(encoder)
            if not whitening:
                raise FeatureMapError(
                    f"the weights of {description.encoder} come without whitening, which the feature map needs: give "
                    "those that it was made with by --encoder-weights"
                )
            if not whitening.keys() >= set(description.layers):
                raise FeatureMapError(
                    f"the feature map names layers of {description.encoder} that are not whitened; these are: "
                    f"{', '.join(whitening)}"
                )
            self.whitening.extend(whitening[layer] for layer in description.layers)
        self.requires_grad_(False)
        self.register_buffer("pixel_mean", torch.tensor(description.pixel_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(description.pixel_std).view(1, 3, 1, 1), persistent=False)
        self.segments, self.non_negative = self._measure()
        self.dimension = self.segments[-1].stop
        super().train(False)

    def train(self, mode: bool = True) -> FeatureMap:
        """Stay in evaluation mode whatever `mode` says."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch.

        Args:
            images: N×C×R×R, uint8 in 0..255 or float in [0, 1], C and R as described.
        Returns: N×D float32; the norm of every row is at most 1 up to float32 rounding.
        """
        pooled = self._pooling_extractor(self._standardised(images))
        parts = [pooled[layer] for layer in self.description.layers]
        if self.whitening:
            parts = [(whiten(*part),) for whiten, part in zip(self.whitening, parts, strict=True)]
        vectors, scales = [], []
        for part, share in zip(parts, self.description.layer_weights, strict=True):
            vectors += [values.flatten(start_dim=1) for values in part]
            scales += [math.sqrt(share / len(part))] * len(part)
        if self.description.normalisation != "joint":
            joined: Tensor = _JoinedUnits.apply(scales, *vectors)
            return joined
        scaled = [vector.float() * scale for vector, scale in zip(vectors, scales, strict=True)]
        moments = len(self.description.moments)
        of_moments = [torch.cat(scaled[moment::moments], dim=1) for moment in range(moments)]
        lengths = [whole.norm(dim=1, keepdim=True).clamp_min(SHORTEST) * math.sqrt(moments) for whole in of_moments]
        return torch.cat([vector / lengths[index % moments] for index, vector in enumerate(scaled)], dim=1)

    def _standardised(self, images: Tensor) -> Tensor:
        """What the encoder takes: N×3×R×R, channels last."""
        channels, side = self.description.channels, self.description.resolution
        if images.shape[1:] != (channels, side, side):
            raise FeatureMapError(f"images of shape {tuple(images.shape[1:])} do not fit {channels}×{side}×{side}")
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        pixels = (pixels.expand(-1, 3, -1, -1) - self.pixel_mean) / self.pixel_std
        return pixels.contiguous(memory_format=torch.channels_last)

    def _activations(self, images: Tensor) -> list[tuple[str, Tensor]]:
        found = self.extractor(self._standardised(images))
        return [(layer, found[layer]) for layer in self.description.layers]

    def _measure(self) -> tuple[tuple[Segment, ...], bool]:
        """Sizes of all parts, from one blank image."""
        blank = torch.zeros(1, self.description.channels, self.description.resolution, self.description.resolution)
        try:
            with torch.no_grad():
                found = self._activations(blank)
        except CANNOT_TAKE as error:
            raise UsageError(too_small(self.description.encoder, self.description.resolution)) from error
        segments: list[Segment] = []
        start = 0
        for (layer, activation), positions in zip(found, self.description.pooling, strict=True):
            pooled = pool(activation, positions)[0]  # C x H x W, or C
            for moment in self.description.moments:
                segments.append(Segment(layer, moment, start, start + pooled.numel(), channels=len(pooled)))
                start += pooled.numel()
        of_relus = ends_in_relu(self.extractor.graph, dict(self.extractor.named_modules()))
        return tuple(segments), of_relus and not self.whitening


@torch.no_grad()
def _round_to_bfloat16(model: nn.Module) -> None:
    """Give the model the parameters that it has where it computes with bfloat16.

    Custodians compute features with float32, generators are trained through them with bfloat16. Rounding a parameter in
    one of the two only shifts the mean of a feature by the same for all images, and whitening makes much of small
    shifts: more, at a large ε, than the noise.
    """
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())


def _pooling_early(extractor: GraphModule, pooling: Mapping[str, int], moments: tuple[int, ...]) -> GraphModule:
    """The same encoder, with each activation pooled where it is computed: while it is in the cache, and then forgotten.

    All activations of a batch together take more memory than a cache has, several times the pooled ones. For the same
    reason a ReLU may take the place of the convolution's output that nothing else reads.
    """
    graph = copy.deepcopy(extractor.graph)
    modules = dict(extractor.named_modules())
    for node in graph.nodes:
        if isinstance(modules.get(str(node.target)), nn.ReLU) and _is_read_once(node.args[0], modules):
            node.op, node.target, node.kwargs = "call_function", _rectified, {}
    output = next(node for node in graph.nodes if node.op == "output")
    pooled: dict[str, Node] = {}
    for layer, activation in cast(dict[str, Node], output.args[0]).items():
        with graph.inserting_after(activation):
            pooled[layer] = graph.call_function(_pooled_moments, (activation, pooling[layer], moments))
    output.args = (pooled,)
    return GraphModule(extractor, graph)


def _is_read_once(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is a convolution, whose gradient does not need its output, and only the one node takes that."""
    return isinstance(modules.get(str(node.target)), nn.Conv2d) and len(node.users) == 1


def _rectified(output: Tensor) -> Tensor:
    """ReLU, in the place of its argument where that spares memory; with gradients it is the slower of the two."""
    return functional.relu(output, inplace=not torch.is_grad_enabled())


def _pooled_moments(activation: Tensor, positions: int, moments: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(pool(activation if moment == 1 else activation.square(), positions) for moment in moments)


def pool(activation: Tensor, positions: int) -> Tensor:
    """Average-pool N×C×H×W to at most positions×positions; vectors (N×C) pass unchanged."""
    if activation.ndim == 2:
        return activation
    height, width = activation.shape[-2:]
    if height <= positions and width <= positions:
        return activation
    if height % positions == 0 and width % positions == 0:
        return _BlockMean.apply(activation, height // positions, width // positions)
    return functional.adaptive_avg_pool2d(activation, (min(height, positions), min(width, positions)))


class _BlockMean(torch.autograd.Function):
    """Mean over blocks of rows×columns, with a gradient that is one enlargement, or of one block a view.

    PyTorch's own gradient of average pooling leaves and re-enters the channels-last layout, which took a quarter of
    a training step on a CPU.
    """

    @staticmethod
    def forward(context: Any, activation: Tensor, rows: int, columns: int) -> Tensor:
        context.block = rows, columns
        return functional.avg_pool2d(activation, (rows, columns))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = context.block
        shared = gradient / (rows * columns)
        if shared.shape[-2:] == (1, 1):
            return shared.expand(-1, -1, rows, columns), None, None
        shared = shared.contiguous(memory_format=torch.channels_last)
        return functional.interpolate(shared, scale_factor=(rows, columns), mode="nearest"), None, None


class _JoinedUnits(torch.autograd.Function):
    """Vectors of each image, each at norm `scale`, one after another: float32 N×D from several N×D_i.

    `functional.normalize` and `cat` give the same bits. Their gradient passes over all features eight times, one after
    another too large for the cache, which took an eighth of a training step on a CPU; this one does twice.
    """

    @staticmethod
    def forward(context: Any, scales: list[float], *vectors: Tensor) -> Tensor:
        sizes = [vector.shape[1] for vector in vectors]
        joined = vectors[0].new_empty(len(vectors[0]), sum(sizes), dtype=torch.float32)
        norms = []
        for part, vector, scale in zip(joined.split(sizes, dim=1), vectors, scales, strict=True):
            exact = vector.float()
            norms.append(exact.norm(dim=1, keepdim=True).clamp_min_(SHORTEST))
            torch.div(exact, norms[-1], out=part).mul_(scale)
        context.scales, context.sizes, context.dtypes = scales, sizes, [vector.dtype for vector in vectors]
        context.save_for_backward(joined, *norms)
        return joined

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        joined, *norms = context.saved_tensors
        parts = zip(joined.split(context.sizes, dim=1), gradient.split(context.sizes, dim=1), norms, strict=True)
        gradients: list[Tensor | None] = [None]
        for (unit, part, norm), scale, dtype in zip(parts, context.scales, context.dtypes, strict=True):
            with torch.autocast(part.device.type, enabled=False):  # a training step's bfloat16 is too coarse for it
                along = torch.linalg.vecdot(unit, part)[:, None] / (scale * norm)  # what would only change the norm
            along.masked_fill_(norm <= SHORTEST, 0)
            gradients.append(torch.addcmul(part * (scale / norm), unit, along, value=-1).to(dtype))
        return tuple(gradients)
