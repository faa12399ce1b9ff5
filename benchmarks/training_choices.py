"""What can be made of one release: generators that are trained or drawn from otherwise than by default.

Each differs from the default by one thing. All of it is post-processing of the same release, at no cost of privacy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from dpmepf.synthesize.settings import SynthesisSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a generator is trained and drawn from.

    Fields:
        description: how that differs from the default.
        changes: of the preset's settings and the images' channels: settings that differ.
        relabels: whether the class means may correct labels.
    """

    description: str
    changes: Callable[[SynthesisSettings, int], dict[str, Any]] = lambda preset, channels: {}
    relabels: bool = True


TRAININGS = {
    "variation": Training(
        description="images in colour are not changed at random as they are drawn, grey ones are",
        changes=lambda preset, channels: {"vary": channels == 1},
    ),
    "no-relabel": Training(description="labels are not corrected", relabels=False),
    "euclidean": Training(
        description="a generator's means are compared by Euclidean distance, not within classes",
        changes=lambda preset, channels: {"metric_ridge": 1e3},
    ),
    "mean-memory": Training(
        description="images are repelled from a moving average of generated means (0.9 of it is kept), as in GFMN",
        changes=lambda preset, channels: {"mean_memory": 0.9},
    ),
    "no-average": Training(
        description="weights are not averaged", changes=lambda preset, channels: {"average_decay": 0.0}
    ),
    "wide": Training(
        description="twice the channels",
        changes=lambda preset, channels: {"base_channels": 2 * preset.base_channels},
    ),
    "deep": Training(
        description="two convolutions in each block", changes=lambda preset, channels: {"second_convolution": True}
    ),
    "large-batches": Training(
        description="four times the images in a step, through the encoder a quarter at a time (two passes)",
        changes=lambda preset, channels: {
            "batch_size": 4 * preset.batch_size,
            "micro_batch_size": preset.batch_size,
        },
    ),
}
