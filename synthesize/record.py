"""The record of a run: `run.json`, from which the report is made."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.merged_ledger import MergedLedger
from dpmepf.shared import __version__
from dpmepf.synthesize.probe import probe_for
from dpmepf.synthesize.public_images import ChosenImages, per_class
from dpmepf.synthesize.sampling import class_folder_names
from dpmepf.synthesize.settings import SynthesisSettings
from dpmepf.synthesize.targets import class_targets
from dpmepf.synthesize.training import TrainedGenerator


def run_record(
    artifact: Artifact,
    settings: SynthesisSettings,
    trained: TrainedGenerator,
    numbers: tuple[int, ...],
    *,
    sizes: np.ndarray,
    public: Sequence[ChosenImages],
    unjudged: Sequence[int],
    prior: Mapping[str, Any] | None,
    file: str,
    image_format: str,
    relabelled: bool,
    sha256: str,
    device: torch.device,
    compiled: bool,
    timings: dict[str, float],
) -> dict[str, Any]:
    """Return what `run.json` holds: the claim and the releases, settings, versions, class sizes, timings, losses.

    Args:
        artifact: the release, or merged ones.
        settings: of the training.
        trained: its result.
        numbers: images of each class in the data set.
        sizes: of the classes, as far as the release tells.
        public: which of them, the last ones of each class, are public images.
        unjudged: of each class the number of generated images that keep the class they were drawn for, whatever the
            class means say, as not enough were found of it.
        prior: origin of the generator that training began with, if any (`Prior`).
        file: name of the artifact's file.
        image_format: `folder` or `npz`.
        relabelled: whether the class means corrected the classes that images were drawn for.
        sha256: of the artifact's file, in hexadecimal.
        device: that trained.
        compiled: whether torch.compile made the encoder of the training, or of its last part if it was interrupted.
        timings: in seconds, with `training_seconds`.
    """
    ledger, features, generator = artifact.ledger, artifact.feature_map, trained.generator
    folders = class_folder_names(artifact.classes)
    last = trained.losses[-max(1, len(trained.losses) // 20) :]
    trained_images = len(trained.losses) * trained.images_per_step
    return {
        "program": "dpmepf-synth",
        "artifact": {
            "file": file,
            "sha256": sha256,
            "release_id": None if isinstance(ledger, MergedLedger) else ledger.release_id,
            "releases": [
                {
                    "release_id": release.release_id,
                    "dataset_name": release.dataset_name,
                    "epsilon": release.epsilon,
                    "delta": release.delta,
                }
                for release in ledger.releases
            ],
            "dataset_name": ledger.dataset_name,
            "epsilon": ledger.epsilon,
            "delta": ledger.delta,
            "relation": ledger.relation.value,
            "unit_of_privacy": ledger.unit_of_privacy,
            "noise_std_counts": artifact.noise_std_counts,
            "mechanism": ledger.mechanism,
            "inferred_schema": list(ledger.inferred_schema),
            "encoder": features.encoder,
            "features": features.preset,
            "feature_dimension": artifact.dimension,
            "resolution": features.resolution,
            "channels": features.channels,
        },
        "settings": settings.to_dict(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "compiled": compiled,
        "probed": settings.probe and probe_for(class_targets(artifact), seed=settings.seed) is not None,
        "versions": {
            "dpmepf": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": metadata.version("torchvision"),
            "numpy": np.__version__,
        },
        "generator": {
            "parameters": sum(parameter.numel() for parameter in generator.parameters()),
            "multiply_adds_per_image": generator.multiply_adds_per_image(),
            "random_changes": generator.variation.mean_sizes() if generator.variation else None,
        },
        "output": {"format": image_format, "images": sum(numbers), "relabelled": relabelled},
        "prior": prior,
        "public": [
            {
                "path": str(part.path),
                "images": len(part.source),
                "unreadable": part.unreadable,
                "chosen": len(part.places),
                "chosen_of_class": per_class([part], len(numbers)).tolist(),
            }
            for part in public
        ],
        "classes": [
            {
                "name": name,
                "folder": class_folder,
                "noisy_count": float(noisy_count),
                "size": round(float(size), 1),
                "images": number,
                "public_images": public_number,
                "unjudged_images": unjudged_number,
            }
            for name, class_folder, noisy_count, size, number, public_number, unjudged_number in zip(
                artifact.classes,
                folders,
                artifact.counts(),
                sizes,
                numbers,
                per_class(public, len(numbers)).tolist(),
                unjudged,
                strict=True,
            )
        ],
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()}
        | {"training_images_per_second": round(trained_images / max(timings["training_seconds"], 1e-9), 1)},
        "losses": {"final": sum(last) / len(last), "every_step": [float(f"{loss:.6g}") for loss in trained.losses]},
    }
