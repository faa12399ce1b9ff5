"""(b) The release: draws of discrete Gaussian noise per second, and its share of an embedding run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dpmepf_way import float_noise
from measuring import alternately, ratios, run_script, seconds_of
from sizes import Sizes
from synthetic_sets import CLASSES, write_long_idx
from tables import Part

from dpmepf.artifacts.ledger import plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.embed.noise import add_discrete_gaussian_noise

DIMENSION = 15_360  # of --features per-layer; the default has 3,840
FULL_SET = 60_000


def measure(sizes: Sizes, report: Callable[[str], None]) -> list[Part]:
    report("release: noise")
    ledger = plan_release(
        epsilon=2.0,
        delta=1e-6,
        relation=NeighbouringRelation.ADD_OR_REMOVE_ONE,
        feature_dimension=DIMENSION,
        class_count=CLASSES,
        non_negative_features=True,
    )
    count = sizes.release_coordinates
    exact, floats = np.zeros(count, dtype=np.int64), torch.zeros(count)
    add_discrete_gaussian_noise(exact[:1], sigma=ledger.sigma)  # OpenDP is loaded
    figures = alternately(
        {
            "ours": lambda: count / seconds_of(lambda: add_discrete_gaussian_noise(exact, sigma=ledger.sigma)),
            "float": lambda: count / seconds_of(lambda: float_noise(floats, noise_multiplier=2.0)),
        },
        sizes.repeats,
    )
    part = Part(title=f"(b) release: {count:,} integers, ε = 2, δ = 1e-6, σ = {ledger.sigma:.4g} lattice units")
    part.add("exact discrete Gaussian, all cores", "draws/s", figures["ours"])
    part.add("DP-MEPF's way: float32 Gaussian from a seed", "draws/s", figures["float"])
    part.add("exact / float", "ratio", ratios(figures, "ours", "float"))
    report(f"release: its share of embedding {sizes.release_images:,} images")
    shares, full = _shares(sizes)
    part.add(f"share of embedding {sizes.release_images:,} images of 28 pixels", "%", shares)
    part.add(f"the same for {FULL_SET:,}, from the rate per image", "%", full)
    part.notes.append("Shares are of embedding and noise together, without start-up; noise does not grow with images.")
    return [part]


def _shares(sizes: Sizes) -> tuple[list[float], list[float]]:
    """Of the noise in the time of a run, in per cent."""
    shares, full = [], []
    with tempfile.TemporaryDirectory() as name:
        data = write_long_idx(Path(name) / "idx", sizes.release_images, 28)
        for _ in range(sizes.repeats):
            found = run_script(
                "embed_child.py",
                data=data,
                encoder="builtin",
                batch=sizes.batch,
                device=sizes.device,
                threads=torch.get_num_threads(),
                output=Path(name) / "artifact.h5",
            )
            noise, per_image = found["noise_seconds"], found["embedding_seconds"] / (sizes.release_images - sizes.batch)
            shares.append(100 * noise / (noise + per_image * sizes.release_images))
            full.append(100 * noise / (noise + per_image * FULL_SET))
    return shares, full
