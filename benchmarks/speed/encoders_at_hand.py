"""Feature maps to measure with: the built-in one, and torchvision's with random weights, which need no download."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchvision.models import get_model

from dpmepf.shared import feature_map as feature_maps
from dpmepf.shared.activations import activation_layers
from dpmepf.shared.encoders import BUILTIN
from dpmepf.shared.feature_map import FeatureMap, build_feature_map, describe_feature_map
from dpmepf.shared.feature_map_description import FeatureMapDescription


def feature_map_of(encoder: str, side: int, channels: int = 3, *, device: str = "cpu") -> FeatureMap:
    """φ on `device`, with the packaged weights or, of a torchvision encoder, random ones: as fast as any."""
    if encoder == BUILTIN:
        return build_feature_map(describe_feature_map(resolution=side, channels=channels), device=device)
    model = get_model(encoder, weights=None).float().eval().requires_grad_(False)
    layers = activation_layers(model, encoder)
    chosen = feature_maps.PRESETS["per-layer"]
    description = FeatureMapDescription(
        preset="per-layer",
        encoder=encoder,
        weights_sha256="0" * 64,
        layers=layers,
        pooling=(chosen.pooling,) * len(layers),
        normalisation=chosen.normalisation,
        moments=chosen.moments,
        layer_weights=(1 / len(layers),) * len(layers),
        resolution=side,
        channels=channels,
        pixel_mean=feature_maps.IMAGENET_MEAN,
        pixel_std=feature_maps.IMAGENET_STD,
    )
    return FeatureMap(description, model).to(device).to(memory_format=torch.channels_last)


def activations(feature_map: FeatureMap, images: Tensor) -> dict[str, Tensor]:
    """All activations of uint8 N×C×R×R images that features are made of, batch norm folded."""
    pixels = (images.float() / 255).expand(-1, 3, -1, -1)
    found: dict[str, Tensor] = feature_map.extractor(pixels.contiguous(memory_format=torch.channels_last))
    return found


def bare_encoder(feature_map: FeatureMap) -> Callable[[Tensor], Tensor]:
    """The encoder and nothing else: of uint8 N×C×R×R images to the last activation, whose others are let go of."""
    extractor = feature_map.extractor
    graph = copy.deepcopy(extractor.graph)
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (list(cast(dict[str, Node], output.args[0]).values())[-1],)
    encoder = GraphModule(extractor, graph)

    def forward(images: Tensor) -> Tensor:
        pixels = (images.float() / 255).expand(-1, 3, -1, -1)
        last: Tensor = encoder(pixels.contiguous(memory_format=torch.channels_last))
        return last

    return forward
