"""One objective, or one whole training step, on a batch of any size, in a process whose peak memory can be measured.

The argument is one JSON object; so is what is printed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from encoders_at_hand import feature_map_of
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
    batch, micro_batch = arguments["batch"], arguments["micro_batch"]
    work, images = (_objective if arguments["scope"] == "objective" else _whole_step)(batch, micro_batch)
    repeats = max(1, IMAGES_MEASURED // batch) if batch >= 256 else 1
    work()  # warm-up
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    per_image = (time.perf_counter() - start) / (repeats * images)
    sys.stdout.write(json.dumps({"per_image": per_image}))


def _objective(batch: int, micro_batch: int | None) -> tuple[Callable[[], None], int]:
    feature_map = feature_map_of("builtin", SIDE)
    objective = MeanEmbeddingObjective(
        class_targets(artifact_of(feature_map)),
        metric=WithinClassMetric(feature_map.segments, ridge=0.3, noise_variance=1e-9),
    )
    classes = torch.arange(CLASSES)
    shape = batch // CLASSES * CLASSES, 3, SIDE, SIDE
    colour = torch.zeros(1, 3, 1, 1, requires_grad=True)  # in place of a generator

    def work() -> None:
        images = torch.rand(shape).add_(colour)  # once in memory, as those of a generator are
        with autocast("cpu"):
            objective.backward(images, classes, feature_map, micro_batch_size=micro_batch)

    return work, shape[0]


def _whole_step(batch: int, micro_batch: int | None) -> tuple[Callable[[], None], int]:
    feature_map = feature_map_of("builtin", SIDE)
    settings = settings_for(batch_size=batch, micro_batch_size=micro_batch)
    training = GeneratorTraining(artifact_of(feature_map), feature_map, settings)
    return training.run_step, training.schedule.images_per_batch


if __name__ == "__main__":
    main()
