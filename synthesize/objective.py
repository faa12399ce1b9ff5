"""The objective: per class, the squared distance between the released and the generated mean features.

For a class with released mean m, b generated images with features φ_1..φ_b, and a metric A,

    loss = ⟨m, m⟩ − 2⟨m, mean(φ)⟩ + 1/(b(b−1)) Σ_{i≠k} ⟨φ_i, φ_k⟩,   ⟨u, v⟩ = uᵀAv,

an unbiased estimate of ‖m − E φ‖². The plug-in ‖m − mean(φ)‖² would also count the b pairs of an image with itself;
leaving those out is what scales repulsion by b/(b−1). Its gradient with respect to φ_i is known in closed form,

    2/b · A(mean of the others' φ − m),

so it needs no more than the class's mean: one pass without gradients finds that, and micro-batches then go through
the encoder one after another with exactly the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.parallel import ALONE, TrainingProcesses
from dpmepf.synthesize.targets import ClassTargets


class MeanEmbeddingObjective:
    """Distance of generated to released mean features, and its gradient with respect to generated images.

    Args:
        targets: released class means.
        metric: A, which learns from every batch; None: Euclidean. The loss that is returned is Euclidean always, so
            that it compares between steps and runs.
        mean_memory: share, in [0, 1), of the previous estimate of each class's generated mean in the mean that
            images are repelled from. Less variance, at the price of lag; 0 is the unbiased estimate above.
        device: where features are computed.
        processes: among which the images of a batch are shared.
    """

    def __init__(
        self,
        targets: ClassTargets,
        *,
        metric: WithinClassMetric | None = None,
        mean_memory: float = 0.0,
        device: str | torch.device = "cpu",
        processes: TrainingProcesses = ALONE,
    ) -> None:
        self.released = targets.means.to(device)
        self.aim = self.released
        self.metric = metric
        self.processes = processes
        self.class_weights = torch.as_tensor(targets.class_weights, dtype=torch.float32, device=device)
        noise_variance = torch.as_tensor(targets.noise_variance, dtype=torch.float32, device=device)
        self.noise_energy = noise_variance * self.released.shape[1]  # K
        self.mean_memory = mean_memory
        self.remembered_means = torch.zeros_like(self.released) if mean_memory else None
        self.remembered = torch.zeros(len(self.released), dtype=torch.bool, device=device)

    def backward(
        self,
        images: Tensor,
        classes: Tensor,
        features_of: Callable[[Tensor], Tensor],
        *,
        per_class: int | None = None,
        micro_batch_size: int | None = None,
    ) -> float:
        """Add the loss's gradient to whatever `images` depend on; return the loss.

        Args:
            images: N×C×R×R with a graph behind them; class by class, equally many of each. Of several processes, each
                passes its share of the batch, and gets the gradient of its own images.
            classes: int64, the distinct classes of the batch, in the order of `images`.
            features_of: the feature map, N×C×R×R -> N×D.
            per_class: images of each class in the whole batch; None: `images` are the whole batch.
            micro_batch_size: images that pass the feature map at a time with gradients; None: all.

        Returns:
            Mean over `classes` of the unbiased squared distance, less the expected squared length of the released
            noise: around zero when the generated means are where the true ones are. Possibly negative.
        """
        per_class = per_class or len(images) // len(classes)
        slots = torch.arange(len(classes), device=images.device).repeat_interleave(per_class)  # image -> its class
        slots = slots[self.processes.share(len(slots))]
        sums = torch.zeros(len(classes), self.released.shape[1], device=images.device)
        squares = torch.zeros(len(classes), device=images.device)  # squared lengths of features, summed
        second_moments: list[Tensor] = []  # summed, too

        def accumulate(features: Tensor, part: slice) -> None:
            sums.index_add_(0, slots[part], features)
            squares.index_add_(0, slots[part], features.square().sum(dim=1))
            if self.metric is not None:
                of_part = self.metric.second_moments(features)
                if not second_moments:
                    second_moments.extend(torch.zeros_like(moment) for moment in of_part)
                for total, moment in zip(second_moments, of_part, strict=True):
                    total += moment

        def finish_sums() -> None:
            self.processes.sum_([sums, squares, *second_moments])
            if self.metric is not None:
                self.metric.learn(second_moments, sums / per_class, per_class)

        def gradient(features: Tensor, part: slice) -> Tensor:
            return torch.addcmul(pulls[slots[part]], self._measured(features), own_shares[slots[part]], value=-1)

        if micro_batch_size is None or micro_batch_size >= len(images):
            features = features_of(images).float()
            accumulate(features.detach(), slice(None))
            finish_sums()
            pulls, own_shares = self._class_gradients(classes, sums, per_class)
            features.backward(gradient(features.detach(), slice(None)))
        else:
            leaf = images.detach()
            parts = [slice(start, start + micro_batch_size) for start in range(0, len(images), micro_batch_size)]
            with torch.no_grad():
                for part in parts:
                    accumulate(features_of(leaf[part]).float(), part)
            finish_sums()
            pulls, own_shares = self._class_gradients(classes, sums, per_class)
            image_gradient = torch.empty_like(leaf)
            for part in parts:
                part_images = leaf[part].requires_grad_()
                features = features_of(part_images).float()
                (image_gradient[part],) = torch.autograd.grad(features, part_images, gradient(features.detach(), part))
            images.backward(image_gradient)
        self._remember(classes, sums / per_class)
        return self._loss(classes, sums / per_class, squares / per_class, per_class)

    def aim_at(self, means: Tensor, *, error_variance: float) -> None:
        """Train towards better estimates of the true means than the released ones, which losses still refer to.

        Args:
            means: K×D.
            error_variance: of one coordinate.
        """
        self.aim = means
        if self.metric is not None:
            self.metric.noise_variance = error_variance

    def state_dict(self) -> dict[str, Any]:
        """Return what later steps depend on: the metric, the remembered means and what is aimed at, if any."""
        state: dict[str, Any] = {}
        if self.aim is not self.released:
            state["aim"] = self.aim
        if self.metric is not None:
            state["metric"] = self.metric.state_dict()
        if self.remembered_means is not None:
            state |= {"remembered_means": self.remembered_means, "remembered": self.remembered}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "aim" in state:
            self.aim = state["aim"].to(self.released.device)
        if self.metric is not None:
            self.metric.load_state_dict(state["metric"], self.released.device)
        if self.remembered_means is not None:
            self.remembered_means.copy_(state["remembered_means"])
            self.remembered.copy_(state["remembered"])

    def _class_gradients(self, classes: Tensor, sums: Tensor, per_class: int) -> tuple[Tensor, Tensor]:
        """What the gradients of `classes` (K) have in common, from sums of features K×D.

        Returns: K×D and K×1, of which an image with features φ has the gradient first − second · Aφ.
        """
        # With one image of a class there are no others, and no unbiased estimate of the repulsion: attraction alone.
        own_shares = sums.new_full((len(classes), 1), 1 / max(per_class - 1, 1))
        repulsion = sums * own_shares
        if self.remembered_means is not None:
            memory = self.mean_memory if per_class > 1 else 1.0
            share = (self.remembered[classes] * memory)[:, None]
            repulsion = torch.lerp(repulsion, self.remembered_means[classes], share)
            own_shares *= 1 - share
        scale = 2.0 / (per_class * len(classes)) * self.class_weights[classes][:, None]
        return scale * self._measured(repulsion - self.aim[classes]), scale * own_shares

    def _measured(self, vectors: Tensor) -> Tensor:
        return vectors if self.metric is None else self.metric.apply(vectors)

    def _loss(self, classes: Tensor, means: Tensor, squares: Tensor, per_class: int) -> float:
        released = self.released[classes]
        pairs = means.square().sum(dim=1)  # ‖mean φ‖², the pairs of an image with itself included
        if per_class > 1:
            pairs = (per_class * pairs - squares) / (per_class - 1)
        distances = (released * (released - 2.0 * means)).sum(dim=1) + pairs - self.noise_energy[classes]
        return float(distances.mean())

    def _remember(self, classes: Tensor, means: Tensor) -> None:
        if self.remembered_means is not None:
            share = (self.remembered[classes] * self.mean_memory)[:, None]
            self.remembered_means[classes] = torch.lerp(means, self.remembered_means[classes], share)
            self.remembered[classes] = True
