"""`dpmepf-eval` as a user meets it: a table or one JSON object on stdout, everything else on stderr, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dpmepf.shared.encoders import BUILTIN_WEIGHTS
from dpmepf.synthesize.evaluation_command import main

QUICK = ["--classifiers", "logistic", "--seeds", "2", "--device", "cpu", "--workers", "0"]


def write_halves(root: Path, count: int, *, seed: int) -> Path:
    """Two classes of noisy 28×28 images: the left or the right half is bright."""
    random = np.random.default_rng(seed)
    for name, bright in (("left", np.s_[:, :14]), ("right", np.s_[:, 14:])):
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = random.integers(0, 100, (28, 28)).astype(np.uint8)
            image[bright] += 100
            Image.fromarray(image).save(root / name / f"{index:06d}.png")
    return root


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    write_halves(root / "images", 30, seed=0)
    (root / "run.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_halves(tmp_path_factory.mktemp("real"), 12, seed=1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_json_is_one_object_on_stdout_with_the_names_that_scripts_rely_on(synthetic: Path, real: Path) -> None:
    assert BUILTIN_WEIGHTS.is_file()
    result = run(synthetic, "--real", real, "--json", "--extractor", "builtin", *QUICK)
    assert result.exit_code == 0, result.stderr
    scores = json.loads(result.stdout)
    assert set(scores["accuracy"]) == {"logistic"}
    assert scores["accuracy"]["logistic"]["mean"] == np.mean(scores["accuracy"]["logistic"]["seeds"]) >= 0.9
    assert scores["accuracy"]["logistic"]["std"] >= 0
    assert scores["fid"] > -1e-6
    assert set(scores["kid"]) == {"mean", "std"}
    assert scores["extractor"].startswith("builtin")
    assert 0 <= scores["precision"] <= 1 >= scores["recall"] >= 0
    assert scores["images"]["synthetic"] == 60
    assert scores["images"]["real"] == 24
    assert scores["device"] == "cpu"
    assert scores["classes"] == ["left", "right"]
    assert "outside the ledger" in scores["note"]
    assert " ".join(result.stderr.split()).count("outside the ledger") == 1


def test_without_json_a_table_is_on_stdout_and_the_note_on_stderr(synthetic: Path, real: Path) -> None:
    result = run(synthetic, "--real", real, "--no-distances", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "accuracy, logistic (2 seeds)" in result.stdout
    assert "60 synthetic against 24 real images" in result.stdout
    assert "ledger" not in result.stdout
    assert " ".join(result.stderr.split()).count("outside the ledger") == 1


def test_output_holds_the_same_object_and_is_not_overwritten_unasked(
    synthetic: Path, real: Path, tmp_path: Path
) -> None:
    path = tmp_path / "scores.json"
    arguments = (synthetic, "--real", real, "--json", "--no-distances", "--output", path, *QUICK)
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(path.read_text()) == json.loads(result.stdout)
    again = run(*arguments)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run(*arguments, "--force").exit_code == 0


def test_bad_requests_end_in_one_sentence_and_status_2(synthetic: Path, real: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_halves(tmp_path / "other", 12, seed=2)
    (tmp_path / "other" / "left").rename(tmp_path / "other" / "up")
    for arguments, sentence in (
        ((tmp_path / "missing", "--real", real), "does not exist"),
        ((synthetic, "--real", tmp_path / "missing"), "does not exist"),
        ((synthetic, "--real", tmp_path / "empty"), "hold no image"),
        ((synthetic, "--real", tmp_path / "other"), "the classes differ"),
        ((synthetic, "--real", real, "--split", "test"), "leave out --split"),
        ((synthetic, "--real", real, "--classifiers", "forest"), "logistic, mlp, cnn"),
        ((synthetic, "--real", real, "--classifiers", "none", "--no-distances"), "nothing to measure"),
        ((synthetic, "--real", real, "--device", "tpu"), "choose one of auto, cpu"),
    ):
        result = run(*arguments)
        told = " ".join(result.stderr.split())
        assert result.exit_code == 2, told
        assert sentence in told
        assert told.count("Error: ") == 1
        assert "Traceback" not in told
        assert result.stdout == ""


def test_a_truncated_archive_ends_in_one_sentence_and_status_1(synthetic: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", x=np.zeros((20, 28, 28), np.uint8), y=np.zeros(20, np.int64))
    content = (tmp_path / "real.npz").read_bytes()
    (tmp_path / "real.npz").write_bytes(content[: len(content) // 2])
    result = run(synthetic, "--real", tmp_path / "real.npz")
    assert result.exit_code == 1
    assert "truncated or damaged" in " ".join(result.stderr.split())


def test_every_option_has_a_help_text() -> None:
    for parameter in main.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
