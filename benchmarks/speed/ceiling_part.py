"""(e) How much of what the machine can is used: arithmetic per second, against the largest matrix products here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from embed_part import bare_rate
from encoders_at_hand import bare_encoder, feature_map_of
from measuring import alternately, seconds_of
from sizes import Sizes
from synth_part import SIDE, WARM_UP_STEPS, artifact_of
from tables import Part
from torch.utils.flop_counter import FlopCounterMode

from dpmepf.shared.precision import autocast_dtype, exact_float32
from dpmepf.synthesize.settings import settings_for
from dpmepf.synthesize.training import GeneratorTraining

COPIED = 2**26  # float32, a copy of which is read and written
TURNS = 5


def measure(sizes: Sizes, report: Callable[[str], None]) -> list[Part]:
    report("ceilings")
    device = sizes.device
    trains_in = autocast_dtype(device) or torch.float32
    feature_map = feature_map_of("builtin", SIDE, device=device)
    images = torch.randint(256, (sizes.batch, 3, SIDE, SIDE), dtype=torch.uint8, device=device)
    bare = bare_encoder(feature_map)
    training = GeneratorTraining(
        artifact_of(feature_map), feature_map, settings_for(batch_size=sizes.synth_batches[0]), device=device
    )
    for _ in range(WARM_UP_STEPS):
        training.run_step()
    of_image = flops_of(lambda: bare_rate(bare, images, sizes.batch)) / len(images)
    of_step = flops_of(training.run_step)

    def steps() -> float:
        return sizes.synth_steps / seconds_of(lambda: [training.run_step() for _ in range(sizes.synth_steps)], device)

    sides: dict[str, Callable[[], float]] = {
        "float32": lambda: product_rate(torch.float32, sizes.product, device),
        "trained in": lambda: product_rate(trains_in, sizes.product, device),
        "copy": lambda: copy_rate(device, sizes.product),
        "forward": lambda: 1e-9 * of_image * bare_rate(bare, images.repeat(TURNS, 1, 1, 1), sizes.batch),
        "step": lambda: 1e-9 * of_step * steps(),
    }
    for side in sides.values():
        side()
    figures = alternately(sides, sizes.repeats)
    name = str(trains_in).removeprefix("torch.")
    part = Part(title=f"(e) built-in encoder, {SIDE} pixels, and generator on {device}, against what the machine can")
    part.add(f"product of two float32 matrices of {sizes.product:,}²", "GFLOP/s", figures["float32"])
    if trains_in != torch.float32:
        part.add(f"the same, {name}", "GFLOP/s", figures["trained in"])
    part.add("copying memory, read and written", "GB/s", figures["copy"])
    part.add(f"encoder's forward pass, float32, {of_image / 1e6:,.0f} MFLOP an image", "GFLOP/s", figures["forward"])
    part.add("of the float32 product", "%", shares(figures["forward"], figures["float32"]))
    part.add(f"training step, {name}, {of_step / 1e9:,.0f} GFLOP", "GFLOP/s", figures["step"])
    part.add(f"of the {name} product", "%", shares(figures["step"], figures["trained in"]))
    part.notes.append(
        "An addition and a multiplication are two FLOP; those of convolutions and matrix products count, as "
        "torch.utils.flop_counter does. On a GPU float32 is not TF32, in both sides."
    )
    return [part]


def flops_of(work: Callable[[], object]) -> int:
    """FLOP of the convolutions and matrix products in `work`, gradients included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def product_rate(dtype: torch.dtype, size: int, device: str) -> float:
    """GFLOP/s."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with exact_float32():
        return TURNS * 2e-9 * size**3 / seconds_of(lambda: [left @ right for _ in range(TURNS)], device)


def copy_rate(device: str, size: int) -> float:
    """GB/s, of so much that no cache holds it."""
    source = torch.zeros(min(COPIED, 16 * size**2), device=device)
    target = torch.empty_like(source)
    return TURNS * 2e-9 * source.nbytes / seconds_of(lambda: [target.copy_(source) for _ in range(TURNS)], device)


def shares(figures: list[float], ceilings: list[float]) -> list[float]:
    """In per cent, of each turn."""
    return [100 * figure / ceiling for figure, ceiling in zip(figures, ceilings, strict=True)]
