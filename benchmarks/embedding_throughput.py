"""How much `dpmepf-embed` adds to the bare forward pass of its encoder; both sides in one run. Run by `make bench`.

Side A is the whole command in a process of its own: start, decoding, features, bounding, exact sums, noise, artifact.
Side B is the encoder's forward pass over the same images, already decoded and in memory, in batches of the same size.
The sides alternate, so that a machine whose speed drifts treats both alike; quoted are the ratios A/B.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dpmepf.shared.feature_map import build_feature_map, describe_feature_map
from dpmepf.shared.image_loading import load_all
from dpmepf.shared.image_sources import open_images

BATCH = 256


def bare_forward_seconds(images: torch.Tensor) -> float:
    """The encoder's activations for images in memory, as the feature map asks for them, and nothing else."""
    description = describe_feature_map(resolution=images.shape[-1], channels=images.shape[1])
    feature_map = build_feature_map(description)
    encoder = feature_map.extractor
    with torch.inference_mode():
        pixels = images[:BATCH].expand(-1, 3, -1, -1).float() / 255
        encoder(pixels.contiguous(memory_format=torch.channels_last))  # warm-up
        start = time.perf_counter()
        for batch in images.split(BATCH):
            pixels = (batch.float() / 255).expand(-1, 3, -1, -1)
            encoder(pixels.contiguous(memory_format=torch.channels_last))
        return time.perf_counter() - start


def command_seconds(data: Path, resolution: int, channels: int) -> float:
    """Wall-clock time of the whole command."""
    command = Path(sysconfig.get_path("scripts")) / "dpmepf-embed"
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--data", data, "--eps", 2, "--output", Path(folder) / "artifact.h5"]
        schema = ["--resolution", resolution, "--channels", channels]
        start = time.perf_counter()
        subprocess.run([str(part) for part in [command, *arguments, *schema]], check=True, capture_output=True)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/MNIST"), help="any data dpmepf-embed takes")
    parser.add_argument("--resolution", type=int, default=28, help="side in pixels")
    parser.add_argument("--channels", type=int, default=1, help="1 or 3")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--images", type=int, help="use a random subset of so many images (as .npz)")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        parser.error(f"{arguments.data} does not exist: name image data with --data")
    source = open_images(arguments.data, public=True)
    images, labels = load_all(source, resolution=arguments.resolution, channels=arguments.channels)
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if arguments.images is not None:
            chosen = torch.randperm(len(images))[: arguments.images]
            images, labels = images[chosen], labels[chosen]
            data = Path(folder) / "subset.npz"
            np.savez(data, x=images.permute(0, 2, 3, 1).numpy(), y=labels.numpy(), classes=np.array(source.classes))
        pairs = []
        for _ in range(arguments.repeats):
            pairs.append(
                (command_seconds(data, arguments.resolution, arguments.channels), bare_forward_seconds(images))
            )
    table = Table(
        title=f"{len(images):,} images, {platform.processor() or platform.machine()}, torch {torch.__version__}"
    )
    for heading in ("", "min", "median", "max"):
        table.add_column(heading, justify="right")
    rows = {
        "dpmepf-embed, images/s": [len(images) / a for a, _ in pairs],
        "bare forward, images/s": [len(images) / b for _, b in pairs],
        "time ratio": [a / b for a, b in pairs],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{figure:,.2f}" for figure in (min(values), statistics.median(values), max(values))))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
