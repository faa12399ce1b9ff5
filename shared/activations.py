"""The activations of an encoder that features are made of, and the network that computes them and no more.

torchvision's tracer names them, and does not look into all of its building blocks; what it cannot trace, and what is
neither a vector nor an image, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, symbolic_trace
from torch.nn import functional

from dpmepf.shared.encoders import BUILTIN, BuiltinEncoder
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map_description import SUPPORTED_RESOLUTIONS

CANNOT_TAKE = (RuntimeError, AssertionError)  # what encoders raise at images that are too small for them
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish)
OF_NO_IMAGE = ".cpb_mlp."  # position biases of Swin's second version: the same for all images
ACTIVATION_NODE = re.compile(r"(relu6?|gelu|silu|hardswish)(_\d+)?")  # functional, or a module used more than once


def activation_layers(model: nn.Module, encoder: str) -> tuple[str, ...]:
    """Names of the model's activation functions in the order of computation, without the built-in encoder's head."""
    modules = dict(model.named_modules())
    nodes = _node_names(model)
    layers = tuple(
        node
        for node in nodes
        if (_ends_in(modules.get(node), ACTIVATIONS) or ACTIVATION_NODE.fullmatch(node.rpartition(".")[2]))
        and not (encoder == BUILTIN and node.startswith("head"))
        and OF_NO_IMAGE not in node
    )
    if not layers:
        raise UsageError(f"the encoder {encoder} has no activation layers to take features from: choose another")
    return layers


def _ends_in(module: nn.Module | None, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is of these kinds, or the last of its parts is: torchvision's tracer does not look into some."""
    last = module[-1] if isinstance(module, nn.Sequential) and len(module) else module
    return isinstance(last, kinds)


def _node_names(model: nn.Module) -> list[str]:
    """Names of what the model computes in evaluation mode, in order."""
    if isinstance(model, BuiltinEncoder):
        return [str(node.target) for node in symbolic_trace(model).graph.nodes if node.op == "call_module"]
    from torchvision.models.feature_extraction import get_graph_node_names

    return cast(list[str], get_graph_node_names(model, suppress_diff_warning=True)[1])


def with_positions(model: nn.Module, layers: tuple[str, ...], *, encoder: str, resolution: int) -> tuple[str, ...]:
    """Those of `layers` whose activation is an image, N×C×H×W or N×H×W×C."""
    with torch.no_grad():
        try:
            found = _activations(traced(model, layers), resolution, resolution)
        except CANNOT_TAKE as error:
            raise UsageError(too_small(encoder, resolution)) from error
    spatial = tuple(layer for layer in layers if found[layer].ndim == 4)
    if not spatial:
        raise UsageError(f"no activation of the encoder {encoder} is an image: choose another --encoder or --features")
    return spatial


def _activations(extractor: GraphModule, height: int, width: int) -> dict[str, Tensor]:
    """Of one black image. A GraphModule that is called, not asked for `forward`, prints a traceback when it fails."""
    return cast(dict[str, Tensor], extractor.forward(torch.zeros(1, 3, height, width)))


def too_small(encoder: str, resolution: int) -> str:
    larger = "a larger --resolution or " if resolution < max(SUPPORTED_RESOLUTIONS) else ""
    advice = f"choose {larger}another --encoder"
    return f"the encoder {encoder} cannot take {resolution}-pixel images: {advice}"


def traced(encoder: nn.Module, layers: tuple[str, ...]) -> GraphModule:
    """The encoder up to the last of `layers`, which returns a dictionary of their activations.

    torchvision's tracer knows every encoder, but importing it takes as long as importing torch; the built-in encoder's
    own modules are named alike by both.
    """
    if isinstance(encoder, BuiltinEncoder):
        graph = symbolic_trace(encoder).graph
        nodes = {str(node.target): node for node in reversed(graph.nodes) if node.op == "call_module"}
        if nodes.keys() >= set(layers):
            next(node for node in graph.nodes if node.op == "output").args = (
                {layer: nodes[layer] for layer in layers},
            )
            graph.eliminate_dead_code()
            traced = GraphModule(encoder, graph)
            traced.delete_all_unused_submodules()
            return traced
    from torchvision.models.feature_extraction import create_feature_extractor

    return cast(GraphModule, create_feature_extractor(encoder, return_nodes=list(layers)))


@torch.no_grad()
def put_channels_first(extractor: GraphModule, *, encoder: str, resolution: int) -> None:
    """Turn the activations that are N×H×W×C, as most of a ConvNeXt, into N×C×H×W.

    What an axis is shows when images get wider.

    Raises: UsageError when the encoder cannot take images of that size, or has activations of another kind.
    """
    try:
        square, wide = (_activations(extractor, resolution, width) for width in (resolution, 2 * resolution))
    except CANNOT_TAKE as error:
        raise UsageError(too_small(encoder, resolution)) from error
    output = next(node for node in extractor.graph.nodes if node.op == "output")
    activations = dict(cast(dict[str, Node], output.args[0]))
    for layer, node in list(activations.items()):
        shape = square[layer].shape
        widened = [axis for axis, size in enumerate(shape) if wide[layer].shape[axis] != size]
        if len(shape) == 4 and widened == [2]:
            with extractor.graph.inserting_after(node):
                activations[layer] = extractor.graph.call_method("permute", (node, 0, 3, 1, 2))
        elif not (len(shape) in (2, 4) and (widened == [3] or (not widened and shape[2:].numel() == 1))):
            raise UsageError(
                f"the activation {layer} of the encoder {encoder} is neither a vector nor an image: choose another"
            )
    output.args = (activations,)
    extractor.recompile()


def ends_in_relu(graph: Graph, modules: Mapping[str, nn.Module]) -> bool:
    """Whether every activation that the graph returns is the output of a ReLU."""
    outputs = cast(dict[str, Node], next(node for node in graph.nodes if node.op == "output").args[0])
    return all(
        _ends_in(modules.get(str(node.target)), (nn.ReLU, nn.ReLU6)) or node.target in (torch.relu, functional.relu)
        for node in outputs.values()
    )
