"""Scores learn from class means and images without labels what logistic regression learns from labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dpmepf.synthesize import refining
from dpmepf.synthesize.refining import LinearScores, Scores, refined_scores

CLASSES, PER_CLASS, DIMENSION = 3, 1_000, 12


def records(seed: int) -> tuple[Tensor, Tensor]:
    """Features and labels; a fifth of the first class lies far out, so that its mean is not where most of it is."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    far_out = (labels == 0) & (torch.rand(len(labels), generator=random) < 0.2)
    places = torch.eye(DIMENSION)[labels] * torch.where(far_out, 8.0, 1.0)[:, None]
    return places + 0.4 * torch.randn(len(labels), DIMENSION, generator=random), labels


def true_means() -> Tensor:
    means = torch.eye(DIMENSION)[:CLASSES]
    means[0] *= 0.8 + 0.2 * 8.0
    return means


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([features[labels == index].mean(dim=0) for index in range(CLASSES)])


def discriminant_of(means: Tensor, features: Tensor, labels: Tensor) -> tuple[LinearScores, Tensor]:
    """Calibrated linear discriminant analysis, and the metric whose scale it has."""
    deviations = features - class_means(features, labels)[labels]
    metric = torch.linalg.inv(deviations.T @ deviations / len(labels))
    centre = means.mean(dim=0)
    directions = (means - centre) @ metric
    scores = LinearScores(centre, directions, 0.5 * (directions * (means - centre)).sum(dim=1))
    temperature = min(
        torch.logspace(-1, 1, 41).tolist(),
        key=lambda t: float(functional.cross_entropy(scores.divided_by(t)(features), labels)),
    )
    return scores.divided_by(temperature), metric / temperature


def accuracy(scores: LinearScores, features: Tensor, labels: Tensor) -> float:
    return float((scores(features).argmax(dim=1) == labels).double().mean())


def fresh_images(step: int) -> Iterator[tuple[Tensor, Tensor]]:
    features, labels = records(1_000 + step)
    yield from zip(features.split(700), labels.split(700), strict=True)


def alone(scores: Scores, features: Tensor, classes: Tensor) -> Tensor:
    """What one learner's agreement is judged by."""
    return scores[0](features)


def refined(means: Tensor, *, steps: int = 200) -> tuple[LinearScores, LinearScores]:
    """What it starts from, and what it comes to, when the means are `means`."""
    start, metric = discriminant_of(means, *records(1))
    (ended,) = refined_scores((start,), (means,), lambda rows: rows @ metric, fresh_images, judged=alone, steps=steps)
    return start, ended


def logistic_regression(features: Tensor, labels: Tensor) -> LinearScores:
    """The usual one, which sees the labels."""
    weights = torch.zeros(CLASSES, DIMENSION, requires_grad=True)
    offsets = torch.zeros(CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(features @ weights.T - offsets, labels)
        value.backward()
        return value

    optimizer.step(loss)
    return LinearScores(torch.zeros(DIMENSION), weights.detach(), offsets.detach())


def test_it_comes_to_what_logistic_regression_learns_from_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refining, "PATIENCE", 2_000)  # these few features want more steps than so many images allow
    start, ended = refined(true_means(), steps=2_000)
    usual, test = logistic_regression(*records(0)), records(2)
    assert accuracy(usual, *test) > accuracy(start, *test) + 0.02  # there is something to learn
    assert accuracy(ended, *test) == pytest.approx(accuracy(usual, *test), abs=0.006)
    losses = [float(functional.cross_entropy(scores(test[0]), test[1])) for scores in (usual, ended)]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_what_all_class_means_share_does_not_matter() -> None:
    means = true_means()
    start, metric = discriminant_of(means, *records(1))

    def probabilities(shift: float) -> Tensor:
        (scores,) = refined_scores(
            (start,), (means + shift,), lambda rows: rows @ metric, fresh_images, judged=alone, steps=30
        )
        return scores(records(2)[0]).softmax(dim=1)

    torch.testing.assert_close(probabilities(0.5), probabilities(0.0), rtol=1e-3, atol=1e-4)


def test_it_returns_the_step_between_first_and_last_that_agreed_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: gains that rise for ever make it return the last step."""
    noise = 2.0 * torch.randn(CLASSES, DIMENSION, generator=torch.Generator().manual_seed(2))
    features, labels = records(2)

    def loss(scores: LinearScores) -> float:
        return float(functional.cross_entropy(scores(features), labels))

    start, ended = refined(true_means() + noise)
    assert loss(ended) < loss(start) - 0.1
    look, gains = refining._look_at, iter(range(1, 10_000))
    monkeypatch.setattr(refining, "_look_at", lambda *arguments: (float(next(gains)), *look(*arguments)[1:]))
    assert loss(ended) < loss(refined(true_means() + noise)[1]) - 0.1


def test_it_stops_when_nothing_was_gained_for_a_while_and_returns_what_gained_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, metric = discriminant_of(true_means(), *records(1))
    averages: list[Scores] = []
    look = refining._look_at

    def looked_at(*arguments: Any) -> tuple[float, Any]:
        averages.append(arguments[3])
        return (1.0 if len(averages) == 4 else -1.0), *look(*arguments)[1:]

    monkeypatch.setattr(refining, "_look_at", looked_at)
    monkeypatch.setattr(refining, "MEMORY", 0.0)
    ended = refined_scores((start,), (true_means(),), lambda rows: rows @ metric, fresh_images, judged=alone)
    assert ended is averages[3]
    assert len(averages) == 4 + refining.PATIENCE


def test_it_returns_its_start_where_noise_leaves_nothing_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: one that takes every step for a better one learns the noise, and is worse than what it began with."""
    noise = 0.06 * torch.randn(CLASSES, DIMENSION, generator=torch.Generator().manual_seed(0))
    means, test = true_means() + noise, records(2)
    start, ended = refined(means)
    assert accuracy(ended, *test) >= accuracy(start, *test) - 0.002
    look, gains = refining._look_at, iter(range(1, 10_000))
    monkeypatch.setattr(refining, "_look_at", lambda *arguments: (float(next(gains)), *look(*arguments)[1:]))
    assert accuracy(refined(means)[1], *test) < accuracy(start, *test) - 0.03


def test_several_learn_side_by_side_what_each_learns_alone() -> None:
    means, other = true_means(), true_means() + 0.3
    other[0, 5] += 1.0
    start, metric = discriminant_of(means, *records(1))

    def learn(*all_means: Tensor) -> Scores:
        starts = (start,) * len(all_means)
        return refined_scores(starts, all_means, lambda rows: rows @ metric, fresh_images, judged=alone, steps=8)

    together, first = learn(means, other), learn(means)
    torch.testing.assert_close(together[0].directions, first[0].directions)
    assert not torch.allclose(together[1].directions, first[0].directions)
