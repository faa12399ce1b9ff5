"""Labels for generated images from what the release says of the classes.

A generator is asked for a class, but what it draws may look more like another one: its class means are right while
single images are not. Class means and the covariance within classes define the classifier that is best for Gaussian
features of equal covariance, linear discriminant analysis: the class whose mean is nearest in the within-class metric
(Fisher 1936; Hastie et al., The Elements of Statistical Learning, section 4.3). `refining` makes better scores of it,
by logistic regression. Where they agree with the class that was asked for, the image keeps that; where they find that
class improbable, the image gets the most probable one; what lies between is left out.

The classifier errs too, and the more the longer the noise in the means; but so does the generator, which has its
classes from the same means. Generated images alone tell how often the two differ, but their generator has learned some
of the noise that the classifier has, as a probe shows (`probe`). Where they have next to nothing in common, every image
keeps its class (`corrects`).

The class means are known twice: released with noise, and as the generator has learned them, without noise but with an
error of its own. Distances are from a mean of the two by their errors (`shrunken_means`; empirical Bayes, as James and
Stein 1961), and so are scores of public images, which share no noise with the means, unless scores were refined with a
probe. Those of generated images are learned from the released means.

Only the release and generated images enter: post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dpmepf.shared.precision import autocast
from dpmepf.synthesize.feature_function import FeatureFunction
from dpmepf.synthesize.generator import Generator
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.probe import NoiseProbe
from dpmepf.synthesize.refining import STEPS, LinearScores, Scores, refined_scores
from dpmepf.synthesize.sampling import BATCH, LEFT_OUT, draw_images
from dpmepf.synthesize.targets import ClassTargets

IMAGES = 10_000  # drawn to learn from, over all classes
FEWEST_OF_CLASS = 20
CALIBRATION_STRIDE = 5  # calibrated on each fifth of them: scores need their features once more
IMAGES_PER_STEP = 1_000  # drawn for a step of refining, over all classes
RADIUS_QUANTILE = 0.99  # of the squared distances of generated images from the mean of their class
IMPROBABLE = 0.2  # probability of a class below which an image drawn for it gets another
INFORMATIVE = 0.9  # cross-entropy of the classes asked for, of that of guesses, from which no label is corrected


class MeanDiscriminant:
    """Which class an image belongs to: that of the best score.

    Args:
        means: K×D class means.
        metric: in which distances are measured.
        features_of: the feature map.
        released: K×D class means to learn scores from; None: `means`.
        shares: K×1, of the released means in `released`, and so of what a probe in them would do; None: 1.
        probe: in the generator whose images get labels; None: its share of the noise is not known, and not taken off.
    """

    def __init__(
        self,
        means: Tensor,
        metric: WithinClassMetric,
        features_of: FeatureFunction,
        *,
        released: Tensor | None = None,
        shares: Tensor | None = None,
        probe: NoiseProbe | None = None,
    ) -> None:
        self.means = means
        self.metric = metric
        self.features_of = features_of
        self.probe = probe
        released = means if released is None else released
        self.released: tuple[Tensor, ...] = (released,)
        if probe is not None:
            shift = probe.probe * (1.0 if shares is None else shares)
            self.released = (released + shift, released - shift)
        # From the centre of the means, ‖f − m‖² = ‖f‖² − 2·(f·Am − m·Am/2): the larger the bracket, the nearer.
        centre = torch.stack(self.released).mean(dim=(0, 1))
        self.learned = self.unrefined = tuple(_nearest(of_one, centre, metric) for of_one in self.released)
        self.nearest = _nearest(means, means.mean(dim=0), metric)
        self.log_sizes = torch.zeros(len(means), device=means.device)  # of the classes in the set that gets labels
        self.temperature = 1.0
        self.loss = float("inf")  # mean cross-entropy of the classes asked for, of generated images
        self.squared_radius = float("inf")  # of a class: hardly an image that was generated for it is farther

    @property
    def corrects(self) -> bool:
        """Whether labels are corrected: unless scores and the classes asked for have next to nothing in common."""
        return self.loss < INFORMATIVE * math.log(len(self.means))

    def scores(self, features: Tensor) -> Tensor:
        """Return N×K scores of N×D features: the higher, the more probable the class."""
        return _mean_scores(self.learned)(features)

    def scores_of_generated(self, features: Tensor, asked: Tensor) -> Tensor:
        """Return `scores` of images that the generator drew for classes `asked`, without what it knows of the noise."""
        return self._judged(self.learned, features, asked)

    def squared_distances(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return (f − m)ᵀA(f − m) for each f of N×D features and the mean m of its class."""
        deviations = features - self.means[classes]
        return (deviations * self.metric.apply(deviations)).sum(dim=1)

    def calibrate(self, features: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Choose the temperature at which softmax(scores/temperature) predicts classes best (Guo et al., ICML 2017).

        Coordinates of features are correlated beyond what the metric knows, so that scores as they are would claim
        far too much certainty.

        Args:
            features: n×D of generated images and their n classes, part by part.
        """
        scores, classes = [], []
        for part, of_part in features:
            scores.append(self.scores_of_generated(part, of_part))
            classes.append(of_part)
        self.loss = self._choose_temperature(torch.cat(scores), torch.cat(classes))

    def _choose_temperature(self, scores: Tensor, classes: Tensor) -> float:
        spread = scores.std().clamp_min(1e-12)
        temperatures = spread * torch.logspace(-3, 3, 241, device=scores.device)
        losses = torch.stack([functional.cross_entropy(scores / temperature, classes) for temperature in temperatures])
        self.temperature = float(temperatures[losses.argmin()])
        return float(losses.min())

    def refine(self, draw: Callable[[int], Iterator[tuple[Tensor, Tensor]]]) -> None:
        """Make better scores of calibrated ones (`refining.refined_scores`); they want calibrating again.

        Args:
            draw: called with the number of a step: features and classes of the images to learn from in it.
        """
        temperature, self.temperature = self.temperature, 1.0
        shifts = None
        if self.probe is not None:  # scores from y − p are to see what a generator that was trained towards that draws
            shift = -2.0 * self.probe.learned(*self.learned) * self.probe.probe
            shifts = (torch.zeros_like(shift), shift)
        self.learned = refined_scores(
            tuple(scores.divided_by(temperature) for scores in self.learned),
            self.released,
            lambda rows: self.metric.apply(rows) / temperature,
            draw,
            judged=self._judged,
            shifts=shifts,
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor, asked: Tensor) -> Tensor:
        """Return the class of each of N×C×R×R uint8 images that were drawn for classes `asked`, or `LEFT_OUT`.

        Of many images that are drawn for a frequent class, the few that are taken for a rare one by mistake would be
        as many as the rare one has: a rarer class than the one asked for is as much less probable as it is rarer.
        """
        scores = self.scores_of_generated(_features(self.features_of, images), asked)
        rarer = (self.log_sizes - self.log_sizes[asked][:, None]).clamp(max=0.0)
        probabilities = (scores / self.temperature + rarer).softmax(dim=1)
        best = probabilities.argmax(dim=1)
        of_asked = probabilities.gather(1, asked[:, None]).squeeze(1)
        return torch.where((best == asked) | (of_asked < IMPROBABLE), best, LEFT_OUT)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Features N×D of N×C×R×R uint8 images, on any device."""
        return _features(self.features_of, images.to(self.means.device))

    @torch.inference_mode()
    def judge(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look at N×C×R×R uint8 images of which nothing is known, on any device.

        Returns:
            Of each image the class of the best score, by how much that exceeds the second, and the squared distance
            from the mean of that class.
        """
        features = self.features(images)
        refined = self.probe is not None and self.learned is not self.unrefined
        scores = self.scores(features) if refined else self.nearest(features)
        best, classes = scores.topk(2, dim=1)
        return classes[:, 0], best[:, 0] - best[:, 1], self.squared_distances(features, classes[:, 0])

    def _judged(self, learned: Scores, features: Tensor, asked: Tensor) -> Tensor:
        scores = _mean_scores(learned)(features)
        if self.probe is None:
            return scores
        return _less(scores, self.probe.advantage(*learned)[asked], asked)


def _less(scores: Tensor, too_high: Tensor, asked: Tensor) -> Tensor:
    return scores.scatter_add(1, asked[:, None], -too_high[:, None])


def _nearest(means: Tensor, centre: Tensor, metric: WithinClassMetric) -> LinearScores:
    """Scores the highest of which is that of the nearest of K×D means."""
    directions = metric.apply(means - centre)
    return LinearScores(centre, directions, 0.5 * (directions * (means - centre)).sum(dim=1))


def _mean_scores(learned: Scores) -> LinearScores:
    return learned[0].towards(learned[-1], 0.5)


def learn_discriminant(
    generator: Generator,
    targets: ClassTargets,
    features_of: FeatureFunction,
    *,
    probe: Tensor | None = None,
    sizes: Sequence[float] | None = None,
    ridge: float,
    seed: int,
    on_images: Callable[[int, int], None] = lambda count, total: None,
) -> MeanDiscriminant:
    """Draw images, and learn from them and from the released means which class an image belongs to.

    Args:
        generator: in evaluation mode.
        targets: released class means.
        probe: K×D, what was added to them for the generator (`probe_for`); None: nothing.
        features_of: the feature map, on the generator's device.
        sizes: of the K classes in the set that is to get labels; None: all the same.
        ridge: of the metric, see `WithinClassMetric`.
        seed: of the latent vectors.
        on_images: called with the number of images just drawn and the number of all, if none can be spared.
    """
    class_count = len(targets.means)
    per_class = max(FEWEST_OF_CLASS, IMAGES // class_count)
    per_step = -(-IMAGES_PER_STEP // class_count)
    device = next(generator.parameters()).device

    def draw(per_class: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, class_index in draw_images(generator, [per_class] * class_count, seed=seed):
            on_images(len(images), class_count * total_per_class)
            yield torch.from_numpy(images).to(device), torch.full((len(images),), class_index, device=device)

    def draw_step(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        images, classes = map(torch.cat, zip(*draw(per_step, seed - 1 - step), strict=True))
        for batch, of_batch in zip(images.split(BATCH), classes.split(BATCH), strict=True):
            yield _features(features_of, batch), of_batch

    def calibrate() -> None:
        discriminant.calibrate((_features(features_of, images), classes) for images, classes in kept)

    total_per_class = per_class + STEPS * per_step
    generated = torch.zeros(targets.means.shape, device=device)
    metric = WithinClassMetric(features_of.segments, ridge=ridge, noise_variance=0.0)
    second_moments = [torch.zeros(s.channels, s.channels, device=device) for s in features_of.segments]
    kept: list[tuple[Tensor, Tensor]] = []  # images to calibrate on
    with torch.inference_mode():
        for images, classes in draw(per_class, seed):
            features = _features(features_of, images)
            generated.index_add_(0, classes, features / per_class)
            for total, part in zip(second_moments, metric.second_moments(features), strict=True):
                total += part
            kept.append((images[::CALIBRATION_STRIDE].clone(), classes[::CALIBRATION_STRIDE]))
        means, error_variance = shrunken_means(targets, generated)
        metric.noise_variance = error_variance
        metric.learn(second_moments, generated, per_class)
        released, shares = means_to_learn_from(targets, generated)
        known = None
        if probe is not None:
            known = NoiseProbe(probe=probe.to(device), response=generated - targets.means.to(device))
        discriminant = MeanDiscriminant(means, metric, features_of, released=released, shares=shares, probe=known)
        calibrate()
        if discriminant.corrects:
            loss = discriminant.loss
            discriminant.refine(draw_step)
            calibrate()
            if discriminant.loss >= loss:
                discriminant.learned = discriminant.unrefined
                calibrate()
        distances = [
            discriminant.squared_distances(_features(features_of, images), classes) for images, classes in kept
        ]
        discriminant.squared_radius = float(torch.cat(distances).quantile(RADIUS_QUANTILE))
    if sizes is not None:
        discriminant.log_sizes = torch.tensor(sizes, device=device).clamp_min(1).float().log()
    return discriminant


def shrunken_means(targets: ClassTargets, generated: Tensor) -> tuple[Tensor, float]:
    """Estimate the true class means from the released and the generated ones.

    With N_c the expected squared length of the noise in class c and L the mean squared error of a generated mean, the
    combination of least expected error is generated + w_c·(released − generated) with w_c = L/(L + N_c); its error is
    w_c·N_c. L is what ‖released − generated‖² exceeds N_c by, averaged over classes by the precision N_c^-2 of that.

    Args:
        targets: released class means, K×D.
        generated: K×D.

    Returns:
        K×D estimates and the typical variance of their error in one coordinate.
    """
    error, noise = _squared_errors(targets, generated)
    means = _lerp_rows(generated, targets.means, error / (error + noise))
    return means, float(np.median(error * noise / (error + noise))) / generated.shape[1]


def means_to_learn_from(targets: ClassTargets, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Return the released means (K×D), but towards the generated ones for classes of far more noise than others have.

    Also return the released means' shares in them (K×1).

    The released share of class c is (L + N)/(L + N_c), with N the least of all N_c (see `shrunken_means`): the mean of
    a class with next to no records is noise, which would otherwise reach the scores of all classes.
    """
    error, noise = _squared_errors(targets, generated)
    shares = (error + noise.min()) / (error + noise)
    return _lerp_rows(generated, targets.means, shares), torch.as_tensor(shares).to(generated)[:, None]


def _squared_errors(targets: ClassTargets, generated: Tensor) -> tuple[float, np.ndarray]:
    """L and N_c (K) of `shrunken_means`."""
    noise = generated.shape[1] * np.maximum(targets.noise_variance, 1e-18)
    excess = (targets.means.to(generated.device) - generated).square().sum(dim=1).double().cpu().numpy() - noise
    return max(float(np.average(excess, weights=noise**-2.0)), 0.0), noise


def _lerp_rows(start: Tensor, end: Tensor, shares: np.ndarray) -> Tensor:
    return torch.lerp(start, end.to(start.device), torch.as_tensor(shares, dtype=start.dtype).to(start.device)[:, None])


def _features(features_of: FeatureFunction, images: Tensor) -> Tensor:
    with autocast(images.device):
        return features_of(images).float()
