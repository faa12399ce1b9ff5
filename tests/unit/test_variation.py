"""Random changes do what their names say, within sizes that the objective can teach, and change nothing at zero."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpmepf.synthesize.variation import CHANGES, Variation

HALF = float(torch.special.ndtri(torch.tensor(0.75)))  # the latent number at which a change is half its size
FURTHEST = 40.0  # a latent number at which it is all of it


def variation(*, classes: int = 1, **sizes: float) -> Variation:
    """Sizes as given, and next to none of the others."""
    module = Variation(classes)
    shares = torch.tensor([sizes.get(name, 0.0) / change.most for name, change in CHANGES.items()])
    with torch.no_grad():
        module.sizes.weight[:] = shares.logit(eps=1e-6)
    return module


def latents(**numbers: float) -> Tensor:
    return torch.tensor([[numbers.get(name, 0.0) for name in CHANGES]])


def changed(module: Variation, logits: Tensor, **numbers: float) -> Tensor:
    with torch.no_grad():
        return module(logits, latents(**numbers), torch.tensor([0]))


def logits_of(channels: int = 3, side: int = 8, count: int = 1) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 128)])
def test_latents_of_zero_leave_images_as_they_are(channels: int, side: int) -> None:
    logits = logits_of(channels, side)
    torch.testing.assert_close(changed(Variation(1), logits), logits.sigmoid(), rtol=0, atol=1e-4)


def test_half_of_a_half_turn_is_a_quarter_turn() -> None:
    logits = logits_of()
    turned = changed(variation(turn=math.pi * 0.999999), logits, turn=HALF)
    torch.testing.assert_close(turned, logits.sigmoid().rot90(1, (2, 3)), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "axis"), [("columns", 3), ("rows", 2)])
def test_images_move_by_half_widths_and_reflect_at_their_borders(name: str, axis: int) -> None:
    logits = logits_of(side=8)
    moved = changed(variation(**{name: 0.5}), logits, **{name: FURTHEST})  # 2 of 8 pixels
    images = logits.sigmoid()
    expected = torch.cat([images.narrow(axis, 2, 6), images.narrow(axis, 6, 2).flip(axis)], dim=axis)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-3)


def test_zoom_is_the_logarithm_of_the_scale() -> None:
    places = (torch.arange(32) * 2 + 1) / 32 - 1
    images = (0.5 + 0.2 * places)[None, None, None, :].expand(1, 1, 32, 32)
    enlarged = changed(variation(zoom=math.log(2)), images.logit(), zoom=-FURTHEST)
    torch.testing.assert_close(enlarged, 0.5 + 0.5 * (images - 0.5), rtol=0, atol=1e-3)


def test_contrast_and_brightness_act_on_logits() -> None:
    logits = logits_of()
    mean = logits.mean()
    more = changed(variation(contrast=math.log(1.5)), logits, contrast=FURTHEST)
    torch.testing.assert_close(more, ((logits - mean) * 1.5 + mean).sigmoid(), rtol=0, atol=1e-3)
    brighter = changed(variation(brightness=2.0), logits, brightness=-HALF)
    torch.testing.assert_close(brighter, (logits - 1).sigmoid(), rtol=0, atol=1e-3)


def test_every_class_has_sizes_of_its_own_and_changes_are_uniform_within_them() -> None:
    module = Variation(2)
    with torch.no_grad():
        module.sizes.weight[:] = variation(brightness=0.0).sizes.weight
        module.sizes.weight[1, list(CHANGES).index("brightness")] = 0.0  # half of the most: 2
        classes = torch.tensor([0, 1]).repeat_interleave(4000)
        random = torch.randn(8000, len(CHANGES), generator=torch.Generator().manual_seed(1))
        shifts = module(torch.zeros(8000, 1, 2, 2), random, classes).logit().mean(dim=(1, 2, 3))
    still, moved = shifts.split(4000)
    assert float(still.abs().max()) < 1e-3
    assert 1.99 < float(moved.abs().max()) <= 2.001
    quarters = torch.histc(moved, bins=4, min=-2, max=2)
    assert float((quarters - 1000).abs().max()) < 150  # more than five standard deviations


@pytest.mark.parametrize("true_size", [0.05, 0.6])
def test_sizes_grow_or_shrink_to_what_the_features_are_met_by(true_size: float) -> None:
    """The mean of a feature that varies with brightness tells by how much images vary in it."""
    classes = torch.zeros(2000, dtype=torch.int64)
    logits = torch.zeros(2000, 1, 2, 2)
    random = torch.Generator().manual_seed(2)

    def feature(module: Variation) -> Tensor:
        images = module(logits, torch.randn(2000, len(CHANGES), generator=random), classes)
        return (images.mean(dim=(1, 2, 3)) - 0.5).square().mean().sqrt()

    with torch.no_grad():
        target = feature(variation(brightness=true_size))
    module = Variation(1)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(150):
        loss = (feature(module) - target).square()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    learned = module.sizes_of(classes[:1])[0, list(CHANGES).index("brightness")].item()
    assert learned == pytest.approx(true_size, rel=0.1)


def test_images_stay_between_0_and_1_however_far_they_are_changed() -> None:
    module = variation(**{name: 0.99 * change.most for name, change in CHANGES.items()})
    random = torch.Generator().manual_seed(4)
    numbers = 3 * torch.randn(200, len(CHANGES), generator=random)
    with torch.no_grad():
        images = module(logits_of(count=200) * 20, numbers, torch.zeros(200, dtype=torch.int64))
    assert images.isfinite().all()
    assert float(images.min()) >= 0 and float(images.max()) <= 1 + 1e-6


def test_mean_sizes_are_those_of_all_classes() -> None:
    module = Variation(2)
    with torch.no_grad():
        module.sizes.weight[1] = 50.0  # as large as they may become
    expected = {name: (change.first + change.most) / 2 for name, change in CHANGES.items()}
    assert module.mean_sizes() == pytest.approx(expected)
