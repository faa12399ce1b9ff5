"""(e) How much of what the machine can is used: arithmetic per second, against the fastest that there is here.

That is a product of large matrices or a convolution of many channels: on some processors the one, on some the other.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from embed_part import bare_rate, embedding_rate
from encoders_at_hand import bare_encoder, feature_map_of
from measuring import alternately, seconds_of
from sizes import Sizes
from synth_part import SIDE, WARM_UP_STEPS, artifact_of
from synthetic_sets import write_set
from tables import Part
from torch.utils.flop_counter import FlopCounterMode

from dpmepf.shared.image_sources import open_images
from dpmepf.shared.precision import autocast_dtype, exact_float32
from dpmepf.synthesize.settings import settings_for
from dpmepf.synthesize.training import GeneratorTraining

CONVOLVED = 32, 32  # images, and their side in pixels
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

    dtypes = list(dict.fromkeys([torch.float32, trains_in]))
    sides: dict[str, Callable[[], float]] = {}
    for dtype in dtypes:
        sides[f"product in {dtype}"] = functools.partial(product_rate, dtype, sizes.product, device)
        sides[f"convolution in {dtype}"] = functools.partial(convolution_rate, dtype, sizes.product, device)
    sides["copy"] = lambda: copy_rate(device, sizes.product)
    sides["forward"] = lambda: 1e-9 * of_image * bare_rate(bare, images.repeat(TURNS, 1, 1, 1), sizes.batch)
    sides["step"] = lambda: 1e-9 * of_step * steps()
    with tempfile.TemporaryDirectory() as name:
        repeated = images.repeat(TURNS, 1, 1, 1).permute(0, 2, 3, 1).cpu().numpy()
        source = open_images(write_set("IDX", Path(name) / "idx", repeated))
        sides["embedding"] = lambda: 1e-9 * of_image * embedding_rate(source, feature_map, sizes)
        for side in sides.values():
            side()
        figures = alternately(sides, sizes.repeats)

    part = Part(title=f"(e) built-in encoder, {SIDE} pixels, and generator on {device}, against what the machine can")
    fastest = {}
    for dtype in dtypes:
        product, convolution = figures[f"product in {dtype}"], figures[f"convolution in {dtype}"]
        part.add(f"product of two matrices of {sizes.product:,}², {_name(dtype)}", "GFLOP/s", product)
        part.add(f"convolution, {channels_of(sizes.product)} channels, {_name(dtype)}", "GFLOP/s", convolution)
        fastest[dtype] = [max(both) for both in zip(product, convolution, strict=True)]
    part.add("copying memory, read and written", "GB/s", figures["copy"])
    part.add(f"encoder's forward pass, float32, {of_image / 1e6:,.0f} MFLOP an image", "GFLOP/s", figures["forward"])
    part.add("the same / the faster of both", "%", shares(figures["forward"], fastest[torch.float32]))
    part.add("embedding an IDX file, FLOP of the encoder", "GFLOP/s", figures["embedding"])
    part.add("the same / the faster of both", "%", shares(figures["embedding"], fastest[torch.float32]))
    part.add(f"training step, {_name(trains_in)}, {of_step / 1e9:,.0f} GFLOP", "GFLOP/s", figures["step"])
    part.add("the same / the faster of both", "%", shares(figures["step"], fastest[trains_in]))
    part.notes.append(
        "An addition and a multiplication are two FLOP; those of convolutions and matrix products count, as "
        "torch.utils.flop_counter does. On a GPU float32 is not TF32, in both sides."
    )
    return [part]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _exactly(dtype: torch.dtype) -> AbstractContextManager[None]:
    """As the encoder computes when embedding; training in another type is as free as any."""
    return exact_float32() if dtype == torch.float32 else nullcontext()


def flops_of(work: Callable[[], object]) -> int:
    """FLOP of the convolutions and matrix products in `work`, gradients included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def product_rate(dtype: torch.dtype, size: int, device: str) -> float:
    """GFLOP/s."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with _exactly(dtype):
        return TURNS * 2e-9 * size**3 / seconds_of(lambda: [left @ right for _ in range(TURNS)], device)


def convolution_rate(dtype: torch.dtype, size: int, device: str) -> float:
    """GFLOP/s of one of 3×3, as many channels as `channels_of` says to as many."""
    count, side = CONVOLVED
    channels = channels_of(size)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)
    images = torch.randn(count, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    flops = TURNS * 2 * 9 * channels**2 * count * side**2
    with _exactly(dtype):
        return 1e-9 * flops / seconds_of(lambda: [layer(images) for _ in range(TURNS)], device)


def channels_of(size: int) -> int:
    """Of the convolution beside a product of matrices of `size` rows."""
    return size // 8


def copy_rate(device: str, size: int) -> float:
    """GB/s, of so much that no cache holds it."""
    source = torch.zeros(min(COPIED, 16 * size**2), device=device)
    target = torch.empty_like(source)
    return TURNS * 2e-9 * source.nbytes / seconds_of(lambda: [target.copy_(source) for _ in range(TURNS)], device)


def shares(figures: list[float], ceilings: list[float]) -> list[float]:
    """In per cent, of each turn."""
    return [100 * figure / ceiling for figure, ceiling in zip(figures, ceilings, strict=True)]
