"""A probe tells how much of the released noise a generator has learned, so that labels are judged as if it had none."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
import torch
from torch import Tensor

from dpmepf.shared.feature_map import Segment
from dpmepf.synthesize import refining
from dpmepf.synthesize.labelling import MeanDiscriminant
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.probe import PROBE_SHARE, NoiseProbe, draw_probe, probe_for, with_probe
from dpmepf.synthesize.refining import LinearScores
from dpmepf.synthesize.sampling import LEFT_OUT
from dpmepf.synthesize.targets import ClassTargets

CLASSES, DIMENSION, PER_CLASS = 6, 2_000, 400
NOISE_STD, SPREAD = 0.12, 1.0
IDENTITY = WithinClassMetric((Segment("only", 1, 0, DIMENSION, channels=DIMENSION),), ridge=1.0, noise_variance=0.0)


class World:
    """Classes a few standard deviations apart, a release of their means, and images of a generator.

    The generator has learned a share of all noise that it was trained with, and some of its images look like the next
    class.
    """

    def __init__(self, *, learned: float, confused: float = 0.25, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.truth = 5 * SPREAD * torch.eye(DIMENSION)[:CLASSES]
        noise_variance = np.full(CLASSES, NOISE_STD**2)
        noise = NOISE_STD * torch.randn(self.truth.shape, generator=random)
        self.confusion = confused
        self.targets = ClassTargets(means=self.truth + noise, counts=np.ones(CLASSES), noise_variance=noise_variance)
        self.probe = draw_probe(self.targets, seed=seed + 1)
        self.learned_noise = learned * (noise + self.probe)
        self.features, self.classes, self.drawn = self.images(random)
        self.confused = float((self.drawn != self.classes).float().mean())

    def images(self, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Features, the classes that were asked for and those that were drawn."""
        classes = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
        other = torch.rand(len(classes), generator=random) < self.confusion
        drawn = torch.where(other, (classes + 1) % CLASSES, classes)
        spread = SPREAD * torch.randn(len(drawn), DIMENSION, generator=random)
        return self.truth[drawn] + self.learned_noise[classes] + spread, classes, drawn

    def discriminant(self, *, probed: bool = True) -> MeanDiscriminant:
        generated = self.features.view(CLASSES, PER_CLASS, -1).mean(dim=1)
        known = NoiseProbe(probe=self.probe, response=generated - self.targets.means)
        discriminant = MeanDiscriminant(
            self.targets.means, IDENTITY, torch.nn.Identity(), probe=known if probed else None
        )
        discriminant.calibrate([(self.features[::2], self.classes[::2]), (self.features[1::2], self.classes[1::2])])
        return discriminant

    def disagreement(self, discriminant: MeanDiscriminant) -> float:
        """Share of images whose best score is not that of the class that was asked for."""
        scores = discriminant.scores_of_generated(self.features, self.classes)
        return float((scores.argmax(dim=1) != self.classes).float().mean())


@pytest.mark.parametrize("learned", [0.0, 0.3, 1.0])
def test_generated_images_agree_as_often_as_by_another_release_of_the_same_data(learned: float) -> None:
    """Planted: without the probe, images that share the noise seem to be right."""
    world = World(learned=learned)
    independent = world.truth + NOISE_STD * torch.randn(world.truth.shape, generator=torch.Generator().manual_seed(99))
    scores = MeanDiscriminant(independent, IDENTITY, torch.nn.Identity()).scores(world.features)
    expected = float((scores.argmax(dim=1) != world.classes).float().mean())
    assert expected > 0.25
    assert world.disagreement(world.discriminant()) == pytest.approx(expected, abs=0.04)
    if learned == 1.0:
        assert world.disagreement(world.discriminant(probed=False)) < 0.6 * expected


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("learned", [0.0, 0.2, 0.6])
def test_the_advantage_is_what_learned_noise_adds_to_scores(
    learned: float, refined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: where scores from y − p learn from the images of y + p, refining overstates it."""
    found, added = [], []
    look, gains = refining._look_at, count(1)  # it always seems to gain, so that the last step is returned
    monkeypatch.setattr(refining, "_look_at", lambda *arguments: (float(next(gains)), *look(*arguments)[1:]))
    monkeypatch.setitem(refining.refined_scores.__kwdefaults__, "steps", 12)
    for seed in range(4):
        world = World(learned=learned, seed=seed)
        discriminant = world.discriminant()
        assert discriminant.probe is not None
        if refined:
            refine(discriminant, world)
        found.append(float(discriminant.probe.advantage(*discriminant.learned).mean()))
        products = world.learned_noise @ sum(scores.directions / 2 for scores in discriminant.learned).T  # type: ignore[union-attr]
        of_others = (products.sum(dim=1) - products.diagonal()) / (CLASSES - 1)
        added.append(float((products.diagonal() - of_others).mean()))
    scale = DIMENSION * NOISE_STD**2 / (world.discriminant().temperature if refined else 1.0)
    assert np.mean(found) == pytest.approx(np.mean(added), rel=0.15, abs=0.1 * scale)


def refine(discriminant: MeanDiscriminant, world: World) -> None:
    def draw(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield world.images(torch.Generator().manual_seed(step))[:2]

    discriminant.refine(draw)


def test_classes_with_more_noise_have_more_of_an_advantage() -> None:
    variances = np.array([1.0, 1.0, 9.0])
    targets = ClassTargets(means=torch.zeros(3, DIMENSION), counts=np.ones(3), noise_variance=variances)
    drawn = draw_probe(targets, seed=0)
    np.testing.assert_allclose(drawn.square().mean(dim=1), PROBE_SHARE * variances, rtol=0.15)
    advantage = NoiseProbe(probe=drawn, response=0.2 * drawn).advantage(
        *(LinearScores(torch.zeros(DIMENSION), sign * drawn, torch.zeros(3)) for sign in (1, -1))
    )
    np.testing.assert_allclose(advantage, 0.2 * DIMENSION * variances, rtol=0.15)


def test_what_raises_all_scores_alike_is_no_advantage() -> None:
    targets = ClassTargets(means=torch.zeros(3, DIMENSION), counts=np.ones(3), noise_variance=np.ones(3))
    drawn = draw_probe(targets, seed=0)
    known = NoiseProbe(probe=drawn, response=0.2 * drawn)

    def advantage(common: float) -> Tensor:
        directions = drawn + common * drawn.mean(dim=0)
        return known.advantage(
            *(LinearScores(torch.zeros(DIMENSION), sign * directions, torch.zeros(3)) for sign in (1, -1))
        )

    torch.testing.assert_close(advantage(5.0), advantage(0.0), rtol=1e-4, atol=0.0)


def test_without_noise_there_is_no_advantage() -> None:
    means = torch.eye(3)
    targets = ClassTargets(means=means, counts=np.ones(3), noise_variance=np.zeros(3))
    drawn = draw_probe(targets, seed=0)
    scores = LinearScores(torch.zeros(3), means, torch.zeros(3))
    assert NoiseProbe(probe=drawn, response=0.1 * means).advantage(scores, scores).tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(with_probe(targets, drawn).means, means)


@pytest.mark.parametrize("seed", [0, 1])
def test_labels_are_left_alone_where_scores_are_nothing_but_noise(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "NOISE_STD", 30.0)
    assert not World(learned=0.0, confused=0.0, seed=seed).discriminant().corrects


@pytest.mark.parametrize("learned", [0.0, 0.5])
@pytest.mark.parametrize("noise_std", [0.06, 0.12, 0.15])
def test_correcting_makes_labels_better_though_the_means_are_noisy(
    noise_std: float, learned: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator errs in a quarter of its images; noise is up to a third longer than what a class differs by."""
    monkeypatch.setitem(globals(), "NOISE_STD", noise_std)
    world = World(learned=learned)
    discriminant = world.discriminant()
    assert discriminant.corrects
    label = discriminant(world.features, world.classes)
    kept = label != LEFT_OUT
    assert float((label == world.drawn)[kept].float().mean()) > 1.0 - world.confused + 0.02


@pytest.mark.parametrize("learned", [0.3, 0.6])
@pytest.mark.parametrize("noise_std", [0.17, 0.3])
def test_without_a_probe_correcting_makes_labels_no_worse_where_the_generator_shares_the_noise(
    noise_std: float, learned: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "NOISE_STD", noise_std)
    world = World(learned=learned)
    discriminant = world.discriminant(probed=False)
    assert discriminant.corrects
    label = discriminant(world.features, world.classes)
    kept = label != LEFT_OUT
    assert float((label == world.drawn)[kept].float().mean()) > 1.0 - world.confused - 0.01


@pytest.mark.parametrize("noise_std", [0.0, 0.12, 0.15, 0.17, 0.3, 1.0])
def test_where_noise_hides_what_classes_differ_by_there_is_no_probe(
    noise_std: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes differ by 25 in squares, less 1/6 that is common to all; an almost empty one changes nothing."""
    monkeypatch.setitem(globals(), "NOISE_STD", noise_std)
    targets = World(learned=0.0).targets
    targets.means[0] += 50 * torch.randn(DIMENSION, generator=torch.Generator().manual_seed(1))
    targets.noise_variance[0] = 2_500
    hidden = DIMENSION * noise_std**2 > 2.5 * 25 * 5 / 6
    assert (probe_for(targets, seed=0) is None) is hidden


def test_with_a_probe_targets_are_noisier_and_say_so() -> None:
    targets = ClassTargets(means=torch.zeros(2, 50_000), counts=np.ones(2), noise_variance=np.array([1.0, 4.0]))
    drawn = draw_probe(targets, seed=3)
    trained = with_probe(targets, drawn)
    torch.testing.assert_close(trained.means, drawn)
    np.testing.assert_allclose(trained.noise_variance, [1 + PROBE_SHARE, 4 * (1 + PROBE_SHARE)])
    assert torch.equal(draw_probe(targets, seed=3), drawn)
    assert not torch.equal(draw_probe(targets, seed=4), drawn)
