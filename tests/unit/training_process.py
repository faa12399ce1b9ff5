"""One of several processes that torchrun starts: trainings by all of them together; what became of them goes to FOLDER.

FOLDER holds the checkpoint of a training by one process, from which one of them goes on.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from synthesis_stand_ins import RandomFeatureMap, release_of_squares, small_settings
from torch import Tensor

from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.processes import joined
from dpmepf.synthesize import batch_norm
from dpmepf.synthesize import training as training_module
from dpmepf.synthesize.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dpmepf.synthesize.generator import build_generator
from dpmepf.synthesize.parallel import ALONE, TrainingProcesses
from dpmepf.synthesize.training import GeneratorTraining, TrainingCallbacks, generator_configuration, train_generator

STEPS = 20


@dataclass(frozen=True)
class Case:
    """A training: of how many classes, its settings beside those of `small_settings`, and whether it denoises means.

    Images of 3 channels are varied. It begins with a generator of `prior_classes`, if any.
    """

    class_count: int
    settings: dict[str, Any]
    denoised: bool = False
    channels: int = 1
    prior_classes: int = 0


# 15 and 8 images: shares of 7 and 8; of 2, 3 and 3; of 3, 4, 4 and 4.
CASES = {
    "whole batches": Case(3, {"batch_size": 15}),
    "in turns": Case(7, {"batch_size": 10, "micro_batch_size": 3, "mean_memory": 0.5, "second_convolution": True}),
    "denoised": Case(3, {"batch_size": 15}, denoised=True),
    "in colour": Case(3, {"batch_size": 15}, channels=3),
    "with a prior": Case(3, {"batch_size": 15}, prior_classes=5),
}


@dataclass(frozen=True, kw_only=True)
class Forgetting(TrainingProcesses):
    """Processes that sum some of the tensors only."""

    kept: slice

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        super().sum_(tensors[self.kept])


@dataclass(frozen=True, kw_only=True)
class ForgettingGradients(TrainingProcesses):
    """Processes of one batch norm that sum on its way forward, but not on its way back; for one step."""

    calls: list[int] = field(default_factory=list)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self.calls.append(len(tensors))
        if len(self.calls) <= 2:
            super().sum_(tensors)


def forget_sums(training: GeneratorTraining) -> None:
    training.objective.processes = Forgetting(**asdict(training.processes), kept=slice(1, None))


def forget_second_moments(training: GeneratorTraining) -> None:
    training.objective.processes = Forgetting(**asdict(training.processes), kept=slice(2))


def forget_gradients(training: GeneratorTraining) -> None:
    training.processes = Forgetting(**asdict(training.processes), kept=slice(0))


def normalise_own_images(training: GeneratorTraining) -> None:
    batch_norm.share_batch_norm(training.generator, ALONE)


def forget_how_others_depend_on_own_images(training: GeneratorTraining) -> None:
    for module in training.generator.modules():
        if isinstance(module, batch_norm.WholeBatchNorm):
            module.processes = ForgettingGradients(**asdict(training.processes))


PLANTED = [
    forget_sums,
    forget_second_moments,
    forget_gradients,
    normalise_own_images,
    forget_how_others_depend_on_own_images,
]


def trained(
    case: Case,
    processes: TrainingProcesses = ALONE,
    *,
    steps: int = STEPS,
    state: dict[str, Any] | None = None,
    plant: Callable[[GeneratorTraining], None] = lambda training: None,
) -> GeneratorTraining:
    """A training of `case` after `steps` of `STEPS` steps, in float32."""
    feature_map: Any = RandomFeatureMap(case.channels)
    release: Any = release_of_squares(feature_map, class_count=case.class_count, noise_std=0.2)
    settings = small_settings(steps=STEPS, learning_rate=1e-3, **case.settings)
    prior = None
    if case.prior_classes:
        configuration = replace(generator_configuration(release, settings), class_count=case.prior_classes)
        prior = build_generator(configuration, seed=9, device="cpu").eval()
    with mock.patch.multiple(
        training_module,
        autocast=lambda device: nullcontext(),
        NOISY=0.0 if case.denoised else math.inf,
        DENOISING_IMAGES=40,
    ):
        training = GeneratorTraining(release, feature_map, settings, prior=prior, processes=processes)
        if state is not None:
            training.load_state_dict(state)
        plant(training)
        while training.step < steps:
            training.run_step()
    return training


def first_step(training: GeneratorTraining) -> dict[str, Tensor]:
    """Gradient of all weights and the batch norm's running statistics after one step."""
    gradients = [p.grad.flatten() for p in training.generator.parameters() if p.grad is not None]
    statistics = [buffer for name, buffer in training.generator.named_buffers() if "running" in name]
    return {"gradient": torch.cat(gradients), "statistics": torch.cat(statistics)}


def outcome(training: GeneratorTraining) -> dict[str, Any]:
    """Losses, and a hash of all that the next step depends on."""
    return {"losses": training.losses, "hash": _hash(training.state_dict())}


def _hash(state: Any) -> str:
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            digest.update(part.contiguous().numpy().tobytes())
        elif isinstance(part, dict | list | tuple):
            for inner in part.values() if isinstance(part, dict) else part:
                add(inner)
        else:
            digest.update(repr(part).encode())

    add(state)
    return digest.hexdigest()


def save_state(folder: Path, training: GeneratorTraining) -> None:
    state = training.state_dict()
    save_checkpoint(folder, Checkpoint(artifact_sha256="0", settings=training.settings, state=state, seconds=0.0))


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except DpmepfError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def stopped(processes: TrainingProcesses, folder: Path) -> object:
    """A training that only the last process is asked to stop, after its third step; the first writes meanwhile."""
    feature_map: Any = RandomFeatureMap()
    release: Any = release_of_squares(feature_map)
    steps: list[int] = []
    callbacks = TrainingCallbacks(
        on_step=lambda training: steps.append(training.step),
        on_snapshot=lambda training: save_state(folder, training) if processes.first else None,
        stop_requested=lambda: processes.rank == processes.count - 1 and len(steps) == 3,
    )
    return train_generator(release, feature_map, small_settings(), callbacks=callbacks, processes=processes)


def not_finite(processes: TrainingProcesses) -> None:
    """A training in which only the last process computes something that is not finite, in its third step."""
    feature_map: Any = RandomFeatureMap()
    release: Any = release_of_squares(feature_map)
    training = GeneratorTraining(release, feature_map, small_settings(), processes=processes)
    for _ in range(2):
        training.run_step()
    if processes.rank == processes.count - 1:
        training.features_of_step = lambda images: feature_map(images) * math.nan  # type: ignore[assignment]
    training.run_step()


@joined(nothing="", not_again="")
def main(folder: Path) -> None:
    processes = TrainingProcesses.of_torchrun()
    assert processes is not None
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        found[name] = outcome(trained(case, processes)) | first_step(trained(case, processes, steps=1))
    for plant in PLANTED:
        found[plant.__name__] = first_step(trained(CASES["whole batches"], processes, steps=1, plant=plant))
    state = load_checkpoint(folder).state
    found["resumed by several"] = outcome(trained(CASES["in turns"], processes, state=state))
    halfway = trained(CASES["in turns"], processes, steps=STEPS // 2)
    if processes.first:
        (folder / "halfway").mkdir()
        save_state(folder / "halfway", halfway)
    (folder / f"{processes.rank}").mkdir()
    refusals = {
        "stopped": refusal(lambda: stopped(processes, folder / "0")),
        "not finite": refusal(lambda: not_finite(processes)),
        "not the same": refusal(lambda: processes.require_same(bytes([processes.rank]))),
    }
    torch.save({"found": found, "refusals": refusals}, folder / f"{processes.rank}.pt")


def gloo_threads() -> list[str]:
    """Threads of this process that may still want the interpreter when it has ended; none where /proc is missing."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    assert not gloo_threads(), gloo_threads()
