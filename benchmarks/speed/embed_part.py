"""(a) Embedding: images/s against the bare forward pass, and against decoding alone; peak memory; the whole command."""

from __future__ import annotations

import multiprocessing
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from dpmepf_way import float_class_sums, float_noise
from encoders_at_hand import bare_encoder, feature_map_of
from measuring import (
    alternately,
    give_freed_memory_back,
    processor_times,
    ratios,
    run_child,
    run_script,
    seconds_of,
    wait_for,
    wait_until_idle,
)
from sizes import Sizes
from synthetic_sets import CLASSES, FORMS, synthetic_images, write_set
from tables import Part, Target
from torch import Tensor

from dpmepf.embed import pipeline
from dpmepf.embed.pipeline import EmbedSettings, sum_images
from dpmepf.shared.feature_map import FeatureMap
from dpmepf.shared.image_loading import iterate_batches, load_all
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.image_workers import usable_cores
from dpmepf.shared.precision import exact_float32
from dpmepf.shared.schema import ImageSchema

LEAST_OF_BARE = 0.8
LEAST_OF_DECODING = 0.9
MOST_MIB = 1536.0
MOST_OF_BARE_TIME = 1 / LEAST_OF_BARE  # of the whole command on MNIST, start-up and noise included

Report = Callable[[str], None]


def measure(sizes: Sizes, report: Report) -> Iterator[Part]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for encoder, side, count in sizes.embed_cases:
            report(f"embed: {encoder}, {side} pixels, {count:,} images")
            images = synthetic_images(count, side)
            data = {form: write_set(form, folder / encoder / str(side) / form, images) for form in FORMS}
            part = _rates(encoder, side, images, data, sizes)
            _memory(part, encoder, data, folder / "artifact.h5", sizes)
            yield part
    report("embed: the whole command on MNIST")
    yield _mnist(sizes)


def _rates(encoder: str, side: int, images: np.ndarray, data: dict[str, Path], sizes: Sizes) -> Part:
    """Rates without the program's start, the check of independence and the release, which are fixed costs.

    That of embedding is of all images from the first to the last, starting the workers included: what they decode ahead
    of a first batch has to be in the time.
    """
    feature_map = feature_map_of(encoder, side, device=sizes.device)
    in_memory = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(sizes.device)
    labels = torch.arange(len(images), device=sizes.device) % CLASSES
    sources = {form: open_images(path) for form, path in data.items()}
    bare = bare_encoder(feature_map)
    sides: dict[str, Callable[[], float]] = {"bare": lambda: bare_rate(bare, in_memory, sizes.batch)}
    for form, source in sources.items():
        sides[f"{form} decoding"] = lambda source=source: _decoding_rate(source, side, sizes.batch)
        sides[form] = lambda source=source: embedding_rate(source, feature_map, sizes)
    sides["DP-MEPF's way"] = lambda: _float_rate(feature_map, in_memory, labels, sizes.batch)
    bare_rate(bare, in_memory[: sizes.batch], sizes.batch)
    _float_rate(feature_map, in_memory[: sizes.batch], labels[: sizes.batch], sizes.batch)
    figures = alternately(sides, sizes.repeats)
    part = Part(title=f"(a) embed: {encoder}, {side} pixels, RGB, {len(images):,} images, batch {sizes.batch}")
    part.add("bare forward, in memory", "images/s", figures["bare"])
    for form in FORMS:
        part.add(f"{form}: decoding alone", "images/s", figures[f"{form} decoding"])
        part.add(f"{form}: embed", "images/s", figures[form])
        of_bare, of_decoding = ratios(figures, form, "bare"), ratios(figures, form, f"{form} decoding")
        decoding_limits = np.median(figures[f"{form} decoding"]) < np.median(figures["bare"])
        if decoding_limits:
            part.add(f"{form}: embed / bare", "ratio", of_bare)
            part.add(f"{form}: embed / decoding", "ratio", of_decoding, Target(at_least=LEAST_OF_DECODING))
        else:
            part.add(f"{form}: embed / bare", "ratio", of_bare, Target(at_least=LEAST_OF_BARE))
        both = [a + b for a, b in zip(of_bare, of_decoding, strict=True)]  # 1 where it takes as long as the two
        part.add(f"{form}: embed / bare after decoding", "ratio", both)
    part.add("DP-MEPF's way (ours, by description), in memory", "images/s", figures["DP-MEPF's way"])
    part.add("IDX: embed / DP-MEPF's way", "ratio", ratios(figures, "IDX", "DP-MEPF's way"))
    with torch.inference_mode():
        schema = _schema(sources["IDX"], side)
        settings = EmbedSettings(epsilon=2.0, batch_size=sizes.batch, device=sizes.device)
        check = seconds_of(lambda: pipeline._check_independence(feature_map, schema, settings))
    part.add("fixed cost: check of independence", "s", check)
    part.notes.append(
        "Decoding and encoder share the cores: where there are few, decoding slows the encoder down before it limits. "
        "No more can be had then than both one after the other, each on all cores: 1 in the last ratio of each form. "
        "Memory of all processes is the command's peak and the most that its decoding processes take beside it."
    )
    return part


def bare_rate(encoder: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> float:
    def work() -> None:
        for part in images.split(batch):
            encoder(part)

    with torch.inference_mode(), exact_float32():
        return len(images) / seconds_of(work, str(images.device))


def _float_rate(feature_map: FeatureMap, images: Tensor, labels: Tensor, batch: int) -> float:
    def work() -> None:
        sums = float_class_sums(feature_map, images, labels, classes=CLASSES, batch=batch)
        float_noise(sums, noise_multiplier=2.0)

    with torch.inference_mode(), exact_float32():
        return len(images) / seconds_of(work, str(images.device))


def _decoding_rate(source: ImageSource, side: int, batch: int) -> float:
    """On all cores; from the first batch to the last, so that starting the workers does not count."""
    batches = iterate_batches(source, resolution=side, channels=3, batch_size=batch, workers=usable_cores())
    (_, begin), *others = [(len(labels), time.perf_counter()) for _, labels in batches]
    return sum(count for count, _ in others) / max(others[-1][1] - begin, 1e-9)


def embedding_rate(source: ImageSource, feature_map: FeatureMap, sizes: Sizes) -> float:
    schema = _schema(source, feature_map.description.resolution)
    settings = EmbedSettings(epsilon=2.0, batch_size=sizes.batch, device=sizes.device)
    spared: list[float] = []

    def pass_once(*_: object) -> None:
        """In place of the check of independence, a fixed cost with a row of its own: memory is taken here as there."""
        decoding = multiprocessing.active_children()
        idle_since = wait_until_idle(decoding)  # what is decoded ahead is in the time
        before = processor_times(decoding)
        images = torch.zeros((sizes.batch, schema.channels, schema.resolution, schema.resolution), dtype=torch.uint8)
        pipeline._features(feature_map, images, settings)
        wait_for(sizes.device)
        if processor_times(decoding) == before:  # else they only seemed idle, and this was not waiting alone
            spared.append(time.perf_counter() - idle_since)

    give_freed_memory_back()  # decoding processes start before the encoder has run
    with mock.patch.object(pipeline, "_check_independence", pass_once):
        seconds = seconds_of(
            lambda: sum_images(source, schema=schema, feature_map=feature_map, settings=settings), sizes.device
        )
    return len(source) / (seconds - sum(spared))


def _schema(source: ImageSource, side: int) -> ImageSchema:
    return ImageSchema(classes=source.classes, resolution=side, channels=3, inferred=())


def _memory(part: Part, encoder: str, data: dict[str, Path], output: Path, sizes: Sizes) -> None:
    """Peak of a whole run in a process of its own, and with its decoding workers."""
    for form, path in data.items():
        if (encoder, form) not in sizes.memory_cases:
            continue
        found = run_script(
            "embed_child.py",
            data=path,
            encoder=encoder,
            batch=sizes.batch,
            device=sizes.device,
            threads=torch.get_num_threads(),
            output=output,
        )
        is_target = encoder == "builtin" and sizes.device == "cpu"  # a GPU's driver takes memory of its own
        target = Target(at_most=MOST_MIB) if is_target else None
        part.add(f"{form}: peak memory of a whole run, one process", "MiB", found["peak_mib"])
        part.add(f"{form}: the same, all its processes", "MiB", found["peak_of_all_mib"], target)


def _mnist(sizes: Sizes) -> Part:
    part = Part(title="(a) embed: the whole command on MNIST, against the bare forward pass of the same images")
    if not sizes.mnist.exists():
        part.notes.append(f"Not measured: {sizes.mnist} is not on this machine; --mnist names another place.")
        return part
    images, _ = load_all(open_images(sizes.mnist), resolution=28, channels=1)
    images = images.to(sizes.device)
    feature_map = feature_map_of("builtin", 28, 1, device=sizes.device)
    command = Path(sysconfig.get_path("scripts")) / "dpmepf-embed"
    peaks: list[float] = []

    def whole_command() -> float:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--eps", 2, "--output", Path(folder) / "artifact.h5", "--resolution", 28, "--channels", 1]
            options += ["--device", sizes.device]
            child = run_child([command, "--data", sizes.mnist, *options])
        peaks.append(child.peak_of_all_mib)
        return child.seconds

    bare = bare_encoder(feature_map)
    bare_rate(bare, images[: sizes.batch], sizes.batch)
    figures = alternately(
        {"command": whole_command, "bare": lambda: len(images) / bare_rate(bare, images, sizes.batch)},
        sizes.repeats,
    )
    part.add("dpmepf-embed: from start to artifact", "s", figures["command"])
    part.add("bare forward", "s", figures["bare"])
    on_cpu = sizes.device == "cpu"  # on a GPU starting takes longer than all of the bare pass, and memory of its own
    most_time = Target(at_most=MOST_OF_BARE_TIME) if on_cpu else None
    part.add("time ratio", "ratio", ratios(figures, "command", "bare"), most_time)
    part.add("peak memory of all processes", "MiB", peaks, Target(at_most=MOST_MIB) if on_cpu else None)
    part.notes.append(f"{len(images):,} images. Both sides keep freed memory, as the command does for itself.")
    return part
