"""What can be made of one release: generators that are trained and drawn from otherwise than by default.

Each differs from the default by one thing. All of it is post-processing of the same release, at no cost of privacy.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a generator is trained and drawn from.

    Fields:
        description: how that differs from the default.
        settings: of `dpmepf.synthesize.settings.SynthesisSettings`, that differ.
        factors: settings that are a multiple of the preset's.
        relabels: whether the class means may correct labels.
    """

    description: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    factors: dict[str, int] = dataclasses.field(default_factory=dict)
    relabels: bool = True


TRAININGS = {
    "vary": Training(
        description="images are changed at random as they are drawn, grey ones too", settings={"vary": True}
    ),
    "no-vary": Training(
        description="images are not changed at random, those in colour neither", settings={"vary": False}
    ),
    "no-relabel": Training(description="labels are not corrected", relabels=False),
    "euclidean": Training(
        description="means are compared by Euclidean distance, not within classes", settings={"metric_ridge": 1e3}
    ),
    "mean-memory": Training(
        description="images are repelled from a moving average of generated means (0.9 of it is kept), as in GFMN",
        settings={"mean_memory": 0.9},
    ),
    "no-average": Training(description="weights are not averaged", settings={"average_decay": 0.0}),
    "wide": Training(description="twice the channels", factors={"base_channels": 2}),
    "deep": Training(description="two convolutions in each block", settings={"second_convolution": True}),
    "large-batches": Training(
        description="four times the images in a step, through the encoder a quarter at a time (two passes)",
        factors={"batch_size": 4},
        settings={"micro_batch_size": 100},
    ),
}
