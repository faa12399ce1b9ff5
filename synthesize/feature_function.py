"""What training, labels and priors need of a feature map, and a feature map that looks at a few images at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dpmepf.shared.feature_map import Segment


class FeatureFunction(Protocol):
    """N×C×R×R images -> N×D features, in segments; `dpmepf.shared.feature_map.FeatureMap` is one."""

    @property
    def segments(self) -> Sequence[Segment]: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class InParts:
    """The feature map `features_of`, which looks at `most` images at a time: for passes without gradients."""

    features_of: FeatureFunction
    most: int

    @property
    def segments(self) -> Sequence[Segment]:
        return self.features_of.segments

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.features_of(part) for part in images.split(self.most)])


def in_parts(features_of: FeatureFunction, most: int | None) -> FeatureFunction:
    """Return `features_of`, of at most so many images at a time if any number is named."""
    return features_of if most is None else InParts(features_of, most)
