"""The metric is the regularised inverse of the covariance within classes, however the batch is divided."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpmepf.shared.feature_map import Segment
from dpmepf.synthesize.metric import WithinClassMetric

SEGMENTS = (Segment("a", 1, 0, 6, channels=3), Segment("b", 1, 6, 10, channels=4))  # 2 positions, 1 position
CLASSES, PER_CLASS = 3, 40


def batch(seed: int = 0) -> Tensor:
    """120×10 features, class by class: classes far apart, channels of very different spread."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.tensor([1.0, 1.0, 0.1, 0.1, 3.0, 3.0, 0.2, 1.0, 2.0, 0.5])  # channel by channel over positions
    centres = 2 * torch.rand(CLASSES, 1, 10, generator=random)
    return (centres + spread * torch.randn(CLASSES, PER_CLASS, 10, generator=random)).flatten(0, 1)


def learned(features: Tensor, *, ridge: float = 0.3, noise_variance: float = 0.0) -> WithinClassMetric:
    metric = WithinClassMetric(SEGMENTS, ridge=ridge, noise_variance=noise_variance)
    means = features.view(CLASSES, PER_CLASS, -1).mean(dim=1)
    metric.learn(metric.second_moments(features), means, PER_CLASS)
    return metric


def test_covariances_are_pooled_over_classes_and_positions() -> None:
    features = batch()
    metric = learned(features)
    deviations = features.view(CLASSES, PER_CLASS, -1).double()
    deviations = (deviations - deviations.mean(dim=1, keepdim=True)).flatten(0, 1)
    for segment, covariance in zip(SEGMENTS, metric.covariances, strict=True):
        rows = segment.of(deviations)
        expected = torch.zeros(segment.channels, segment.channels, dtype=torch.float64)
        for position in range(segment.positions):
            expected += rows[:, :, position].T @ rows[:, :, position] / (CLASSES * (PER_CLASS - 1))
        torch.testing.assert_close(covariance.double(), expected / segment.positions, rtol=1e-3, atol=1e-3)


def test_apply_multiplies_by_the_regularised_inverse_at_every_position() -> None:
    metric = learned(batch(), ridge=0.3, noise_variance=0.01)
    vectors = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    applied, ratios = metric.apply(vectors), []
    for segment, covariance in zip(SEGMENTS, metric.covariances, strict=True):
        ridge = 0.3 * covariance.diagonal().mean() + 0.01
        expected = torch.linalg.solve(covariance + ridge * torch.eye(segment.channels), segment.of(vectors))
        ratios.append(segment.of(applied) / expected)
    scales = torch.cat([ratio.flatten() for ratio in ratios])
    torch.testing.assert_close(scales, scales[0].expand(len(scales)), rtol=1e-3, atol=1e-6)  # one scale for all


def test_the_mean_squared_deviation_within_classes_is_one() -> None:
    features = batch()
    metric = learned(features)
    deviations = features.view(CLASSES, PER_CLASS, -1)
    deviations = (deviations - deviations.mean(dim=1, keepdim=True)).flatten(0, 1)
    squared = (deviations * metric.apply(deviations)).sum() / (CLASSES * (PER_CLASS - 1))
    assert float(squared) == pytest.approx(1.0, rel=1e-3)


def test_directions_that_the_noise_hides_count_less() -> None:
    """Without noise the quietest direction counts 100 times the loudest, with much noise the same."""
    features = batch()
    quiet, loud = torch.eye(10)[[2]], torch.eye(10)[[4]]

    def ratio(noise_variance: float) -> float:
        metric = learned(features, ridge=1e-3, noise_variance=noise_variance)
        return float((metric.apply(quiet) @ quiet.T) / (metric.apply(loud) @ loud.T))

    assert ratio(0.0) > 100
    assert ratio(1e4) == pytest.approx(1.0, abs=0.01)


def test_single_images_of_a_class_teach_nothing_and_leave_the_metric_euclidean() -> None:
    metric = WithinClassMetric(SEGMENTS, ridge=0.3, noise_variance=0.0)
    features = batch()[:3]
    metric.learn(metric.second_moments(features), features, 1)
    assert metric.apply(features) is features


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_constant_features_leave_a_finite_metric(value: float) -> None:
    """As when a generator has collapsed to one image per class."""
    features = torch.full((CLASSES * PER_CLASS, 10), value)
    assert torch.isfinite(learned(features).apply(features)).all()


def test_a_restored_metric_goes_on_as_the_original_would() -> None:
    original = learned(batch(0))
    restored = WithinClassMetric(SEGMENTS, ridge=0.3, noise_variance=0.0)
    restored.load_state_dict(original.state_dict(), torch.device("cpu"))
    more = batch(1)
    for metric in (original, restored):
        metric.learn(metric.second_moments(more), more.view(CLASSES, PER_CLASS, -1).mean(dim=1), PER_CLASS)
    assert torch.equal(original.apply(more), restored.apply(more))


def test_the_metric_is_the_same_inside_a_step_that_computes_in_bfloat16() -> None:
    features = batch()
    expected = learned(features).apply(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(learned(features).apply(features), expected)
