"""`torch.compile` for the encoder that training goes through: on request, as it takes a minute and need not pay."""

from __future__ import annotations

import torch

from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import FeatureMap
from dpmepf.shared.precision import autocast


def compile_feature_map(feature_map: FeatureMap, *, images: int) -> None:
    """Compile `feature_map` where it is, and try it, gradients included, on so many blank images.

    Features change by rounding only. For another number of images PyTorch compiles once more.

    Raises:
        UsageError: this machine cannot compile it.
    """
    channels, side = feature_map.description.channels, feature_map.description.resolution
    device = feature_map.pixel_mean.device
    blank = torch.zeros(images, channels, side, side, device=device, requires_grad=True)
    feature_map.compile()
    try:
        with autocast(device):
            feature_map(blank).sum().backward()
    except Exception as error:  # of many types, by what the machine lacks
        raise UsageError(
            "torch.compile does not work here (it needs a C++ compiler, on a GPU Triton): leave --compile out"
        ) from error
