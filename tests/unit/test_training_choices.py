"""The choices of training of `make bench-choices`: each differs from the default by one thing, and does that thing."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import release_choices
import torch
import training_choices
from feature_choices import Form
from public_choices import AS_THE_COMMAND, BY_MARGIN, OF_ALL, public_choice
from synthesis_stand_ins import RandomFeatureMap, Spots, release_of_squares, small_settings, squares
from torch import Tensor
from training_choices import TRAININGS, distance_to, signal_weights

from dpmepf.shared.feature_map import Segment
from dpmepf.synthesize import training
from dpmepf.synthesize.labelling import MeanDiscriminant
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.settings import PRESETS, SynthesisSettings
from dpmepf.synthesize.training import GeneratorTraining, TrainingCallbacks, train_generator


@pytest.fixture(autouse=True)
def recalibrate_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RECALIBRATION_IMAGES", 20)


@pytest.mark.parametrize("choice", TRAININGS)
def test_a_choice_differs_from_the_default_by_one_thing(choice: str) -> None:
    of_choice = TRAININGS[choice]
    for preset in PRESETS:
        options = argparse.Namespace(preset=preset, steps=None)
        ours, default = (release_choices.settings_of(name, 3, options, 1) for name in (choice, "default"))
        assert (ours.seed, ours.steps) == (3, default.steps)
        differing = {field for field, value in ours.to_dict().items() if value != default.to_dict()[field]}
        if differing == {"batch_size", "micro_batch_size"}:
            differing = {"images a step"}
        if not of_choice.relabels:
            differing -= {"probe"}  # which is there for labels alone
        done = [
            *differing,
            not of_choice.relabels,
            of_choice.prior,
            of_choice.public,
            of_choice.callbacks is not TrainingCallbacks,
        ]
        assert len([one for one in done if one]) == 1


def test_a_layer_that_is_all_noise_weighs_nothing() -> None:
    random = np.random.default_rng(0)
    segments = (Segment("a", 1, 0, 4000, channels=4), Segment("b", 1, 4000, 8000, channels=4))
    means = 0.1 * random.standard_normal((10, 8000))
    means[:, :4000] += 0.1 * random.standard_normal((10, 4000))
    weights = signal_weights(segments, torch.from_numpy(means.astype(np.float32)), 0.01)
    assert weights.mean() == pytest.approx(1)
    assert len(weights[:4000].unique()) == 1
    assert float(weights[4000:].max()) < 0.1 * float(weights[0])
    assert torch.equal(signal_weights(segments, torch.zeros(10, 8000) + torch.eye(10, 8000), 1.0), torch.ones(8000))


def test_weights_are_those_of_the_gradient() -> None:
    features_of = RandomFeatureMap()
    begun = GeneratorTraining(release_of_squares(features_of, noise_std=0.5), features_of, small_settings())  # type: ignore[arg-type]
    plain = begun.objective.metric
    TRAININGS["signal-weights"].callbacks().on_start(begun)
    weighted = begun.objective.metric
    vectors = torch.randn(5, features_of.dimension, generator=torch.Generator().manual_seed(0))
    for metric in (plain, weighted):
        metric.learn(metric.second_moments(vectors), vectors[:1], 5)  # type: ignore[union-attr]
    weights = signal_weights(features_of.segments, begun.targets.means, float(begun.targets.noise_variance.mean()))
    assert len(weights.unique()) == 2
    torch.testing.assert_close(weighted.apply(vectors), plain.apply(vectors) * weights)  # type: ignore[union-attr]


def test_the_distance_counts_neither_the_number_of_images_nor_their_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 images of 3,000 features vary by 150 about the mean, which is 4 away."""
    monkeypatch.setattr(training_choices, "IMAGES", 20 * 25)
    spots = Spots(torch.zeros(25, 3000), torch.ones(25))
    released = torch.zeros(25, 3000)
    released[:, 0] = 2.0
    assert distance_to(released, spots, lambda images: images) == pytest.approx(4.0, abs=2.5)  # type: ignore[arg-type]


def test_the_weights_that_are_kept_are_those_nearest_to_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth of six looks finds the least distance: the result is the average of that step."""
    distances = iter([5.0, 4.0, 3.0, 1.0, 2.0, 6.0])
    monkeypatch.setattr(training_choices, "distance_to", lambda *_: next(distances))
    features_of, averages = RandomFeatureMap(), {}
    callbacks = TRAININGS["selected"].callbacks()

    def look(begun: GeneratorTraining) -> None:
        averages[begun.step] = {n: p.clone() for n, p in begun.averaged_generator().named_parameters()}
        callbacks.on_step(begun)

    found = train_generator(
        release_of_squares(features_of),  # type: ignore[arg-type]
        features_of,
        small_settings(steps=20),
        callbacks=TrainingCallbacks(on_step=look),
    ).generator
    assert next(distances, None) is None
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, averages[16][name])


def test_a_run_with_a_prior_begins_with_a_generator_of_public_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(*_: object, **changes: object) -> SynthesisSettings:
        return dataclasses.replace(small_settings(steps=2), **{k: v for k, v in changes.items() if k == "seed"})

    monkeypatch.setattr(release_choices, "settings_for", settings)
    x = (squares(3, 20) * 255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "public.npz", x=x, y=np.repeat(np.arange(3), 20), classes=np.array(["a", "b", "c"]))
    prior = release_choices.public_prior(tmp_path / "public.npz", Form(32, 3), "cpu")
    assert (prior.configuration.resolution, prior.configuration.channels) == (32, 3)
    given: list[Tensor] = []
    monkeypatch.setattr(training, "begin_with", lambda generator, prior, *_, **__: given.append(prior))
    monkeypatch.setattr(release_choices, "learn_discriminant", stop)
    options = argparse.Namespace(data=tmp_path / "public.npz", public=tmp_path / "public.npz", keep=None)
    options.__dict__.update(preset="quick", steps=None, images=45, delta=1e-5)
    for choice in ("prior", "selected"):
        with pytest.raises(StopIteration):
            release_choices.one_run(release_choices.planned(choice, 9.0, 0, options), options, tmp_path, tmp_path)
    assert len(given) == 1


@pytest.mark.parametrize("choice", [AS_THE_COMMAND, BY_MARGIN, OF_ALL])
def test_each_choice_of_public_images_takes_as_many_and_what_it_says(choice: str, tmp_path: Path) -> None:
    features_of = RandomFeatureMap()
    images = squares(3, 60)
    np.savez(tmp_path / "public.npz", x=(255 * images).byte()[:, 0].numpy())
    means = features_of(images).view(3, 60, -1).mean(dim=1)
    metric = WithinClassMetric(features_of.segments, ridge=1.0, noise_variance=0.0)
    metric.learn(metric.second_moments(features_of(images)), means, 60)
    discriminant = MeanDiscriminant(means, metric, lambda bytes_: features_of(bytes_ / 255))
    (chosen,) = public_choice(choice, tmp_path / "public.npz", discriminant, [20, 20, 20], Form(28, 1))
    assert np.bincount(chosen.classes).tolist() == [10, 10, 10]
    (without,) = public_choice(choice, tmp_path / "public.npz", discriminant, [20, 0, 20], Form(28, 1))
    assert (np.bincount(without.classes).tolist(), without.places.dtype) == ([10, 0, 10], np.int64)
    assert len(set(chosen.places)) == 30
    assert (chosen.places // 60 == chosen.classes).all()  # images of another class would not bring the mean nearer
    _, margins, _ = discriminant.judge((255 * images).byte())
    best = torch.cat([60 * c + of_class.topk(10).indices for c, of_class in enumerate(margins.view(3, 60))])
    assert (set(chosen.places.tolist()) == set(best.tolist())) == (choice == BY_MARGIN)
    features = features_of(images)
    found = torch.stack([features[chosen.places[chosen.classes == c]].mean(dim=0) for c in range(3)])
    distance = float((found - means).square().sum())
    of_best = float((features[best].view(3, 10, -1).mean(dim=1) - means).square().sum())
    assert distance == pytest.approx(of_best) if choice == BY_MARGIN else distance < 0.1 * of_best
    assert public_choice("", tmp_path / "missing.npz", discriminant, [20, 20, 20], Form(28, 1)) == []


def stop(*_: object, **__: object) -> None:
    raise StopIteration
