"""(c) Synthesis: training steps/s against the bare forward and backward pass; large batches by two passes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from encoders_at_hand import feature_map_of
from measuring import alternately, ratios, run_script, seconds_of
from sizes import Sizes
from synthetic_sets import CLASSES
from tables import Part, Target
from torch import Tensor

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.ledger import plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.sensitivity import count_weight_lattice
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import FeatureMap
from dpmepf.shared.precision import autocast, autocast_dtype
from dpmepf.synthesize.compilation import compiled_feature_map
from dpmepf.synthesize.settings import SynthesisSettings, settings_for
from dpmepf.synthesize.training import GeneratorTraining

LEAST_OF_BARE = 0.85
MOST_OF_SMALL_COST = 1.4
MOST_OF_SMALL_MEMORY = 1.1
RECORDS_PER_CLASS = 5_000
SIDE = 32
WARM_UP_STEPS = 6  # beyond them the metric is inverted every 20th step only


def measure(sizes: Sizes, report: Callable[[str], None]) -> list[Part]:
    parts = []
    feature_map = feature_map_of("builtin", SIDE, device=sizes.device)
    artifact = artifact_of(feature_map)
    for batch in sizes.synth_batches:
        report(f"synth: {SIDE} pixels, batch {batch}")
        parts.append(_steps(artifact, feature_map, SIDE, settings_for(batch_size=batch), sizes))
    report(f"synth: batch {sizes.large_batch:,} in two passes")
    parts.append(_two_passes(sizes))
    return parts


def artifact_of(feature_map: FeatureMap) -> Artifact:
    """A release of class means of random images: what is trained towards does not change how long a step takes."""
    side, channels = feature_map.description.resolution, feature_map.description.channels
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        images = torch.rand(CLASSES, channels, side, side, generator=random)
        means = feature_map(images.to(feature_map.pixel_mean.device)).double().cpu().numpy()
    ledger = plan_release(
        epsilon=2.0,
        delta=1e-6,
        relation=NeighbouringRelation.ADD_OR_REMOVE_ONE,
        feature_dimension=feature_map.dimension,
        class_count=CLASSES,
        non_negative_features=feature_map.non_negative,
    )
    step = 2.0**ledger.coarsening_exponent
    unit, weight = 2.0**ledger.lattice_exponent / step, count_weight_lattice(ledger.lattice_exponent) / step
    return Artifact(
        noisy_sums=np.rint(RECORDS_PER_CLASS * means * unit).astype(np.int64),
        noisy_counts=np.full(CLASSES, round(RECORDS_PER_CLASS * weight)),
        classes=tuple(str(label) for label in range(CLASSES)),
        feature_map=feature_map.description,
        ledger=ledger,
    )


def _steps(artifact: Artifact, feature_map: FeatureMap, side: int, settings: SynthesisSettings, sizes: Sizes) -> Part:
    training = _warmed_up(artifact, feature_map, settings, sizes)

    def bare_step(from_all: bool = False) -> None:
        """Generator and encoder forward and back, from the last activation or from all, without an update."""
        classes = torch.arange(CLASSES, device=sizes.device).repeat_interleave(training.schedule.images_per_class)
        latents = torch.randn(len(classes), settings.latent_dimension, device=sizes.device)
        with autocast(sizes.device):
            images = training.generator(latents, classes)
            pixels = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            found = list(feature_map.extractor(pixels).values())
            ends = found if from_all else found[-1:]
            torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
        training.generator.zero_grad(set_to_none=True)

    def rate(step: Callable[[], None]) -> float:
        return sizes.synth_steps / seconds_of(lambda: [step() for _ in range(sizes.synth_steps)], sizes.device)

    bare_step()
    bare_step(from_all=True)
    sides = {
        "ours": lambda: rate(training.run_step),
        "bare": lambda: rate(bare_step),
        "from all": lambda: rate(lambda: bare_step(from_all=True)),
    }
    notes = []
    if sizes.compiling:
        try:
            compiled = compiled_feature_map(feature_map, images=training.schedule.images_per_batch)
        except UsageError as error:
            notes.append(str(error))
        else:
            sides["compiled"] = functools.partial(
                rate, _warmed_up(artifact, feature_map, settings, sizes, compiled=compiled).run_step
            )
    figures = alternately(sides, sizes.repeats)
    part = Part(
        title=f"(c) synth: {settings.preset} preset, {side} pixels, RGB, batch {training.schedule.images_per_batch}, "
        f"{autocast_dtype(sizes.device) or torch.float32}".replace("torch.", "")
    )
    part.add("bare forward and backward of generator and encoder", "steps/s", figures["bare"])
    part.add("the same, back from all eight activations", "steps/s", figures["from all"])
    part.add("training step", "steps/s", figures["ours"])
    part.add("training step / bare", "ratio", ratios(figures, "ours", "bare"), Target(at_least=LEAST_OF_BARE))
    part.add("training step / bare from all activations", "ratio", ratios(figures, "ours", "from all"))
    if "compiled" in sides:
        part.add("the same with --compile / without", "ratio", ratios(figures, "compiled", "ours"))
    part.notes.append(
        "The bare pass goes back from the encoder's last activation only; the method needs the gradients of all, and a "
        "step adds pooling, mean embedding, metric, Adam and the weight average."
    )
    part.notes += notes
    return part


def _warmed_up(
    artifact: Artifact,
    feature_map: FeatureMap,
    settings: SynthesisSettings,
    sizes: Sizes,
    compiled: Callable[[Tensor], Tensor] | None = None,
) -> GeneratorTraining:
    training = GeneratorTraining(artifact, feature_map, settings, device=sizes.device, compiled=compiled)
    for _ in range(WARM_UP_STEPS):
        training.run_step()
    return training


def _two_passes(sizes: Sizes) -> Part:
    """Each side in processes of its own, in turns, so that each has a peak of its own."""
    part = Part(
        title=f"(c) synth: the objective on {sizes.large_batch:,} images, {sizes.small_batch} at a time in two passes, "
        f"against {sizes.small_batch} at once"
    )

    def child(scope: str, batch: int, micro: int | None) -> dict[str, float]:
        options = {"batch": batch, "micro_batch": micro, "device": sizes.device, "threads": torch.get_num_threads()}
        return run_script("objective_child.py", scope=scope, **options)

    for scope in sizes.two_pass_scopes:
        small, large = [], []
        for _ in range(sizes.repeats):
            small.append(child(scope, sizes.small_batch, None))
            large.append(child(scope, sizes.large_batch, sizes.small_batch))
        cost = [a["per_image"] / b["per_image"] for a, b in zip(large, small, strict=True)]
        memory = [a["peak_mib"] / b["peak_mib"] for a, b in zip(large, small, strict=True)]
        is_target = scope == "objective"
        part.add(
            f"{scope}: one batch of {sizes.small_batch}", "µs/image", [1e6 * found["per_image"] for found in small]
        )
        part.add(f"{scope}: {sizes.large_batch:,} in two passes", "µs/image", [1e6 * f["per_image"] for f in large])
        part.add(f"{scope}: cost per image", "ratio", cost, Target(at_most=MOST_OF_SMALL_COST) if is_target else None)
        part.add(f"{scope}: peak memory, {sizes.small_batch}", "MiB", [found["peak_mib"] for found in small])
        part.add(f"{scope}: peak memory, {sizes.large_batch:,}", "MiB", [found["peak_mib"] for found in large])
        part.add(f"{scope}: peak memory", "ratio", memory, Target(at_most=MOST_OF_SMALL_MEMORY) if is_target else None)
    part.notes.append(
        "The objective begins at images that are there already. A whole step makes them too, and its generator keeps "
        "all of the batch, whose batch norm belongs together: two passes spare the encoder's memory, not that. "
        f"Batches are of as many images as {CLASSES} classes share evenly; on a CPU peaks are whole processes'."
    )
    return part
