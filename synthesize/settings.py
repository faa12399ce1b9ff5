"""How a generator is trained: every number in one validated record, and the presets in one table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dpmepf.shared.errors import UsageError

DEFAULT_PRESET = "standard"
LARGEST_SEED = 2**63 - 1
BFLOAT16_STEPS = {"standard": 2160, "best": 6480}
"""Steps of presets where the device computes with bfloat16 natively, which is what makes a step fast.

They are needed, too: with its rounding, 720 steps took MNIST at epsilon 1 to 95.8 to 96.5 % (5 runs), 2,160 to 96.8 %,
by the features of that time.
"""
MUCH_NOISE = 0.3
"""Noise in a class's mean, over what classes differ by (`ClassTargets.relative_noise`), of which many steps learn more
than they gain: `NOISY_STEPS` are then the most that a preset takes.

With 0.2 (CIFAR-10 at epsilon 1) three times the steps gained a point, with 0.4 (MNIST at epsilon 0.2) nothing, and with
0.75 (CIFAR-10 at epsilon 0.2) they lost one, by features with a little less noise than today's (RESULTS_HISTORY.md).
"""
NOISY_STEPS = 2160


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise UsageError(f"{name.replace('_', ' ')} is {value}, but has to be {allowed}")


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """Settings of one training run; data (artifact, device, folders) are arguments elsewhere.

    Fields:
        preset: the row of `PRESETS` that the other numbers started from.
        steps: number of optimiser steps.
        batch_size: generated images per step, at least 2 (the repulsion term needs two images of a class).
        micro_batch_size: images that pass the encoder at a time; None: the whole batch. The gradient is the same.
        learning_rate: peak learning rate of Adam.
        warmup_share: share of the steps over which the learning rate rises linearly; then it falls along a cosine.
        average_decay: decay per step of the moving average of the generator's weights, in [0, 1).
        gradient_clip: largest norm of the gradient of all parameters together.
        base_channels: channels of the generator at full resolution.
        second_convolution: whether each block also convolves after enlarging (two to three times the arithmetic).
        latent_dimension: length of the generator's random input; at least 7 where images are varied, six of which do
            that.
        vary: whether images are changed at random as they are drawn, by learned sizes; None: as
            `training.generator_configuration` says.
        mean_memory: share of the previous estimate in the moving average of each class's generated mean features
            that images are repelled from, in [0, 1); 0: only the batch itself.
        metric_ridge: how far the metric is from dividing each direction of the features by its variance within
            classes, as a share of the mean variance, above 0; the larger, the closer to Euclidean.
        probe: whether known noise is added to the released means, by which labels are judged (`synthesize.probe`).
        seed: of initial weights and latent vectors; everything here is post-processing, so a seed is harmless.
    """

    preset: str = DEFAULT_PRESET
    steps: int
    batch_size: int
    micro_batch_size: int | None = None
    learning_rate: float
    warmup_share: float = 0.05
    average_decay: float
    gradient_clip: float = 10.0
    base_channels: int
    second_convolution: bool
    latent_dimension: int = 64
    vary: bool | None = None
    mean_memory: float = 0.0
    metric_ridge: float = 0.3
    probe: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "base_channels", "latent_dimension"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        _require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            "micro_batch_size",
            self.micro_batch_size,
            "at least 1",
        )
        for name in ("learning_rate", "gradient_clip", "metric_ridge"):
            number = getattr(self, name)
            _require(math.isfinite(number) and number > 0, name, number, "above 0 and finite")
        for name in ("warmup_share", "average_decay", "mean_memory"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        _require(0 <= self.seed <= LARGEST_SEED, "seed", self.seed, f"0 to {LARGEST_SEED}")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step `step` (from 0): linear warm-up, then half a cosine down to 0."""
        warmup = math.ceil(self.warmup_share * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        share_done = (step - warmup) / max(self.steps - warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share_done, 1.0)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SynthesisSettings:
        values = {"probe": True} | values  # as it was before there was a choice
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise UsageError(
                f"stored settings differ in their fields from this version's ({sorted(set(values) ^ known)}): "
                "begin again with --force"
            )
        return cls(**values)


_STANDARD = SynthesisSettings(
    preset="standard",
    steps=720,
    batch_size=200,
    learning_rate=2e-2,
    average_decay=0.98,
    base_channels=32,
    second_convolution=False,
)

PRESETS: dict[str, SynthesisSettings] = {
    settings.preset: settings
    for settings in (
        # a look at what will come out, in a few minutes on two cores
        replace(_STANDARD, preset="quick", steps=700, batch_size=100, average_decay=0.95),
        _STANDARD,
        # three times as long
        replace(_STANDARD, preset="best", steps=2160),
    )
}


def settings_for(
    preset: str = DEFAULT_PRESET, *, bfloat16: bool = False, relative_noise: float = 0.0, **overrides: Any
) -> SynthesisSettings:
    """Return the settings of `preset` with the given fields replaced.

    Args:
        bfloat16: whether the device computes with it natively (`autocast_dtype`): see `BFLOAT16_STEPS`.
        relative_noise: of the class means (`ClassTargets.relative_noise`): see `MUCH_NOISE`.

    Raises:
        UsageError: unknown preset, or a value outside its range.
    """
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    steps = BFLOAT16_STEPS.get(preset, PRESETS[preset].steps) if bfloat16 else PRESETS[preset].steps
    if relative_noise > MUCH_NOISE:
        steps = min(steps, NOISY_STEPS)
    return replace(PRESETS[preset], **{"steps": steps} | overrides)
