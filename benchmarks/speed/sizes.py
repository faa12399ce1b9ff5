"""How much is measured: by default 20 to 40 minutes on two cores, or next to nothing, for a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """device: "cpu" or a GPU. embed_cases: encoder, side in pixels, number of images. memory_cases: encoder, form of
    the data."""

    device: str
    repeats: int
    batch: int
    embed_cases: tuple[tuple[str, int, int], ...]
    memory_cases: tuple[tuple[str, str], ...]
    two_pass_scopes: tuple[str, ...]
    release_images: int
    release_coordinates: int
    synth_steps: int  # in a turn
    synth_batches: tuple[int, ...]
    compiling: bool
    large_batch: int
    small_batch: int
    product: int  # rows and columns of the matrices whose product is a ceiling
    records: tuple[int, ...]
    dimensions: tuple[int, ...]
    class_counts: tuple[int, ...]
    rows: int  # summed for each dimension and number of classes
    mnist: Path


def default_sizes(*, device: str, repeats: int, records: int, mnist: Path) -> Sizes:
    return Sizes(
        device=device,
        repeats=repeats,
        batch=256,
        embed_cases=(("builtin", 32, 6_144), ("builtin", 64, 2_560), ("vgg19", 32, 1_024), ("vgg19", 64, 768)),
        memory_cases=(("builtin", "folder"), ("builtin", "zip"), ("builtin", "IDX"), ("vgg19", "IDX")),
        two_pass_scopes=("objective", "whole step"),
        release_images=10_000,
        release_coordinates=10 * 15_361,
        synth_steps=20,
        synth_batches=(200,),
        compiling=True,
        large_batch=4_096,
        small_batch=256,
        product=2_048 if device == "cpu" else 8_192,
        records=tuple(10**power for power in range(3, 10) if 10**power <= records),
        dimensions=(960, 3_840, 15_360, 61_440),
        class_counts=(1, 10, 100, 1_000),
        rows=1_024,
        mnist=mnist,
    )


def quick_sizes(*, device: str) -> Sizes:
    return Sizes(
        device=device,
        repeats=1,
        batch=8,
        embed_cases=(("builtin", 32, 40), ("squeezenet1_1", 64, 24)),
        memory_cases=(("builtin", "zip"),),
        two_pass_scopes=("objective",),
        release_images=40,
        release_coordinates=10_000,
        synth_steps=2,
        synth_batches=(20,),
        compiling=False,  # which takes a minute
        large_batch=40,
        small_batch=10,
        product=64,
        records=(20, 40),
        dimensions=(64, 256),
        class_counts=(1, 10),
        rows=64,
        mnist=Path("no MNIST in a quick run"),
    )
