"""The baseline DP-SGD: a classifier trained on the private images themselves, by Opacus. It makes no synthetic set.

What a modeller gives up by learning from a release rather than from the images at the same (ε, δ). The network is the
CNN of `dpmepf-eval` with group norm in place of batch norm, which would let images influence each other's gradients:
one group of all channels, as more groups learned less of public images (ten of Tiny ImageNet's classes, 40 steps, one
run each, in no log: 21 % of them with one group, 19 % with eight, 14 % with the 32 that Opacus would take).

Source of the method: Abadi et al., Deep Learning with Differential Privacy, CCS 2016; of the hyper-parameters: De,
Berrada, Hayes, Smith, Balle, Unlocking High-Accuracy Differentially Private Image Classification through Scale, 2022
(arXiv 2204.13650): large batches, clipping norm 1, plain SGD with a constant learning rate, averaged weights. Nothing
is tuned on the private images, none is augmented (theirs are, 16 times each), and pixels are scaled by constants. It is
a small and short training, far from the best that DP-SGD is known to reach.

Neighbours differ by one record that is added or removed: batches are Poisson samples, and Opacus' PRV accountant
charges them. The number of records enters the sampling rate as if it were public, as it does in every paper that is
compared here. Noise is PyTorch's, not cryptographic: for measurements on public images, never for a release.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus import PrivacyEngine
from opacus.accountants.utils import get_noise_multiplier
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from dpmepf.synthesize.classifiers import SmallCnn

ACCOUNTANT = "prv"
ACCOUNTING_ERROR = 0.01  # of ε, as a share of it; the accountant's figure is an upper bound, this far off at most
PHYSICAL_BATCH = 128  # images whose own gradients are in memory at a time


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained. `batch_size` is the expected one; `passes` over the data, in expectation."""

    passes: int
    batch_size: int = 1024
    learning_rate: float = 1.0
    clipping_norm: float = 1.0
    average_decay: float = 0.98
    groups: int = 1  # of channels, that are normalised together


RECIPES = {"quick": Recipe(passes=3), "standard": Recipe(passes=10), "best": Recipe(passes=40)}


@dataclass(frozen=True, kw_only=True)
class PrivateClassifier:
    """A trained classifier, from uint8 images to class scores, and what its training spent at the target's δ."""

    network: nn.Module
    noise_multiplier: float
    sample_rate: float
    steps: int
    epsilon: float


class ScaledPixels(nn.Module):
    """uint8 0..255 to about -2..2, by constants that no image decides."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 63.75 - 2.0


def noise_multiplier_for(epsilon: float, delta: float, *, sample_rate: float, steps: int) -> float:
    """σ/C with which `steps` Poisson samples are (ε, δ)-DP by the PRV accountant, at most 2 % of ε below it."""
    with _quiet():
        return get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=sample_rate,
            steps=steps,
            accountant=ACCOUNTANT,
            epsilon_tolerance=ACCOUNTING_ERROR * epsilon,
            eps_error=ACCOUNTING_ERROR * epsilon,
        )


def with_group_norm(network: nn.Module, groups: int) -> nn.Module:
    """Put group norm in the place of every batch norm of `network`, and return it."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            network.set_submodule(name, nn.GroupNorm(groups, module.num_features))
    return network


def train_private_classifier(
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    class_count: int,
    epsilon: float,
    delta: float,
    seed: int,
    device: str | torch.device = "cpu",
) -> PrivateClassifier:
    """Train on uint8 N×C×R×R and int64 N at (epsilon, delta); `seed` decides the initial weights and nothing else."""
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        plain = SmallCnn(channels=images.shape[1], resolution=images.shape[2], class_count=class_count)
        plain = with_group_norm(plain, recipe.groups).to(device).train()
        torch.seed()  # samples and noise: different in every run
        average = AveragedModel(plain, avg_fn=_warmed_up_average(recipe.average_decay))
        loader = DataLoader(TensorDataset(images, labels), batch_size=min(recipe.batch_size, len(images)))
        steps = recipe.passes * len(loader)
        noise_multiplier = noise_multiplier_for(epsilon, delta, sample_rate=1 / len(loader), steps=steps)
        engine = PrivacyEngine(accountant=ACCOUNTANT)
        network, optimiser, sampled = engine.make_private(
            module=plain,
            optimizer=torch.optim.SGD(plain.parameters(), lr=recipe.learning_rate),
            data_loader=loader,
            noise_multiplier=noise_multiplier,
            max_grad_norm=recipe.clipping_norm,
            poisson_sampling=True,
        )
        scale = ScaledPixels()
        for _ in range(recipe.passes):
            with BatchMemoryManager(
                data_loader=sampled, max_physical_batch_size=PHYSICAL_BATCH, optimizer=optimiser
            ) as parts:
                for part, truth in parts:
                    optimiser.zero_grad(set_to_none=True)
                    functional.cross_entropy(network(scale(part.to(device))), truth.to(device)).backward()
                    optimiser.step()
                    if not optimiser._is_last_step_skipped:
                        average.update_parameters(plain)
        spent = engine.accountant.get_epsilon(delta, eps_error=ACCOUNTING_ERROR * epsilon)
    if spent > epsilon or sum(count for *_, count in engine.accountant.history) != steps:
        raise RuntimeError(f"the training spent ε = {spent:g} of {epsilon:g}: it went on for more steps than planned")
    return PrivateClassifier(
        network=nn.Sequential(scale, average.module).eval(),
        noise_multiplier=noise_multiplier,
        sample_rate=1 / len(loader),
        steps=steps,
        epsilon=spent,
    )


def _warmed_up_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """As De et al.: an average whose memory grows with the number of steps, so that it forgets the first weights."""

    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(averaged, current, max(1.0 - decay, 9.0 / (10.0 + int(count))))

    return average


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Opacus' warnings: that its noise is not cryptographic (said above), and of hooks that it means to use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield
