"""A generator that begins with another's weights: what all classes share, and of each class what is nearest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from synthesis_stand_ins import RandomFeatureMap, Spots, release_of_squares, small_settings
from torch import Tensor

from dpmepf.shared.errors import UsageError
from dpmepf.synthesize import training
from dpmepf.synthesize.generator import (
    Generator,
    GeneratorConfiguration,
    GeneratorError,
    build_generator,
    save_generator,
)
from dpmepf.synthesize.prior import begin_with, load_prior, nearest_classes, require_fit
from dpmepf.synthesize.training import GeneratorTraining, train_generator

FORM = GeneratorConfiguration(
    class_count=5, resolution=28, channels=1, base_channels=8, second_convolution=False, latent_dimension=8
)

LARGER = dataclasses.replace(FORM, channels=3, second_convolution=True, latent_dimension=14, varied=True)


@pytest.fixture(autouse=True)
def recalibrate_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RECALIBRATION_IMAGES", 20)


def nearest(spots: Spots, means: Tensor) -> list[int]:
    return nearest_classes(spots, means, lambda features: features, seed=0).tolist()  # type: ignore[arg-type]


def test_each_class_finds_the_one_whose_images_have_its_mean() -> None:
    centres = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([4, 4, 0, 6])
    assert nearest(Spots(centres, torch.full((7,), 0.1)), centres[order] + 0.1) == order.tolist()


def test_a_class_that_varies_much_is_as_near_as_one_that_does_not() -> None:
    """200 images of 3,000 features vary by 3,000/200 = 15 about the mean: more than the other class is away."""
    centres = torch.zeros(25, 3000)
    centres[0, 0] = 3.0
    centres[2:, 1] = 100.0
    spread = torch.zeros(25)
    spread[1] = 1.0
    assert nearest(Spots(centres, spread), torch.zeros(1, 3000)) == [1]


@pytest.mark.parametrize("form", [FORM, LARGER], ids=["grey", "varied"])
def test_weights_of_a_class_are_those_of_the_nearest_and_all_others_the_priors(form: GeneratorConfiguration) -> None:
    """Statistics of batch norm included: images are the same."""
    prior, features_of = build_generator(form, seed=1, device="cpu").eval(), RandomFeatureMap(form.channels)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in prior.state_dict().items():
            if tensor.is_floating_point():
                change = torch.randn(tensor.shape, generator=random)
                tensor += 0.2 * change.abs() if "running" in name else 0.5 * change
    chosen = torch.tensor([3, 0, 3])
    means = torch.stack([features_of(drawn(prior, 200, int(place), seed=7)).mean(dim=0) for place in chosen])
    ours = build_generator(dataclasses.replace(form, class_count=3), seed=0, device="cpu").eval()
    begin_with(ours, prior, means, features_of, seed=5)
    for place, of_prior in enumerate(chosen.tolist()):
        torch.testing.assert_close(drawn(ours, 9, place, seed=0), drawn(prior, 9, of_prior, seed=0))


@torch.no_grad()
def drawn(generator: Generator, count: int, place: int, *, seed: int) -> Tensor:
    latents = torch.randn(
        count, generator.configuration.latent_dimension, generator=torch.Generator().manual_seed(seed)
    )
    return generator(latents, torch.full((count,), place))


def test_training_begins_with_the_prior_and_its_average_too() -> None:
    features_of = RandomFeatureMap()
    release, settings = release_of_squares(features_of, noise_std=0.2), small_settings()
    prior = train_generator(release, features_of, small_settings(steps=40, learning_rate=1e-2)).generator
    begun = GeneratorTraining(release, features_of, settings, prior=prior)  # type: ignore[arg-type]
    expected = build_generator(begun.configuration, seed=9, device="cpu")
    begin_with(expected, prior, begun.targets.means, features_of, seed=settings.seed)
    for generator in (begun.generator, begun.averaged_generator()):
        for name, parameter in expected.named_parameters():
            assert torch.equal(generator.get_parameter(name), parameter)
    begun.run_step()
    fresh = GeneratorTraining(release, features_of, settings)  # type: ignore[arg-type]
    fresh.run_step()
    assert begun.losses[0] < 0.5 * fresh.losses[0]


def test_a_prior_of_another_form_is_refused_and_what_differs_named() -> None:
    prior = build_generator(FORM, seed=0, device="cpu")
    require_fit(prior, dataclasses.replace(FORM, class_count=2))
    for field, value in {"resolution": 32, "channels": 3, "base_channels": 16, "second_convolution": True}.items():
        with pytest.raises(UsageError, match=f"its generator has {field} .*, but that of this run has {value}"):
            require_fit(prior, dataclasses.replace(FORM, **{field: value}))
    with pytest.raises(UsageError, match="its generator has varied False"):
        ours = build_generator(dataclasses.replace(FORM, latent_dimension=8, varied=True), seed=0, device="cpu")
        begin_with(ours, prior, torch.zeros(5, 64), RandomFeatureMap(), seed=0)


def test_a_folder_without_a_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="lacks generator"):
        load_prior(tmp_path, device="cpu")
    save_generator(tmp_path, build_generator(FORM, seed=0, device="cpu"), classes=tuple("abcde"))
    with pytest.raises(GeneratorError, match="lacks generator"):
        load_prior(tmp_path / "generator.safetensors", device="cpu")
    first = load_prior(tmp_path, device="cpu").origin
    assert first["releases"] is None
    save_generator(tmp_path, build_generator(FORM, seed=1, device="cpu"), classes=tuple("abcde"))
    assert load_prior(tmp_path, device="cpu").origin["sha256"] != first["sha256"]


def test_what_a_prior_learned_from_is_told_with_what_its_own_prior_did(tmp_path: Path) -> None:
    save_generator(tmp_path, build_generator(FORM, seed=0, device="cpu"), classes=tuple("abcde"))
    releases = [{"release_id": name, "dataset_name": "x", "epsilon": 2.0, "delta": 1e-5} for name in "ab"]
    record: dict[str, Any] = {"artifact": {"releases": releases[:1]}, "prior": {"releases": releases[1:]}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert load_prior(tmp_path, device="cpu").origin["releases"] == releases
    (tmp_path / "run.json").write_text(json.dumps({**record, "prior": None}))
    assert load_prior(tmp_path, device="cpu").origin["releases"] == releases[:1]
    for unknown in ({**record, "prior": {"releases": None}}, {"artifact": {"releases": [{}]}, "prior": None}, [], 3):
        (tmp_path / "run.json").write_text(json.dumps(unknown))
        assert load_prior(tmp_path, device="cpu").origin["releases"] is None
