"""The classifiers learn, treat every data set alike, and repeat exactly under one seed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from dpmepf.shared.errors import UsageError
from dpmepf.synthesize import classifiers
from dpmepf.synthesize.classifiers import (
    CLASSIFIERS,
    RECIPES,
    SmallCnn,
    Standardise,
    accuracy_of,
    augment,
    train_classifier,
)


def bars(count: int, *, channels: int = 1, resolution: int = 28, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images of three classes: a bright bar at the top, in the middle or at the bottom."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randint(0, 100, (count, channels, resolution, resolution), generator=generator)
    rows = torch.arange(resolution)
    third = rows * 3 // resolution  # R: which third of the image a row is in
    images[(labels[:, None] == third)[:, None, :, None].expand_as(images)] += 100
    return images.to(torch.uint8), labels


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_each_classifier_learns_from_one_set_and_recognises_another(name: str) -> None:
    # 60 images so that `most_passes` keeps it short
    classifier = train_classifier(name, *bars(60), class_count=3, seed=0)
    assert accuracy_of(classifier, *bars(100, seed=1)) >= 0.95


def test_a_classifier_of_shuffled_labels_guesses() -> None:
    images, labels = bars(60)
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(3))]
    classifier = train_classifier("logistic", images, shuffled, class_count=3, seed=0)
    assert accuracy_of(classifier, *bars(300, seed=1)) < 0.7


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_same_seed_gives_the_same_classifier_and_leaves_torch_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], steps=3))
    images, labels = bars(40)
    state = torch.random.get_rng_state()
    scores = []
    for seed in (0, 0, 1):
        torch.rand(seed + 1)  # whatever else the process draws must not matter
        scores.append(train_classifier(name, images, labels, class_count=3, seed=seed)(images))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    torch.random.set_rng_state(state)
    train_classifier(name, images, labels, class_count=3, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_cost_depends_on_steps_not_on_the_size_of_the_data() -> None:
    for recipe in RECIPES.values():
        assert recipe.steps_for(1_000_000) == recipe.steps_for(100_000) == recipe.steps
        assert recipe.steps_for(recipe.batch_size) == recipe.most_passes
        assert recipe.steps_for(10) == recipe.most_passes


def test_every_step_is_reported_as_it_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "logistic", dataclasses.replace(RECIPES["logistic"], steps=7))
    steps: list[int] = []
    images, labels = bars(40)
    train_classifier("logistic", images, labels, class_count=3, seed=0, on_step=lambda: steps.append(1))
    assert len(steps) == RECIPES["logistic"].steps_for(40) == 7


@pytest.mark.parametrize(("channels", "resolution"), [(1, 28), (3, 32), (1, 64), (3, 128)])
def test_the_cnn_takes_every_supported_size(channels: int, resolution: int) -> None:
    network = SmallCnn(channels=channels, resolution=resolution, class_count=5)
    assert network(torch.zeros(2, channels, resolution, resolution)).shape == (2, 5)


def test_the_answer_for_one_image_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "cnn", dataclasses.replace(RECIPES["cnn"], steps=3))
    images, labels = bars(40)
    classifier = train_classifier("cnn", images, labels, class_count=3, seed=0)
    torch.testing.assert_close(classifier(images)[:3], classifier(images[:3]), rtol=1e-4, atol=1e-4)


def test_accuracy_is_the_share_of_right_answers_over_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "TEST_BATCH", 3)

    class Brightness(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            bright = images.float().mean(dim=(1, 2, 3)) > 127
            return torch.stack([~bright, bright], dim=1).float()

    images = torch.zeros(7, 1, 4, 4, dtype=torch.uint8)
    images[2:] = 255
    assert accuracy_of(Brightness(), images, torch.tensor([0, 0, 1, 1, 1, 0, 0])) == 5 / 7


def test_standardised_training_pixels_have_mean_0_and_spread_1_and_a_flat_channel_stays_finite() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    images[:, 1] = 200
    standardised = Standardise(images)(images)
    assert standardised.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert standardised[:, ::2].std(dim=(0, 2, 3)) == pytest.approx([1, 1], abs=1e-4)
    assert standardised[:, 1].abs().max() == 0


def gradient_image(channels: int) -> Tensor:
    """64 copies of one image that grows to the right and downwards, without noise from `augment` of comparable size."""
    ramp = torch.arange(32.0)
    return (ramp[:, None] * 10 + ramp[None, :] * 100).expand(64, channels, 32, 32).clone()


def test_grey_images_are_never_mirrored_and_rgb_ones_half_of_the_time() -> None:
    for channels, expected in ((1, range(1)), (3, range(15, 50))):  # of 64 fair draws; outside: rate 1e-5, fixed seed
        changed = augment(gradient_image(channels), torch.Generator().manual_seed(0))
        visible = torch.where(changed.abs() < 1e-9, torch.nan, changed)
        slope = visible.diff(dim=3).nanmedian(dim=3).values.nanmedian(dim=2).values[:, 0]
        assert int((slope < 0).sum()) in expected


def test_augmentation_shifts_by_at_most_a_sixteenth_and_hides_at_most_a_quarter_squared() -> None:
    # Every pixel names its own place: 100·column + 10000·row, plus 1 so that none is 0.
    places = torch.arange(32.0)
    image = (places[:, None] * 10_000 + places[None, :] * 100 + 1).expand(64, 1, 32, 32)
    changed = augment(image, torch.Generator().manual_seed(0))
    hidden = changed == 0
    assert 0 < int(hidden.sum(dim=(1, 2, 3)).max()) <= 8 * 8
    inner = torch.zeros_like(hidden)
    inner[:, :, 4:-4, 4:-4] = True  # away from reflected borders
    difference = (changed - image)[inner & ~hidden]
    rows = (difference / 10_000).round()
    columns = ((difference - 10_000 * rows) / 100).round()
    assert rows.abs().max() == columns.abs().max() == 2
    noise = difference - 10_000 * rows - 100 * columns
    assert float(noise.std()) == pytest.approx(0.1, abs=0.02)
    assert changed.shape == image.shape


def test_an_unknown_classifier_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="logistic, mlp, cnn"):
        train_classifier("forest", *bars(10), class_count=3, seed=0)
