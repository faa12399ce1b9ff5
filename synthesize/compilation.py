"""`torch.compile` for the encoder that training goes through: on request, as it takes a minute and need not pay."""

from __future__ import annotations

from typing import cast

import torch

from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import FeatureMap
from dpmepf.shared.precision import autocast
from dpmepf.synthesize.training import FeatureFunction


def compiled_feature_map(feature_map: FeatureMap, *, images: int) -> FeatureFunction:
    """Return `feature_map` compiled, after trying it, gradients included, on so many blank images.

    Its features are those of `feature_map` up to rounding. For another number of images, or without gradients, PyTorch
    compiles once more.

    Raises:
        UsageError: this machine cannot compile it.
    """
    channels, side = feature_map.description.channels, feature_map.description.resolution
    device = feature_map.pixel_mean.device
    blank = torch.zeros(images, channels, side, side, device=device, requires_grad=True)
    try:
        compiled = torch.compile(feature_map)
        with autocast(device):
            compiled(blank).sum().backward()
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"there is too little memory for {images:,} images at a time: choose a smaller --micro-batch-size"
        ) from error
    except Exception as error:  # of many types, by what the machine lacks
        raise UsageError(
            "torch.compile does not work here (it needs a C++ compiler, on a GPU Triton): leave --compile out"
        ) from error
    return cast(FeatureFunction, compiled)
