"""Settings are validated where they are made, and the presets are ordered as their names say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dpmepf.shared.errors import UsageError
from dpmepf.synthesize.settings import BFLOAT16_STEPS, PRESETS, SynthesisSettings, settings_for


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 1),
        ("micro_batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("warmup_share", 1.0),
        ("average_decay", 1.0),
        ("average_decay", -0.1),
        ("gradient_clip", 0.0),
        ("mean_memory", 1.0),
        ("metric_ridge", 0.0),
        ("base_channels", 0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field.replace("_", " ")):
        settings_for("quick", **{field: value})


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="quick, standard, best"):
        settings_for("fast")


def test_presets_draw_more_images_from_quick_to_best() -> None:
    names = ("quick", "standard", "best")
    for steps in ({}, BFLOAT16_STEPS):
        images = [steps.get(name, PRESETS[name].steps) * PRESETS[name].batch_size for name in names]
        assert images[0] < images[1] < images[2]
    assert all(name == settings.preset for name, settings in PRESETS.items())


def test_steps_that_cost_less_are_more_unless_their_number_is_given() -> None:
    for name in PRESETS:
        assert settings_for(name, bfloat16=True).steps >= settings_for(name).steps == PRESETS[name].steps
    assert settings_for("standard", bfloat16=True).steps == 2160
    assert settings_for("standard", bfloat16=True, steps=5).steps == 5


@pytest.mark.parametrize(
    ("preset", "relative_noise", "steps"),
    [
        ("best", 0.2, 6480),
        ("best", 0.4, 2160),
        ("best", math.inf, 2160),
        ("standard", math.inf, 2160),
        ("quick", math.inf, 700),
    ],
)
def test_where_noise_is_large_no_preset_takes_more_steps_than_standard(
    preset: str, relative_noise: float, steps: int
) -> None:
    assert settings_for(preset, bfloat16=True, relative_noise=relative_noise).steps == steps
    assert settings_for(preset, bfloat16=True, relative_noise=relative_noise, steps=9999).steps == 9999


@pytest.mark.parametrize("steps", [1, 2, 3, 100])
def test_the_learning_rate_rises_to_its_peak_and_falls_without_reaching_zero_early(steps: int) -> None:
    settings = settings_for("quick", steps=steps, learning_rate=1.0)
    rates = [settings.learning_rate_at(step) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == 1.0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0


def test_settings_survive_being_stored() -> None:
    settings = settings_for("best", metric_ridge=0.5, seed=7)
    assert SynthesisSettings.from_dict(settings.to_dict()) == settings


def test_settings_of_another_version_are_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="begin again with --force"):
        SynthesisSettings.from_dict({**settings_for("quick").to_dict(), "later_field": 1})
