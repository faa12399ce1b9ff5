"""The objective is unbiased, and its gradient is that of its definition, however the batch is divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthesis_stand_ins import RandomFeatureMap
from torch import Tensor

from dpmepf.shared.feature_map import Segment
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.objective import MeanEmbeddingObjective
from dpmepf.synthesize.targets import ClassTargets


def targets(means: Tensor, *, noise_variance: float = 0.0) -> ClassTargets:
    count = len(means)
    return ClassTargets(means=means.float(), counts=np.ones(count), noise_variance=np.full(count, noise_variance))


class FixedMetric(WithinClassMetric):
    """A metric that is given, not learned: for one segment of one position, so that A is any D×D matrix."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((Segment("all", 1, 0, len(matrix), len(matrix)),), ridge=1.0, noise_variance=0.0)
        self.inverses = [matrix]

    def learn(self, second_moments: list[Tensor], means: Tensor, per_class: int) -> None:
        pass


def naive_loss(features: Tensor, means: Tensor, classes: Tensor, matrix: Tensor) -> Tensor:
    """The definition, pair by pair."""
    rows = features.view(len(classes), -1, features.shape[1])
    losses = []
    for class_rows, mean in zip(rows, means[classes], strict=True):
        b = len(class_rows)
        pairs = [class_rows[i] @ matrix @ class_rows[k] for i in range(b) for k in range(b) if i != k]
        repulsion = torch.stack(pairs).mean() if pairs else torch.zeros(())
        losses.append(mean @ matrix @ mean - 2 * mean @ matrix @ class_rows.mean(0) + repulsion)
    return torch.stack(losses).mean()


def identity(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("per_class", [1, 2, 5])
def test_loss_and_gradient_are_those_of_the_definition(per_class: int) -> None:
    random = torch.Generator().manual_seed(0)
    means, root = torch.randn(4, 7, generator=random), torch.randn(7, 7, generator=random)
    matrix = root @ root.T
    classes = torch.tensor([3, 0, 1])
    features = torch.randn(3 * per_class, 7, generator=random, requires_grad=True)
    (gradient,) = torch.autograd.grad(naive_loss(features, means, classes, matrix), features)
    expected = naive_loss(features, means, classes, torch.eye(7))  # what is reported is Euclidean
    objective = MeanEmbeddingObjective(targets(means), metric=FixedMetric(matrix))
    loss = objective.backward(features, classes, identity)
    torch.testing.assert_close(features.grad, gradient, rtol=1e-4, atol=1e-6)
    if per_class > 1:  # a single image has no pair: the value then falls back to the plug-in
        assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 5, 11])
@pytest.mark.parametrize("mean_memory", [0.0, 0.7])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch_size: int, mean_memory: float) -> None:
    feature_map = RandomFeatureMap()
    classes = torch.tensor([1, 0, 2])
    means = torch.rand(3, feature_map.dimension, generator=torch.Generator().manual_seed(0))
    gradients, losses = [], []
    for size in (None, micro_batch_size):
        metric = WithinClassMetric(feature_map.segments, ridge=0.3, noise_variance=0.0)
        objective = MeanEmbeddingObjective(targets(means), metric=metric, mean_memory=mean_memory)
        for seed in (1, 2):  # the second step uses what the first remembered
            leaf = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(seed), requires_grad=True)
            losses.append(objective.backward(leaf * 1.0, classes, feature_map, micro_batch_size=size))
            assert leaf.grad is not None
            gradients.append(leaf.grad)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    for whole, parts in zip(gradients[:2], gradients[2:], strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


def test_micro_batches_never_send_more_images_through_the_encoder_at_once() -> None:
    sizes = []

    def recording(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    objective = MeanEmbeddingObjective(targets(torch.rand(2, 3)))
    objective.backward(torch.rand(10, 3, requires_grad=True) * 1.0, torch.arange(2), recording, micro_batch_size=4)
    assert sizes == [4, 4, 2, 4, 4, 2]


def test_the_loss_is_an_unbiased_estimate_of_the_squared_distance() -> None:
    """2,000 batches of 3; the plug-in estimate is too large by trace/3 = 1.33, 40 standard errors."""
    random = torch.Generator().manual_seed(0)
    mean, released = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0, 0.0]])
    objective = MeanEmbeddingObjective(targets(released))
    losses, plug_ins = [], []
    for _ in range(2000):
        features = (mean + torch.randn(3, 4, generator=random)).requires_grad_()
        losses.append(objective.backward(features, torch.arange(1), identity))
        plug_ins.append(float((released[0] - features.detach().mean(0)).square().sum()))
    error = np.std(losses) / 2000**0.5
    assert abs(np.mean(losses) - 5.0) < 5 * error
    assert abs(np.mean(plug_ins) - 5.0) > 5 * error


def test_the_expected_noise_of_the_release_is_subtracted_from_the_loss() -> None:
    features = torch.ones(4, 5, requires_grad=True)
    objective = MeanEmbeddingObjective(targets(torch.ones(1, 5), noise_variance=0.25))
    assert objective.backward(features, torch.arange(1), identity) == pytest.approx(-5 * 0.25)


def test_for_features_of_norm_one_the_repulsion_is_the_plug_in_scaled_by_b_over_b_minus_one() -> None:
    """Tangential part only: along φ itself the normalisation has no gradient."""
    random = torch.Generator().manual_seed(0)
    b = 6
    raw = torch.randn(b, 9, generator=random, requires_grad=True)
    objective = MeanEmbeddingObjective(targets(torch.zeros(1, 9)))
    objective.backward(torch.nn.functional.normalize(raw, dim=1), torch.arange(1), identity)
    again = raw.detach().requires_grad_()
    plug_in = torch.nn.functional.normalize(again, dim=1).mean(0).square().sum() * b / (b - 1)
    (expected,) = torch.autograd.grad(plug_in, again)
    torch.testing.assert_close(raw.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_mostly_noisy_class_pulls_less() -> None:
    means = torch.rand(2, 4)
    noisy = ClassTargets(means=means, counts=np.ones(2), noise_variance=np.array([0.0, 1.0]))
    features = torch.zeros(4, 4, requires_grad=True)
    MeanEmbeddingObjective(noisy).backward(features, torch.arange(2), identity)
    assert features.grad is not None
    pulls = features.grad.view(2, 2, 4).norm(dim=(1, 2)) / means.norm(dim=1)
    assert float(pulls[0] / pulls[1]) == pytest.approx(5.0, rel=1e-4)  # 1 against 1/(1 + 4·1)


def test_remembered_means_repel_along_with_the_batch_and_are_restored_from_a_state() -> None:
    means = torch.zeros(2, 3)
    objective = MeanEmbeddingObjective(targets(means), mean_memory=0.75)
    first = torch.full((2, 3), 4.0, requires_grad=True)
    objective.backward(first, torch.tensor([1]), identity)
    restored = MeanEmbeddingObjective(targets(means), mean_memory=0.75)
    restored.load_state_dict(objective.state_dict())
    second = torch.full((2, 3), 8.0, requires_grad=True)
    restored.backward(second, torch.tensor([1]), identity)
    # 2/b · (0.75·4 + 0.25·8)
    torch.testing.assert_close(second.grad, torch.full((2, 3), 5.0))
    assert restored.remembered_means is not None
    torch.testing.assert_close(restored.remembered_means[1], torch.full((3,), 0.75 * 4 + 0.25 * 8))


def test_what_is_aimed_at_decides_the_gradient_and_not_the_loss_and_is_restored_from_a_state() -> None:
    random = torch.Generator().manual_seed(0)
    means, aim = torch.randn(2, 5, generator=random), torch.randn(2, 5, generator=random)
    features, classes = torch.randn(6, 5, generator=random), torch.tensor([0, 1])

    def gradient_and_loss(objective: MeanEmbeddingObjective) -> tuple[Tensor, float]:
        leaf = features.clone().requires_grad_()
        loss = objective.backward(leaf, classes, identity)
        assert leaf.grad is not None
        return leaf.grad, loss

    of_released, of_aim = MeanEmbeddingObjective(targets(means)), MeanEmbeddingObjective(targets(aim))
    objective, restored = MeanEmbeddingObjective(targets(means)), MeanEmbeddingObjective(targets(means))
    objective.aim_at(aim, error_variance=0.1)
    restored.load_state_dict(objective.state_dict())
    for aimed in (objective, restored):
        gradient, loss = gradient_and_loss(aimed)
        assert torch.equal(gradient, gradient_and_loss(of_aim)[0])
        assert loss == gradient_and_loss(of_released)[1]
