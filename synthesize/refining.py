"""Logistic regression without labelled images: class means say what labels would, generated images the rest.

The mean loss of multinomial logistic regression on records (f, y) with scores s_c = w_c·f − b_c,

    E log Σ_c exp s_c(f) − Σ_c π_c (w_c·m_c − b_c),

takes from the labels nothing but the class means m_c, which is what is released. Its other term is an average over
features alone, for which generated images stand in. The gradient is E p_c(f) f − π_c m_c, where p is the softmax of the
scores (Hastie et al., The Elements of Statistical Learning, section 4.4; π_c are equal here, as generated images are
drawn equally many of each class).

Linear discriminant analysis, from which this starts, is right for Gaussian features of equal covariance; logistic
regression assumes neither. But the longer it runs, the more it learns of the noise in the means, and of differences
between generated and private images. Neither makes generated images agree better with the class that they were drawn
for, once what they share with the noise is taken off (`probe`), so training stops, and goes back, to where they agree
best. Where there is no probe, it may stop later than it should.

Only the release and generated images enter: post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

STEPS = 80  # at most
PATIENCE = 12  # steps without better agreement before it stops
RATE = 0.1  # of a step, times the number of classes; Newton's would be some ten times as long
MEMORY = 0.9  # share of the past in the averages of scores, of which the best are returned, and of their agreement

Batch = Iterable[tuple[Tensor, Tensor]]
"""Features (n×D) and classes (int64 n) of generated images, part by part; of each class equally many in all."""


@dataclass(frozen=True)
class LinearScores:
    """(f − centre)·directions − thresholds: K scores of features f, of which softmax makes probabilities.

    Fields:
        centre: D.
        directions: K×D.
        thresholds: K.
    """

    centre: Tensor
    directions: Tensor
    thresholds: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return N×K scores of N×D features."""
        return (features - self.centre) @ self.directions.T - self.thresholds

    def divided_by(self, temperature: float) -> LinearScores:
        return LinearScores(self.centre, self.directions / temperature, self.thresholds / temperature)

    def towards(self, other: LinearScores, share: float) -> LinearScores:
        """Return scores that are `share` of the way from these to others of the same centre."""
        return LinearScores(
            self.centre,
            self.directions.lerp(other.directions, share),
            self.thresholds.lerp(other.thresholds, share),
        )


Scores = tuple[LinearScores, ...]
Judged = Callable[[Scores, Tensor, Tensor], Tensor]


def refined_scores(
    starts: Scores,
    means: Sequence[Tensor],
    metric: Callable[[Tensor], Tensor],
    draw: Callable[[int], Batch],
    *,
    judged: Judged,
    shifts: Sequence[Tensor] | None = None,
    steps: int = STEPS,
) -> Scores:
    """Improve on `starts` for as long as generated images agree better with the class that they were drawn for.

    Args:
        starts: scores whose softmax is about as certain as it is right, all of one centre.
        means: for each of them K×D released class means.
        metric: A, K×D -> K×D, of the scale at which a start's directions are A times deviations of means.
        draw: called with the number of a step, from 0: the images of that step, others each time.
        judged: called with scores of all, with n×D features and their n classes: n×K scores whose softmax says how
            well the images agree with their classes.
        shifts: for each start K×D, added to the features of the images of each class when it learns; None: nothing.
        steps: at most.

    Returns:
        Of each start, the scores that agreed best with the images of their steps, possibly those of the start. With
        all images they may agree a little less well than the starts: see whether they do.
    """
    classes = len(means[0])
    rate = RATE * classes
    targets = [(of_one - start.centre) / classes for of_one, start in zip(means, starts, strict=True)]
    current = average = best = starts
    gains, most, best_step = 0.0, 0.0, 0
    for step in range(steps):
        gained, moments = _look_at(draw(step), starts, current, average, judged, shifts or [None] * len(starts))
        gains = MEMORY * gains + (1 - MEMORY) * gained
        gain = gains / (1 - MEMORY ** (step + 1))  # as Adam corrects an average that begins at 0
        if gain > most:
            best, most, best_step = average, gain, step
        elif step - best_step >= PATIENCE:
            break
        current = tuple(
            LinearScores(
                scores.centre,
                scores.directions - rate * metric(sums - target),
                scores.thresholds + rate * (shares - 1 / classes),
            )
            for scores, target, (sums, shares) in zip(current, targets, moments, strict=True)
        )
        share = max(1 - MEMORY, 1 / (step + 2))
        average = tuple(mean.towards(scores, share) for mean, scores in zip(average, current, strict=True))
    return best


def _look_at(
    batch: Batch,
    starts: Scores,
    current: Scores,
    average: Scores,
    judged: Judged,
    shifts: Sequence[Tensor | None],
) -> tuple[float, list[tuple[Tensor, Tensor]]]:
    """What a step needs to know of its images, with the probabilities p_c that each of `current` gives them.

    Returns:
        By how much `average` has less cross-entropy than `starts` with the classes they were drawn for, on the mean of
        the same images; for each of `current` means of p_c·(f − centre), K×D, and of p_c, K.
    """
    moments = [(torch.zeros_like(scores.directions), torch.zeros_like(scores.thresholds)) for scores in current]
    gained, count = 0.0, 0
    for features, classes in batch:
        for scores, shift, (sums, shares) in zip(current, shifts, moments, strict=True):
            seen = features if shift is None else features + shift[classes]
            probabilities = scores(seen).softmax(dim=1)
            sums += probabilities.T @ (seen - scores.centre)
            shares += probabilities.sum(dim=0)
        before, after = (
            functional.cross_entropy(judged(scores, features, classes), classes, reduction="sum")
            for scores in (starts, average)
        )
        gained += float(before - after)
        count += len(features)
    return gained / count, [(sums / count, shares / count) for sums, shares in moments]
