"""(d) Cost against the number of records, the dimension of the features and the number of classes."""

from __future__ import annotations

import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import alternately, run_script, seconds_of
from sizes import Sizes
from synthetic_sets import write_long_idx
from tables import Part, Target

from dpmepf.embed.noise import add_discrete_gaussian_noise
from dpmepf.embed.summing import ClassSums

LINEAR = Target(at_most=1.1)  # cost per unit of the largest, against the next smaller
CONSTANT = Target(at_most=1.05)  # memory likewise
ONE_DIMENSION = 15_360
ONE_CLASS_COUNT = 10
RELEASE_DIMENSION = 960
SIGMA = 1e6
ADDED_AT_A_TIME = 256
FULL = 1_000_000


def measure(sizes: Sizes, report: Callable[[str], None]) -> Iterator[Part]:
    for measured in (_records, _dimensions, _classes):
        yield measured(sizes, report)


def _records(sizes: Sizes, report: Callable[[str], None]) -> Part:
    part = Part(title="(d) cost against records: a whole run on IDX files, 28 pixels, built-in encoder")
    per_record: list[float] = []
    peaks: list[float] = []
    for count in sizes.records:
        report(f"scaling: {count:,} records")
        with tempfile.TemporaryDirectory() as name:
            data = write_long_idx(Path(name) / "idx", count, 28)
            found = run_script(
                "embed_child.py",
                data=data,
                encoder="builtin",
                batch=sizes.batch,
                device=sizes.device,
                threads=torch.get_num_threads(),
                output=Path(name) / "artifact.h5",
            )
            shutil.rmtree(data)
        per_record.append(1e6 * found["embedding_seconds"] / max(count - sizes.batch, 1))
        peaks.append(found["peak_mib"])
        part.add(f"{count:,} records: start to end", "s", found["seconds"])
        part.add(f"{count:,} records: embedding", "µs/record", per_record[-1])
        part.add(f"{count:,} records: peak memory", "MiB", peaks[-1])
    most, next_smaller = sizes.records[-1], sizes.records[-2]
    compared = f"{most:,} against {next_smaller:,} records"
    part.add(f"{compared}: cost per record", "ratio", per_record[-1] / per_record[-2], LINEAR)
    part.add(f"{compared}: peak memory", "ratio", peaks[-1] / peaks[-2], CONSTANT)
    if most < FULL:
        part.notes.append(f"Up to {most:,} records; --full goes on to {FULL:,}.")
    growth = (peaks[-1] - peaks[-2]) * 2**20 / (most - next_smaller)
    part.notes.append(f"Peak memory grows by {growth:,.0f} bytes a record here; an image has {28 * 28}.")
    return part


def _dimensions(sizes: Sizes, report: Callable[[str], None]) -> Part:
    report("scaling: dimensions")
    part = Part(title=f"(d) cost against dimension: bounding and summing, {ONE_CLASS_COUNT} classes, one thread")
    sides = {f"D = {dimension:,}": _adding(ONE_CLASS_COUNT, dimension, sizes.rows) for dimension in sizes.dimensions}
    figures = alternately(sides, sizes.repeats)
    for name, nanoseconds in figures.items():
        part.add(name, "ns/value", nanoseconds)
    _compare(part, figures, "cost per value")
    _add_memory(part, {f"D = {dimension:,}": (ONE_CLASS_COUNT, dimension) for dimension in sizes.dimensions})
    return part


def _classes(sizes: Sizes, report: Callable[[str], None]) -> Part:
    report("scaling: classes")
    part = Part(title=f"(d) cost against classes: bounding, summing (D = {ONE_DIMENSION:,}) and noise")
    adding = {f"K = {count:,}: adding": _adding(count, ONE_DIMENSION, sizes.rows) for count in sizes.class_counts}
    noise = {
        f"K = {count:,}: noise, D = {RELEASE_DIMENSION}": _noise(count * (RELEASE_DIMENSION + 1))
        for count in sizes.class_counts
    }
    added, noised = alternately(adding, sizes.repeats), alternately(noise, sizes.repeats)
    for figures, unit in ((added, "ns/value"), (noised, "ns/draw")):
        for name, nanoseconds in figures.items():
            part.add(name, unit, nanoseconds)
    _compare(part, added, "cost per value")
    _compare(part, noised, "cost per draw")
    _add_memory(part, {f"K = {count:,}": (count, ONE_DIMENSION) for count in sizes.class_counts})
    return part


def _adding(class_count: int, dimension: int, rows: int) -> Callable[[], float]:
    """Nanoseconds of `ClassSums.add` for each value of the features."""
    random = np.random.default_rng(0)
    features = np.abs(random.standard_normal((min(rows, ADDED_AT_A_TIME), dimension), dtype=np.float32))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = random.integers(0, class_count, len(features))

    def side() -> float:
        sums = ClassSums(class_count=class_count, dimension=dimension, non_negative=True)
        turns = rows // len(features)
        sums.add(features, labels)  # the sums' pages are there
        return 1e9 * seconds_of(lambda: [sums.add(features, labels) for _ in range(turns)]) / (features.size * turns)

    return side


def _add_memory(part: Part, sizes_of_sums: dict[str, tuple[int, int]]) -> None:
    """Rows of what sums take at most while records are added to them, the features not counted."""
    for name, (class_count, dimension) in sizes_of_sums.items():
        features = np.zeros((ADDED_AT_A_TIME, dimension), np.float32)
        labels = np.arange(ADDED_AT_A_TIME) % class_count
        tracemalloc.start()
        ClassSums(class_count=class_count, dimension=dimension, non_negative=True).add(features, labels)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        part.add(f"{name}: peak memory", "MiB", peak / 2**20)
    part.notes.append("Memory: sums of 8·K·(D + 1) bytes, and what a part of the batch is bounded in.")


def _noise(count: int) -> Callable[[], float]:
    values = np.zeros(count, dtype=np.int64)
    return lambda: 1e9 * seconds_of(lambda: add_discrete_gaussian_noise(values, sigma=SIGMA)) / count


def _compare(part: Part, figures: dict[str, list[float]], what: str) -> None:
    (smaller, before), (larger, last) = list(figures.items())[-2:]
    ratio = [b / a for a, b in zip(before, last, strict=True)]
    part.add(f"{larger.split(':')[0]} against {smaller.split(':')[0]}: {what}", "ratio", ratio, LINEAR)
