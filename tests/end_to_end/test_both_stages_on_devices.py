"""Both stages on a GPU where there is one, by the same tests as on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from dpmepf.embed.command import main as embed
from dpmepf.embed.pipeline import EmbedSettings, sum_images
from dpmepf.embed.summing import ExactSums
from dpmepf.shared.feature_map import build_feature_map, describe_feature_map
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.precision import exact_float32
from dpmepf.shared.schema import infer_schema
from dpmepf.synthesize.command import main as synth
from dpmepf.synthesize.evaluation_command import main as evaluate

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device on this machine")
COMPILING = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # PyTorch's own, of what it deprecates
COUNT, SIDE = 60, 28


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=no_gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.npz", np.arange(COUNT))


def write(path: Path, order: np.ndarray) -> Path:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (COUNT, SIDE, SIDE, 1), np.uint8), np.arange(COUNT) % 2
    np.savez(path, x=images[order], y=labels[order])
    return path


def summed(path: Path, device: str) -> ExactSums:
    source = open_images(path, classes=("a", "b"))
    schema = infer_schema(source)
    feature_map = build_feature_map(describe_feature_map(resolution=SIDE, channels=1), device=device)
    settings = EmbedSettings(epsilon=2.0, batch_size=16, device=device)
    return sum_images(source, schema=schema, feature_map=feature_map, settings=settings).take()


def test_sums_are_the_same_bits_in_any_order_and_those_of_a_cpu_but_for_rounding(
    tmp_path: Path, data: Path, device: str
) -> None:
    found = summed(data, device)
    other = summed(write(tmp_path / "other.npz", np.random.default_rng(1).permutation(COUNT)), device)
    on_cpu = summed(data, "cpu")
    assert np.array_equal(found.features, other.features)
    assert np.array_equal(found.weighted_counts, on_cpu.weighted_counts)
    difference = np.abs(found.features - on_cpu.features).max() / np.abs(on_cpu.features).max()
    assert difference < 1e-5  # TF32 would be hundreds of times as far off


def test_float32_is_exact_where_it_has_to_be(device: str) -> None:
    random = torch.Generator().manual_seed(0)
    images, kernels = torch.rand(4, 64, 16, 16, generator=random), torch.rand(64, 64, 3, 3, generator=random)
    short = images[:, 0].flatten(1)  # of long sums even float32 is no better than TF32
    with exact_float32():
        product = short.to(device) @ short.to(device).T
        convolved = functional.conv2d(images.to(device), kernels.to(device))
    assert torch.allclose(product.cpu().double(), short.double() @ short.double().T, rtol=2e-6, atol=0)
    assert torch.allclose(convolved.cpu().double(), functional.conv2d(images.double(), kernels.double()), rtol=2e-6)


@pytest.mark.parametrize(
    "choices", [("--no-relabel",), pytest.param(("--compile", "--micro-batch-size", 3), marks=COMPILING)]
)
def test_the_whole_job_runs_there_and_goes_on_where_it_was_stopped(
    tmp_path: Path, data: Path, device: str, choices: tuple[object, ...]
) -> None:
    def run(command: Any, *arguments: object) -> str:
        options = [str(argument) for argument in (*arguments, "--device", device)]
        result = CliRunner().invoke(command, options, catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    artifact, output = tmp_path / "artifact.h5", tmp_path / "synthetic"
    run(embed, "--data", data, "--classes", "a,b", "--eps", 1000, "--output", artifact)
    options = (artifact, "--output", output, "--batch-size", 8, "--samples", 40, *choices)
    run(synth, *options, "--steps", 2)
    record = json.loads(run(synth, *options, "--steps", 4, "--resume", "--json"))
    assert record["device"] == (torch.cuda.get_device_name() if device == "cuda" else "cpu")
    assert record["compiled"] is ("--compile" in choices)
    assert record["settings"]["steps"] == len(record["losses"]["every_step"]) == 4
    assert len(list((output / "images").rglob("*.png"))) == 40
    quick = ("--classifiers", "logistic", "--seeds", 1, "--extractor", "builtin")
    scores = json.loads(run(evaluate, output, "--real", data, "--json", *quick))
    assert 0 <= scores["accuracy"]["logistic"]["mean"] <= 1
