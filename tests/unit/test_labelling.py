"""Images get the class of the nearest released mean, in the metric of the training."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import pytest
import torch
from synthesis_stand_ins import RandomFeatureMap, squares
from torch import Tensor, nn

from dpmepf.shared.feature_map import Segment
from dpmepf.synthesize import labelling
from dpmepf.synthesize.generator import Generator, GeneratorConfiguration
from dpmepf.synthesize.labelling import (
    IMAGES,
    MeanDiscriminant,
    learn_discriminant,
    means_to_learn_from,
    shrunken_means,
)
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.probe import probe_for
from dpmepf.synthesize.refining import LinearScores, Scores
from dpmepf.synthesize.sampling import LEFT_OUT, draw_images
from dpmepf.synthesize.targets import ClassTargets

CLASSES, PER_CLASS, CHANNELS = 3, 200, 5
SEGMENTS = (Segment("only", 1, 0, CHANNELS, channels=CHANNELS),)


def gaussian_classes() -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and means of classes that differ by 1 where the spread is 0.3, hidden beside a spread of 9."""
    random = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=random))[0]
    spread = torch.tensor([9.0, 0.3, 0.3, 1.0, 1.0])
    means = torch.eye(CHANNELS)[[3, 1, 2]] @ rotation.T
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    return means[labels] + (spread * torch.randn(len(labels), CHANNELS, generator=random)) @ rotation.T, labels, means


def identity(images: Tensor) -> Tensor:
    return images


def metric_of(features: Tensor) -> WithinClassMetric:
    metric = WithinClassMetric(SEGMENTS, ridge=1e-6, noise_variance=0.0)
    metric.learn(metric.second_moments(features), features.view(CLASSES, PER_CLASS, -1).mean(dim=1), PER_CLASS)
    return metric


def test_the_label_is_the_class_whose_mean_is_nearest_in_mahalanobis_distance() -> None:
    features, _, means = gaussian_classes()
    metric = metric_of(features)
    covariance = metric.covariances[0].double()
    deviations = features.double()[:, None] - means.double()
    distances = (deviations @ torch.linalg.inv(covariance) * deviations).sum(dim=2)  # N x K
    discriminant = MeanDiscriminant(means, metric, identity)
    assert (
        discriminant.scores(features).argmax(dim=1) == distances.argmin(dim=1)
    ).double().mean() > 0.99  # ties apart, in float32


def test_what_all_features_share_does_not_change_a_label() -> None:
    features, _, means = gaussian_classes()
    metric = metric_of(features)
    shift = torch.full((CHANNELS,), 3.0)
    scores = MeanDiscriminant(means, metric, identity).scores(features)
    shifted = MeanDiscriminant(means + shift, metric, identity).scores(features + shift)
    torch.testing.assert_close(scores, shifted, rtol=1e-3, atol=1e-3)


def test_the_metric_finds_classes_that_the_euclidean_distance_does_not() -> None:
    """Planted: without the metric the loud direction decides, and labels are little better than guesses."""
    features, truth, means = gaussian_classes()
    euclidean = WithinClassMetric(SEGMENTS, ridge=1.0, noise_variance=0.0)  # has learned nothing

    def accuracy(metric: WithinClassMetric) -> float:
        scores = MeanDiscriminant(means, metric, identity).scores(features)
        return float((scores.argmax(dim=1) == truth).double().mean())

    assert accuracy(metric_of(features)) > accuracy(euclidean) + 0.1


def test_the_temperature_recovers_how_certain_scores_are() -> None:
    """Classes drawn by softmax(scores): scores seven times too large need a temperature of seven."""
    random = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(20_000, CLASSES, generator=random)
    classes = torch.multinomial(scores.softmax(dim=1), 1, generator=random).squeeze(1)
    discriminant = MeanDiscriminant(torch.eye(CLASSES), WithinClassMetric((), ridge=1.0, noise_variance=0.0), identity)
    discriminant.learned = (LinearScores(torch.zeros(CLASSES), 7 * torch.eye(CLASSES), torch.zeros(CLASSES)),)
    discriminant.calibrate([(scores[:9_000], classes[:9_000]), (scores[9_000:], classes[9_000:])])
    assert discriminant.temperature == pytest.approx(7.0, rel=0.06)


def test_agreement_is_kept_the_improbable_is_corrected_and_the_doubtful_is_left_out() -> None:
    metric = WithinClassMetric((Segment("only", 1, 0, 3, channels=3),), ridge=1.0, noise_variance=0.0)
    discriminant = MeanDiscriminant(torch.eye(3), metric, identity)  # Euclidean; scores differ as coordinates do
    images = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.5, 1.0, -9.0]])
    assert discriminant(images, torch.tensor([0, 0, 0])).tolist() == [0, 1, LEFT_OUT]
    assert discriminant(images, torch.tensor([0, 1, 1])).tolist() == [0, 1, 1]


def test_a_rare_class_takes_from_a_frequent_one_only_what_is_more_probable_than_a_mistake() -> None:
    """Planted: without regard to sizes, 1 mistake in 200 images of the frequent class outnumbers the rare one's own."""
    metric = WithinClassMetric((Segment("only", 1, 0, 2, channels=2),), ridge=1.0, noise_variance=0.0)
    discriminant = MeanDiscriminant(torch.eye(2), metric, identity)  # Euclidean; scores differ as coordinates do
    images = torch.tensor([[0.0, 3.0], [0.0, 9.0], [3.0, 0.0]])
    asked = torch.tensor([0, 0, 1])
    assert discriminant(images, asked).tolist() == [1, 1, 0]
    discriminant.log_sizes = torch.tensor([9_900.0, 100.0]).log()  # the rare one has to win by 99 to 1, and e**3 is 20
    assert discriminant(images, asked).tolist() == [0, 1, 0]


class ConfusedGenerator(nn.Module):
    """Draws a square of the class it is asked for or, with probability `confused`, of the next class."""

    def __init__(self, confused: float = 0.2) -> None:
        super().__init__()
        self.threshold = NormalDist().inv_cdf(confused)
        self.configuration = GeneratorConfiguration(
            class_count=CLASSES,
            resolution=28,
            channels=1,
            base_channels=1,
            second_convolution=False,
            latent_dimension=2,
        )
        self.place = nn.Parameter(torch.zeros(()))
        self.patterns = (squares(CLASSES, 1) > 0).float()

    def forward(self, latents: Tensor, classes: Tensor) -> Tensor:
        drawn = torch.where(latents[:, 0] < self.threshold, (classes + 1) % CLASSES, classes)
        brightness = 0.6 + 0.4 * torch.sigmoid(latents[:, 1])
        return self.patterns[drawn] * brightness[:, None, None, None]


class PixelFeatureMap(RandomFeatureMap):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.float() / 255)


def square_class(images: Tensor) -> Tensor:
    patterns = (squares(CLASSES, 1) > 0).float().flatten(1)
    return (images.float().flatten(1) @ patterns.T).argmax(dim=1)


def released_squares(feature_map: RandomFeatureMap, noise_std: float) -> ClassTargets:
    means = feature_map(squares(CLASSES, 50) * 255).view(CLASSES, 50, -1).mean(dim=1)
    return ClassTargets(
        means=means + noise_std * torch.randn(means.shape, generator=torch.Generator().manual_seed(3)),
        counts=np.full(CLASSES, 50.0),
        noise_variance=np.full(CLASSES, noise_std**2),
    )


def learned(
    generator: Generator, targets: ClassTargets, feature_map: RandomFeatureMap, **settings: Any
) -> MeanDiscriminant:
    probe = probe_for(targets, seed=9)
    return learn_discriminant(generator, targets, feature_map, probe=probe, ridge=0.3, seed=5, **settings)


@pytest.mark.parametrize("noise_std", [0.0, 0.01])
def test_a_generator_that_mixes_classes_up_gets_its_images_labelled_right(noise_std: float) -> None:
    feature_map, generator = PixelFeatureMap(), cast(Generator, ConfusedGenerator())
    label = learned(generator, released_squares(feature_map, noise_std), feature_map)
    right = {"asked": 0, "labelled": 0}
    for how, rule in (("asked", None), ("labelled", label)):
        for images, class_index in draw_images(generator, (300, 300, 300), seed=0, label=rule):
            right[how] += int((square_class(torch.from_numpy(images)) == class_index).sum())
    assert right["asked"] < 0.85 * 900
    assert right["labelled"] > 0.99 * 900


def test_a_rare_class_keeps_its_own_images_beside_a_frequent_one_that_some_are_mistaken_in() -> None:
    """Scores with noise in them, as a judge has that errs now and then."""
    feature_map, generator = PixelFeatureMap(), cast(Generator, ConfusedGenerator(confused=1e-9))
    sizes = (4_000, 4_000, 40)
    wrong = {}
    for regarded in (None, sizes):
        label = learned(generator, released_squares(feature_map, 0.0), feature_map, sizes=regarded)
        label.temperature = 1.0
        random = torch.Generator().manual_seed(0)

        def erring(features: Tensor, asked: Tensor, random: torch.Generator = random) -> Tensor:
            errs = torch.rand(len(asked), generator=random) < 0.02  # then the last class seems e³ times as probable
            return torch.where(errs[:, None], 3.0 * torch.eye(CLASSES)[-1], 8.0 * torch.eye(CLASSES)[asked])

        label.scores_of_generated = erring  # type: ignore[method-assign]
        drawn = draw_images(generator, sizes, seed=0, label=label)
        rare = torch.cat([torch.from_numpy(images) for images, class_index in drawn if class_index == CLASSES - 1])
        wrong[regarded] = int((square_class(rare) != CLASSES - 1).sum())
    assert wrong[None] > 20
    assert wrong[sizes] == 0


@pytest.mark.parametrize("error_std", [1e-4, 1e-2, 1.0])
def test_shrunken_means_are_nearer_to_the_truth_than_either_estimate(error_std: float) -> None:
    random = np.random.default_rng(0)
    noise_std = np.array([0.01, 0.01, 0.02, 5.0])  # the last class has next to no records
    truth = random.random((4, 2000))
    generated = truth + error_std * random.standard_normal(truth.shape)
    released = truth + noise_std[:, None] * random.standard_normal(truth.shape)
    targets = ClassTargets(means=torch.from_numpy(released).float(), counts=np.ones(4), noise_variance=noise_std**2)
    means, error_variance = shrunken_means(targets, torch.from_numpy(generated).float())
    errors = ((means.numpy() - truth) ** 2).mean(axis=1)
    best = 1 / (1 / noise_std**2 + 1 / error_std**2)  # of all combinations
    np.testing.assert_allclose(errors, best, rtol=0.15, atol=3e-6)
    assert error_variance == pytest.approx(np.median(best), rel=0.15, abs=3e-6)


def test_without_noise_the_released_means_are_taken_as_they_are() -> None:
    released, generated = torch.rand(3, 50), torch.rand(3, 50)
    means, error_variance = shrunken_means(
        ClassTargets(means=released, counts=np.ones(3), noise_variance=np.zeros(3)), generated
    )
    torch.testing.assert_close(means, released)
    assert error_variance < 1e-12


@pytest.mark.parametrize("confused", [0.03, 0.2])
@pytest.mark.parametrize("noise_std", [0.0, 5.0])
def test_labels_are_corrected_however_few_are_wrong_unless_noise_hides_the_means(
    confused: float, noise_std: float
) -> None:
    feature_map, generator = PixelFeatureMap(), cast(Generator, ConfusedGenerator(confused))
    label = learned(generator, released_squares(feature_map, noise_std), feature_map)
    assert label.corrects is (noise_std == 0.0)
    if label.corrects:
        corrected = [
            float((label(torch.from_numpy(images), torch.full((len(images),), asked)) != asked).float().mean())
            for images, asked in draw_images(generator, [500] * CLASSES, seed=1)
        ]
        assert np.mean(corrected) == pytest.approx(confused, abs=0.02)


@pytest.mark.parametrize("corrects", [True, False])
def test_scores_are_refined_only_where_labels_are_corrected_and_progress_is_told(
    corrects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "INFORMATIVE", 0.9 if corrects else 0.0)
    feature_map, generator = PixelFeatureMap(), cast(Generator, ConfusedGenerator())
    told: list[tuple[int, int]] = []
    targets = released_squares(feature_map, 0.0)
    learned(generator, targets, feature_map, on_images=lambda count, total: told.append((count, total)))
    (total,) = {total for _, total in told}
    drawn = sum(count for count, _ in told)
    assert drawn <= total
    assert (drawn > CLASSES * (IMAGES // CLASSES)) is corrects


def test_scores_learn_from_released_means_except_of_a_class_that_is_all_noise() -> None:
    random = np.random.default_rng(0)
    noise_std = np.array([0.01, 0.01, 0.012, 5.0])
    truth = random.random((4, 2000))
    released = torch.from_numpy(truth + noise_std[:, None] * random.standard_normal(truth.shape)).float()
    generated = torch.from_numpy(truth + 0.01 * random.standard_normal(truth.shape)).float()
    targets = ClassTargets(means=released, counts=np.ones(4), noise_variance=noise_std**2)
    means, shares = means_to_learn_from(targets, generated)
    torch.testing.assert_close(means[:2], released[:2])
    assert (means[2] - released[2]).norm() < 0.3 * (generated[2] - released[2]).norm()
    torch.testing.assert_close(means[3], generated[3], rtol=0, atol=0.01)
    torch.testing.assert_close(means, generated + shares * (released - generated))


@pytest.mark.parametrize("better", [True, False])
def test_scores_are_refined_at_their_own_scale_and_kept_only_if_they_agree_better(
    better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature_map, generator = PixelFeatureMap(), cast(Generator, ConfusedGenerator())
    targets = released_squares(feature_map, 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(labelling, "INFORMATIVE", 0.0)
        unrefined = learned(generator, targets, feature_map)
    asked: dict[str, Tensor] = {}

    def refined(
        starts: Scores, all_means: tuple[Tensor, ...], metric: Callable[[Tensor], Tensor], draw: Any, **_: Any
    ) -> Scores:
        start, means = starts[0], all_means[0]
        asked.update(start=start.directions, metric=metric(targets.means - start.centre), means=means)
        first, second = (torch.cat([features for features, _ in draw(step)]) for step in (0, 1))
        asked.update(first=first, second=second, classes=torch.cat([classes for _, classes in draw(0)]))
        scores = start.divided_by(0.5)
        return (scores if better else LinearScores(scores.centre, -scores.directions, scores.thresholds),) * 2

    monkeypatch.setattr(labelling, "refined_scores", refined)
    discriminant = learned(generator, targets, feature_map)
    torch.testing.assert_close(asked["metric"], asked["start"])
    torch.testing.assert_close(asked["means"], targets.means)
    assert not torch.equal(asked["first"], asked["second"])
    assert asked["classes"].bincount().tolist() == [len(asked["classes"]) // CLASSES] * CLASSES
    assert discriminant.loss == pytest.approx(unrefined.loss)
    if not better:
        torch.testing.assert_close(discriminant.learned[0].directions, unrefined.learned[0].directions)
        assert discriminant.temperature == unrefined.temperature
