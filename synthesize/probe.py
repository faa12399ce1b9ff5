"""How much of the released noise a generator has learned, found by adding a little more noise that is known.

A generator that is trained towards noisy class means learns some of their noise: the images of a class then resemble
the noisy mean of that class more than they resemble its true one. Whoever judges those images by the same noisy means
finds them right too often, for the two share their errors. In the released means noise cannot be told from signal; in
a probe it can. The generator is trained towards y + p, where p is drawn like the noise z of the released means y, with
r = `PROBE_SHARE` times its variance, so it treats z and p alike. Its share of p, which is seen, is its share of z.

Scores depend on the means they are learned from, and so on z. They are learned twice, from y + p and from y − p; half
the difference is how they respond to p. With W the scores' directions and g the generator's class means, p and z being
independent of each other and alike but for r,

    E[z-part of W_c · z-part of g_c] = E[p-part of W_c · p-part of g_c] / r,

to first order: a Monte-Carlo divergence (Ramani, Blu, Unser 2008) with the probe as its random direction. By that
much, less what other scores have of it, the score of the class that was asked for is too high on average (`advantage`).

The same idea gives data thinning its independent parts (Neufeld et al., JMLR 2024), where the part to judge by would
have noise of 1 + 1/r times the variance. Only the release enters, and random numbers: post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dpmepf.synthesize.refining import LinearScores
from dpmepf.synthesize.targets import ClassTargets

PROBE_SHARE = 0.1  # of the variance of the released noise
STREAM = 1  # of a run's random numbers; those of the same seed alone are its latent vectors
HIDDEN = 1.58  # times what classes differ by: noise so much longer hides the differences


def probe_for(targets: ClassTargets, *, seed: int) -> Tensor | None:
    """Return a probe (`draw_probe`), or None where noise hides what classes differ by.

    There scores are mostly noise. What is taken off for the generator's share of it leaves many images to be corrected
    that are right; without that, few are.
    """
    return None if targets.relative_noise > HIDDEN else draw_probe(targets, seed=seed)


def draw_probe(targets: ClassTargets, *, seed: int) -> Tensor:
    """Return K×D Gaussian noise, in each class of `PROBE_SHARE` times the variance of the noise in its mean."""
    random = np.random.default_rng((seed, STREAM))
    std = np.sqrt(PROBE_SHARE * targets.noise_variance)[:, None]
    return torch.from_numpy(std * random.standard_normal(targets.means.shape)).float()


def with_probe(targets: ClassTargets, probe: Tensor) -> ClassTargets:
    """Return what a generator is trained towards: targets with the probe added to means and to their noise."""
    return replace(targets, means=targets.means + probe, noise_variance=(1 + PROBE_SHARE) * targets.noise_variance)


@dataclass(frozen=True)
class NoiseProbe:
    """A probe, and a generator that was trained with it.

    Fields:
        probe: K×D, what was added to the class means.
        response: K×D mean features of the generated images of each class, less the released means without the probe:
            that subtracts much of what the probe has no part in.
    """

    probe: Tensor
    response: Tensor

    def advantage(self, plus: LinearScores, minus: LinearScores) -> Tensor:
        """Return K: by how much noise that a generator shares raises the score of the class its images are asked for.

        That is above the mean of the other scores: what is added to all of them decides nothing.

        Args:
            plus, minus: scores learned from means with the probe added and subtracted.
        """
        responses = 0.5 * (plus.directions - minus.directions) @ self.probe.T  # of scores (K) to the probes of classes
        classes = len(responses)
        of_others = (responses.sum(dim=0) - responses.diagonal()) / max(classes - 1, 1)
        return self.learned(plus, minus) * (responses.diagonal() - of_others) / PROBE_SHARE

    def learned(self, plus: LinearScores, minus: LinearScores) -> Tensor:
        """Return the share, in [0, 1], of the probe that was learned, in the metric of the scores' response to it.

        One class's product is a noisy estimate, so one share is taken for all. What classes have in common raises all
        scores alike, and does not count.
        """
        response_of_scores = plus.directions - minus.directions
        response_of_scores = response_of_scores - response_of_scores.mean(dim=0)
        if_all = (response_of_scores * self.probe).sum()
        return ((response_of_scores * self.response).sum() / if_all.clamp_min(1e-30)).clamp(0.0, 1.0)
