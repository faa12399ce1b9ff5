"""Training: Adam on the mean-embedding objective, with a moving average of the weights, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dpmepf.shared.encoders import BUILTIN_WEIGHTS, file_sha256
from dpmepf.shared.errors import DpmepfError, UsageError
from dpmepf.shared.precision import autocast
from dpmepf.synthesize.batch_norm import share_batch_norm
from dpmepf.synthesize.denoising import denoised_means
from dpmepf.synthesize.feature_function import FeatureFunction, in_parts
from dpmepf.synthesize.generator import Generator, GeneratorConfiguration, build_generator
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.objective import MeanEmbeddingObjective
from dpmepf.synthesize.parallel import ALONE, TrainingProcesses
from dpmepf.synthesize.prior import begin_with
from dpmepf.synthesize.probe import probe_for, with_probe
from dpmepf.synthesize.settings import SynthesisSettings
from dpmepf.synthesize.targets import class_targets, length_in_common

if TYPE_CHECKING:
    from dpmepf.artifacts.artifact import Artifact

FEWEST_IMAGES_PER_CLASS = 4
RECALIBRATION_BATCHES = 10
RECALIBRATION_IMAGES = 200
ADAM_BETAS = (0.5, 0.99)
NOISY = 1.0  # expected squared length of a mean's noise from which means are denoised; a mean of features is at most 1
# How long the mean features of photographs are at most. Of the built-in encoder: CIFAR-10 0.28, in grey 0.43, digits
# over photographs 0.40, which random changes improve; Fashion-MNIST 0.55 and MNIST 0.74, which not (docs/CHOICES.md).
MOST_IN_COMMON = 0.5
DENOISED_AFTER = (0.15, 0.3, 0.6)  # shares of the steps: each time the images tell better in which directions they vary
DENOISING_IMAGES = 2_000
DENOISING_NUMBERS = 2**27  # in the features of these images, which are in memory three times


class TrainingError(DpmepfError):
    """Training cannot go on: the loss is not finite, or a checkpoint does not fit."""


class TrainingStopped(DpmepfError):
    """Training was asked to stop and did so after a complete step."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class TrainingCallbacks:
    """What the outside hears of and says to a training run.

    Fields:
        on_start: called once, before the first step.
        on_step: called after every step.
        on_snapshot: called every `snapshot_seconds`, when stopped and at the end; the state is between two steps.
        stop_requested: asked after every step; True, in any process, ends the run with `TrainingStopped`.
    """

    on_start: Callable[[GeneratorTraining], None] = lambda training: None
    on_step: Callable[[GeneratorTraining], None] = lambda training: None
    on_snapshot: Callable[[GeneratorTraining], None] = lambda training: None
    stop_requested: Callable[[], bool] = lambda: False
    snapshot_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class TrainedGenerator:
    """A generator ready to draw, with the losses of its training, one per step."""

    generator: Generator
    losses: tuple[float, ...] = field(repr=False)
    images_per_step: int


def train_generator(
    artifact: Artifact,
    feature_map: FeatureFunction,
    settings: SynthesisSettings,
    *,
    device: str | torch.device = "cpu",
    callbacks: TrainingCallbacks | None = None,
    state: dict[str, Any] | None = None,
    prior: Generator | None = None,
    compiled: Callable[[Tensor], Tensor] | None = None,
    processes: TrainingProcesses = ALONE,
) -> TrainedGenerator:
    """Train a generator whose images have the class means that `artifact` released.

    Guarantee: post-processing; reads nothing but the artifact and the prior, so the release's (ε, δ) is unchanged. What
    the prior learned from counts, too.

    Args:
        artifact: the release.
        feature_map: the one the artifact describes, on `device`.
        settings: how long and how to train.
        device: where to train.
        callbacks: progress, snapshots, a way to stop.
        state: `GeneratorTraining.state_dict()` of an earlier run with the same settings, to go on from; the result
            is that of an uninterrupted run.
        prior: generator that training begins with, of the form of this one but for its classes, on `device`; None:
            random weights.
        compiled: `feature_map`, for the steps; None: itself.
        processes: that train together, each of which calls this with the same artifact, settings and state.

    Raises:
        TrainingError: the loss is not finite, or `state` belongs to another generator.
        TrainingStopped: `callbacks.stop_requested` said so, in this process or another.
        ProcessesError: another process ended.
        UsageError: a batch has fewer images than there are processes.
    """
    callbacks = callbacks or TrainingCallbacks()
    training = GeneratorTraining(
        artifact, feature_map, settings, device=device, prior=prior, compiled=compiled, processes=processes
    )
    if state is not None:
        training.load_state_dict(state)
    callbacks.on_start(training)
    last_snapshot = time.monotonic()
    while training.step < settings.steps:
        training.run_step()
        callbacks.on_step(training)
        stopping = processes.any(callbacks.stop_requested())
        if stopping or time.monotonic() - last_snapshot >= callbacks.snapshot_seconds:
            callbacks.on_snapshot(training)
            last_snapshot = time.monotonic()
        if stopping:
            processes.wait_for_first()  # which writes the checkpoint
            raise TrainingStopped(f"stopped after step {training.step} of {settings.steps}")
    callbacks.on_snapshot(training)
    return TrainedGenerator(
        generator=training.finished_generator(),
        losses=tuple(training.losses),
        images_per_step=training.schedule.images_per_batch,
    )


class GeneratorTraining:
    """The state of a training run between two steps."""

    def __init__(
        self,
        artifact: Artifact,
        feature_map: FeatureFunction,
        settings: SynthesisSettings,
        *,
        device: str | torch.device = "cpu",
        prior: Generator | None = None,
        compiled: Callable[[Tensor], Tensor] | None = None,
        processes: TrainingProcesses = ALONE,
    ) -> None:
        self.settings = settings
        self.processes = processes
        self.device = torch.device(device)
        self.features_of = in_parts(feature_map, settings.micro_batch_size)
        self.features_of_step = feature_map if compiled is None else compiled
        self.configuration = generator_configuration(artifact, settings)
        self.schedule = ClassSchedule(self.configuration.class_count, settings.batch_size)
        self.share = self.schedule.share(processes)
        self.generator = build_generator(self.configuration, seed=settings.seed, device=self.device).train()
        self.targets = class_targets(artifact)
        probe = probe_for(self.targets, seed=settings.seed) if settings.probe else None
        if probe is not None:
            self.targets = with_probe(self.targets, probe)
        if prior is not None:
            means = self.targets.means.to(self.device)
            begin_with(self.generator, prior, means, self.features_of, seed=settings.seed)
        # drawn alike in all processes, but for rounding on other hardware
        processes.take_from_first_(list(self.generator.parameters()))
        self.average = AveragedModel(
            self.generator, multi_avg_fn=_warmed_up_average(settings.average_decay), use_buffers=True
        )
        share_batch_norm(self.generator, processes)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=settings.learning_rate, betas=ADAM_BETAS)
        noise_variance = float(np.median(self.targets.noise_variance))
        self.noisy = self.targets.means.shape[1] * noise_variance > NOISY
        self.objective = MeanEmbeddingObjective(
            self.targets,
            metric=WithinClassMetric(feature_map.segments, ridge=settings.metric_ridge, noise_variance=noise_variance),
            mean_memory=settings.mean_memory,
            device=self.device,
            processes=processes,
        )
        self.random = torch.Generator().manual_seed(settings.seed)
        self.losses: list[float] = []

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return len(self.losses)

    def run_step(self) -> None:
        """Generate a batch and move the weights once.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are as before the step.
        """
        if self.noisy and self.step in [math.ceil(share * self.settings.steps) for share in DENOISED_AFTER]:
            self._denoise_targets()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        classes = self.schedule.next_classes(self.random).to(self.device)
        image_classes = classes.repeat_interleave(self.schedule.images_per_class)
        latents = torch.randn(len(image_classes), self.settings.latent_dimension, generator=self.random)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device):
            images = self.generator(latents[self.share].to(self.device), image_classes[self.share])
            loss = self.objective.backward(
                images,
                classes,
                self.features_of_step,
                per_class=self.schedule.images_per_class,
                micro_batch_size=self.settings.micro_batch_size,
            )
        self.processes.sum_([p.grad for p in self.generator.parameters() if p.grad is not None])
        norm = float(nn.utils.clip_grad_norm_(self.generator.parameters(), self.settings.gradient_clip))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(
                f"the loss is no longer finite at step {self.step + 1}: begin again with --force and a --learning-rate "
                f"below {self.settings.learning_rate:g}"
            )
        self.optimizer.step()
        self.average.update_parameters(self.generator)
        self.losses.append(loss)

    @torch.no_grad()
    def _denoise_targets(self) -> None:
        """Train from now on towards the released means less the noise that no image could have caused."""
        class_count = self.configuration.class_count
        most = min(DENOISING_IMAGES, DENOISING_NUMBERS // self.targets.means.shape[1])
        per_class = max(2, most // class_count)
        chosen = torch.randperm(class_count, generator=self.random)[: max(1, most // per_class)].to(self.device)
        parts = chosen.repeat_interleave(per_class).split(self.schedule.images_per_batch)
        generator, features = self.averaged_generator(), []
        with autocast(self.device):
            for classes in parts:
                latents = torch.randn(len(classes), self.settings.latent_dimension, generator=self.random)
                features.append(self.features_of(generator(latents.to(self.device), classes)).float())
        means, error_variance = denoised_means(
            self.targets.means.to(self.device),
            self.targets.noise_variance,
            torch.cat(features).unflatten(0, (len(chosen), per_class)),
        )
        variance = means.new_tensor([error_variance], dtype=torch.float64)
        self.processes.take_from_first_([means, variance])  # likewise
        self.objective.aim_at(means, error_variance=float(variance))

    def averaged_generator(self) -> Generator:
        """Return the averaged generator itself, in evaluation mode, with averaged batch-norm statistics: a preview."""
        module: Generator = self.average.module.eval()  # type: ignore[assignment]
        return module

    def finished_generator(self) -> Generator:
        """Return a copy of the averaged generator with batch-norm statistics measured for it."""
        generator = build_generator(self.configuration, seed=self.settings.seed, device=self.device)
        generator.load_state_dict(self.average.module.state_dict())
        random = torch.Generator().manual_seed(self.settings.seed)
        with autocast(self.device):
            generator.recalibrate(batches=RECALIBRATION_BATCHES, images_per_batch=RECALIBRATION_IMAGES, random=random)
        return generator.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return everything later steps depend on: tensors, numbers and lists only."""
        return {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "random": self.random.get_state(),
            "waiting_classes": self.schedule.waiting,
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a run with the same settings; `steps` may differ.

        Raises:
            TrainingError: the state belongs to another generator.
        """
        try:
            self.generator.load_state_dict(state["generator"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.objective.load_state_dict(state["objective"])
            self.random.set_state(state["random"])
            self.schedule.waiting = state["waiting_classes"]
            self.losses = list(state["losses"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise TrainingError("the checkpoint does not fit this artifact: begin again with --force") from error


class ClassSchedule:
    """Which classes a batch holds, equally many images of each.

    Every class if the batch has room for a few images of each; otherwise the classes take turns, each appearing once
    before any appears again.
    """

    def __init__(self, class_count: int, batch_size: int) -> None:
        self.class_count = class_count
        self.images_per_class = min(max(FEWEST_IMAGES_PER_CLASS, batch_size // class_count), batch_size)
        self.classes_per_batch = min(class_count, batch_size // self.images_per_class)
        self.waiting = torch.empty(0, dtype=torch.int64)

    @property
    def images_per_batch(self) -> int:
        """Number of images in every batch: the batch size, rounded down to full classes."""
        return self.images_per_class * self.classes_per_batch

    def share(self, processes: TrainingProcesses) -> slice:
        """Which images of a batch are this process's.

        Raises:
            UsageError: there are fewer images than processes.
        """
        if self.images_per_batch < processes.count:
            raise UsageError(
                f"{processes.count} processes cannot share the {self.images_per_batch} images of a step: start fewer, "
                "or choose a larger --batch-size"
            )
        return processes.share(self.images_per_batch)

    def next_classes(self, random: torch.Generator) -> Tensor:
        """Return int64 classes_per_batch distinct classes."""
        if self.classes_per_batch == self.class_count:
            return torch.arange(self.class_count)
        if len(self.waiting) < self.classes_per_batch:
            order = torch.randperm(self.class_count, generator=random)
            still_waiting = torch.isin(order, self.waiting)  # last in the new round: never twice in a batch
            self.waiting = torch.cat([self.waiting, order[~still_waiting], order[still_waiting]])
        chosen, self.waiting = self.waiting.split([self.classes_per_batch, len(self.waiting) - self.classes_per_batch])
        return chosen


def generator_configuration(artifact: Artifact, settings: SynthesisSettings) -> GeneratorConfiguration:
    """Return the shape of the generator for `artifact`'s images.

    Unless told, images in colour are varied: photographs are taken from anywhere and in any light. Grey ones are varied
    only where they have no more in common than photographs have: others, such as digits, were drawn worse with it.
    """
    channels = artifact.feature_map.channels
    return GeneratorConfiguration(
        class_count=len(artifact.classes),
        resolution=artifact.feature_map.resolution,
        channels=channels,
        base_channels=settings.base_channels,
        second_convolution=settings.second_convolution,
        latent_dimension=settings.latent_dimension,
        varied=(channels == 3 or _are_like_photographs(artifact)) if settings.vary is None else settings.vary,
    )


def _are_like_photographs(artifact: Artifact) -> bool:
    """Whether images have as little in common as photographs, by features of which it is known what that means."""
    described = artifact.feature_map
    if described.normalisation != "whitened" or described.weights_sha256 != file_sha256(BUILTIN_WEIGHTS):
        return False
    length = length_in_common(artifact)
    return length is not None and length < MOST_IN_COMMON


def _warmed_up_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """A moving average whose memory grows with the number of steps, so that a short run forgets its beginning."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], count: Tensor | int) -> None:
        share = 1.0 - min(decay, (1.0 + int(count)) / (10.0 + int(count)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, share)
        else:  # counters
            torch._foreach_copy_(averages, currents)

    return update
