"""Feature presets other than the default, from images to images: one side trains towards what the other released."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torchvision.models import get_model

from dpmepf.artifacts.audit_command import main as audit
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.embed.command import main as embed
from dpmepf.shared.image_sources import open_images
from dpmepf.synthesize import labelling, training
from dpmepf.synthesize.command import main as synth

STEPS = 3
SAMPLES = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark images of one class, bright ones of the other."""
    random = np.random.default_rng(0)
    labels = np.arange(20) % 2
    images = random.integers(0, 128, (20, 64, 64, 3)) + 127 * labels[:, None, None, None]
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, x=images.astype(np.uint8), y=labels, classes=np.array(["dark", "bright"]))
    return path


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options for an encoder of torchvision's that takes no image of 32 pixels, with random weights in a file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(get_model("alexnet", weights=None).state_dict(), file)
    return "--encoder-weights", str(file)


@pytest.mark.parametrize(
    ("preset", "encoder", "resolution"),
    [
        ("per-layer", "builtin", 32),
        ("two-moments", "builtin", 32),
        ("joint", "builtin", 32),
        ("dp-mepf", "alexnet", None),  # inferred: 64
    ],
)
def test_a_release_is_audited_and_trained_towards(
    preset: str,
    encoder: str,
    resolution: int | None,
    data: Path,
    other_encoder: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(labelling, "IMAGES", 40)
    monkeypatch.setattr(labelling, "IMAGES_PER_STEP", 40)
    monkeypatch.setattr(training, "DENOISING_IMAGES", 40)
    weights = () if encoder == "builtin" else other_encoder
    artifact, output = tmp_path / "artifact.h5", tmp_path / "synthetic"
    chosen = ("--data", data, "--eps", 50, "--batch-size", 8, "--features", preset, "--encoder", encoder)
    size = () if resolution is None else ("--resolution", resolution)
    printed = run(embed, *chosen, *weights, *size, "--output", artifact)
    assert ("--encoder-weights" in printed) == bool(weights)  # what comes next needs the same file
    assert ("--encoder vgg19 alone" in " ".join(printed.split())) == (preset == "dp-mepf")
    assert read_artifact(artifact).feature_map.preset == preset
    assert "Every claim holds" in run(audit, artifact)
    few = ("--steps", STEPS, "--batch-size", 4, "--samples", SAMPLES, "--device", "cpu")
    run(synth, artifact, "--output", output, *few, *weights)
    assert len(open_images(output / "images")) == SAMPLES
    record = json.loads((output / "run.json").read_text())
    assert record["artifact"]["features"] == preset
    assert len(record["losses"]["every_step"]) == STEPS
    assert np.isfinite(record["losses"]["every_step"]).all()


def run(command: object, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output
