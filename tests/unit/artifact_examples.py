"""Small, consistent artifacts for tests, and ways to forge them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.ledger import Ledger, plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.feature_map_description import FeatureMapDescription

FEATURE_MAP = FeatureMapDescription(
    preset="default",
    encoder="builtin",
    weights_sha256="0" * 64,
    layers=("stage1", "stage2"),
    pooling=(4, 4),
    normalisation="per-layer",
    moments=(1,),
    layer_weights=(0.5, 0.5),
    resolution=32,
    channels=3,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.25, 0.25, 0.25),
)


def example_ledger(**changes: Any) -> Ledger:
    settings: dict[str, Any] = {
        "epsilon": 1.0,
        "delta": 1e-5,
        "relation": NeighbouringRelation.ADD_OR_REMOVE_ONE,
        "feature_dimension": 48,
        "class_count": 3,
        "non_negative_features": True,
    }
    return plan_release(**settings | changes)


def example_artifact(*, classes: tuple[str, ...] = ("cat", "dog", "Übermut 7"), **changes: Any) -> Artifact:
    ledger = example_ledger(**{"class_count": len(classes)} | changes)
    noise = np.random.default_rng(5).normal(0, ledger.sigma / 2**ledger.coarsening_exponent, ledger.coordinates)
    stored = np.rint(noise).astype(np.int64)
    split = len(classes) * ledger.feature_dimension
    return Artifact(
        noisy_sums=stored[:split].reshape(len(classes), -1),
        noisy_counts=stored[split:],
        classes=classes,
        feature_map=FEATURE_MAP,
        ledger=ledger,
    )


def example_parts(
    *sites: str, epsilons: tuple[float, ...] = (1.0, 4.0, 0.1), **changes: Any
) -> list[tuple[str, Artifact]]:
    """Artifacts of several custodians, as `merge_artifacts` takes them."""
    return [
        (f"{site}.h5", example_artifact(epsilon=epsilon, dataset_name=site, **changes))
        for site, epsilon in zip(sites, epsilons, strict=False)
    ]


def as_ledger_text(fields: object) -> str:
    """`fields` as artifacts spell them."""
    return json.dumps(fields, indent=1, ensure_ascii=False)


def replace_text(path: Path, name: str, text: str | bytes) -> None:
    """Write another text into an artifact, as a forger would who leaves nothing of the old one in the file."""
    content = text.encode() if isinstance(text, str) else text
    forged = path.with_suffix(".forged")
    with h5py.File(path) as file, h5py.File(forged, "w", libver=("v110", "v110")) as other:
        for kept in set(file) - {name}:
            file.copy(kept, other)
        other.create_dataset(name, data=np.array(content, dtype=h5py.string_dtype("utf-8", len(content))))
    forged.replace(path)


def forge_ledger(path: Path, *, release: int | None = None, **changes: Any) -> None:
    """Change fields of the ledger in the file, or of one release of a merged ledger; None drops a field."""
    with h5py.File(path) as file:
        stored = json.loads(file["ledger"][()])
    ledger = stored if release is None else stored["releases"][release - 1]
    ledger |= changes
    for name in [name for name, value in changes.items() if value is None]:
        del ledger[name]
    replace_text(path, "ledger", as_ledger_text(stored))
