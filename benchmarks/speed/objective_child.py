"""One objective, or one whole training step, on a batch of any size, in a process whose peak memory can be measured.

The argument is one JSON object; so is what is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from encoders_at_hand import feature_map_of
from measuring import seconds_of
from synth_part import artifact_of
from synthetic_sets import CLASSES

from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.precision import autocast
from dpmepf.synthesize.metric import WithinClassMetric
from dpmepf.synthesize.objective import MeanEmbeddingObjective
from dpmepf.synthesize.settings import settings_for
from dpmepf.synthesize.targets import class_targets
from dpmepf.synthesize.training import GeneratorTraining

SIDE = 32
IMAGES_MEASURED = 4_096  # at least, in small batches


def main() -> None:
    arguments = json.loads(sys.argv[1])
    torch.set_num_threads(arguments["threads"])
    keep_freed_memory()  # as the command does
    batch, micro_batch, device = arguments["batch"], arguments["micro_batch"], arguments["device"]
    work, images = (_objective if arguments["scope"] == "objective" else _whole_step)(batch, micro_batch, device)
    repeats = max(1, IMAGES_MEASURED // batch) if batch >= 256 else 1
    work()  # warm-up
    per_image = seconds_of(lambda: [work() for _ in range(repeats)], device) / (repeats * images)
    found = {"per_image": per_image}
    if torch.device(device).type == "cuda":  # the process's own peak is of no interest then
        found["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    sys.stdout.write(json.dumps(found))


def _objective(batch: int, micro_batch: int | None, device: str) -> tuple[Callable[[], None], int]:
    feature_map = feature_map_of("builtin", SIDE, device=device)
    objective = MeanEmbeddingObjective(
        class_targets(artifact_of(feature_map)),
        metric=WithinClassMetric(feature_map.segments, ridge=0.3, noise_variance=1e-9),
        device=device,
    )
    classes = torch.arange(CLASSES, device=device)
    shape = batch // CLASSES * CLASSES, 3, SIDE, SIDE
    colour = torch.zeros(1, 3, 1, 1, requires_grad=True, device=device)  # in place of a generator

    def work() -> None:
        images = torch.rand(shape, device=device).add_(colour)  # once in memory, as those of a generator are
        with autocast(device):
            objective.backward(images, classes, feature_map, micro_batch_size=micro_batch)

    return work, shape[0]


def _whole_step(batch: int, micro_batch: int | None, device: str) -> tuple[Callable[[], None], int]:
    feature_map = feature_map_of("builtin", SIDE, device=device)
    settings = settings_for(batch_size=batch, micro_batch_size=micro_batch)
    training = GeneratorTraining(artifact_of(feature_map), feature_map, settings, device=device)
    return training.run_step, training.schedule.images_per_batch


if __name__ == "__main__":
    main()
