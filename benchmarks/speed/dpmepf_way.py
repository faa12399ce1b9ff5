"""A baseline: mean embeddings the way DP-MEPF's published code computes them, written here from a description of it.

Activations at full width (no pooling) as one float vector for each image, divided by its norm; per batch an einsum of
features with one-hot labels, added up in float32; at the end Gaussian noise in float32 from torch's generator, scaled
for a sensitivity of 2. None of their code is in here. It is quicker to write than ours and promises less: sums in
floating point are not exact, and neither is such noise.
"""

from __future__ import annotations

import torch
from encoders_at_hand import activations
from torch import Tensor
from torch.nn import functional

from dpmepf.shared.feature_map import FeatureMap


def float_class_sums(feature_map: FeatureMap, images: Tensor, labels: Tensor, *, classes: int, batch: int) -> Tensor:
    """Σ φ of each class, float32 D×K; D is the number of all activations of an image."""
    sums: Tensor | float = 0.0
    for pixels, batch_labels in zip(images.split(batch), labels.split(batch), strict=True):
        features = torch.cat([found.flatten(1) for found in activations(feature_map, pixels).values()], dim=1)
        features = features / features.norm(dim=1, keepdim=True)
        one_hot = functional.one_hot(batch_labels, classes).float()
        sums = sums + torch.einsum("nd,nk->dk", features, one_hot)
    if not isinstance(sums, Tensor):
        raise ValueError("no image")
    return sums


def float_noise(sums: Tensor, *, noise_multiplier: float) -> Tensor:
    """`sums` with float Gaussian noise."""
    return sums + torch.randn_like(sums) * (2 * noise_multiplier)
