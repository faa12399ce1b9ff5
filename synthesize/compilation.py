"""`torch.compile` for the encoder that training goes through: on request, as it takes minutes and need not pay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import FeatureMap
from dpmepf.shared.precision import autocast


def compiled_feature_map(feature_map: FeatureMap, *, images: int) -> Callable[[Tensor], Tensor]:
    """Return `feature_map` compiled, after trying it, gradients included, on so many blank images.

    Its features are those of `feature_map` up to rounding. For another number of images, or without gradients, PyTorch
    compiles once more.

    Raises:
        UsageError: this machine cannot compile it.
    """
    channels, side = feature_map.description.channels, feature_map.description.resolution
    blank = torch.zeros(images, channels, side, side, device=feature_map.pixel_mean.device, requires_grad=True)

    def forward(pixels: Tensor) -> Tensor:
        # One layout, as another would be compiled anew.
        features: Tensor = compiled(pixels.contiguous(memory_format=torch.channels_last))
        return features

    try:
        compiled = torch.compile(feature_map)
        with autocast(blank.device):
            forward(blank).sum().backward()
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"there is too little memory for {images:,} images at a time: choose a smaller --micro-batch-size"
        ) from error
    except Exception as error:  # of many types, by what the machine lacks
        raise UsageError(
            "torch.compile does not work here (it needs memory, and a C++ compiler or Triton): leave --compile out"
        ) from error
    return forward
