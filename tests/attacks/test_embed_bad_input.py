"""Bad input to `dpmepf-embed`: one sentence, the right exit status, nothing written, nothing private said."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from dpmepf.embed import command
from dpmepf.embed import run as run_module
from dpmepf.shared import output_file

SECRET = "patient-4711"


def write_images(folder: Path, count: int, size: tuple[int, int] = (28, 28)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        image = generator.integers(0, 256, size, np.uint8)
        Image.fromarray(image).save(folder / f"{SECRET}-{size[0]}-{index}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_images(tmp_path / "data" / "ill", 3)
    write_images(tmp_path / "data" / "healthy", 2)
    return tmp_path / "data"


def run(output: Path, *arguments: object, epsilon: object = 2) -> Result:
    options = ["--eps", epsilon, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--output", output]
    return CliRunner().invoke(command.main, [str(argument) for argument in (*options, *arguments)])


def assert_refused(result: Result, exit_code: int, *, beside: Path, keeps: set[str]) -> None:
    """One sentence and the exit status; in the folder `beside` only what it held before."""
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    errors = [line for line in result.stderr.splitlines() if "Error" in line]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output and SECRET not in result.output
    assert result.stdout == ""
    assert {path.name for path in beside.iterdir()} == keeps


@pytest.mark.parametrize("epsilon", ["0", "-1", "nan", "inf", "much", "1e-400"])
def test_an_epsilon_that_is_not_a_positive_number(epsilon: str, data: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "a.h5", "--data", data, epsilon=epsilon)
    assert_refused(result, 2, beside=tmp_path, keeps={"data"})


@pytest.mark.parametrize("delta", ["0", "1", "1.5", "-1e-6", "nan"])
def test_a_delta_outside_its_range(delta: str, data: Path, tmp_path: Path) -> None:
    assert_refused(run(tmp_path / "a.h5", "--data", data, "--delta", delta), 2, beside=tmp_path, keeps={"data"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--resolution", 30),
        ("--channels", 2),
        ("--classes", ""),
        ("--classes", "ill"),
        ("--classes", "ill,ill"),
        ("--classes", "../up,ill,healthy"),
        ("--classes", "@/does/not/exist"),
        ("--relation", "none"),
        ("--encoder", "nothing"),
        ("--features", "all"),
        ("--batch-size", 0),
        ("--workers", -1),
        ("--dataset", ""),
        ("--split", "test"),
    ],
)
def test_an_option_that_cannot_be_met(arguments: tuple[object, ...], data: Path, tmp_path: Path) -> None:
    assert_refused(run(tmp_path / "a.h5", "--data", data, *arguments), 2, beside=tmp_path, keeps={"data"})


def test_a_missing_folder(tmp_path: Path) -> None:
    assert_refused(run(tmp_path / "a.h5", "--data", tmp_path / "nowhere"), 2, beside=tmp_path, keeps=set())


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert_refused(run(tmp_path / "a.h5", "--data", tmp_path / "data"), 2, beside=tmp_path, keeps={"data"})


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_one_corrupt_file_among_many_stops_without_its_name(content: bytes, data: Path, tmp_path: Path) -> None:
    (data / "ill" / f"{SECRET}-corrupt.png").write_bytes(content)
    result = run(tmp_path / "a.h5", "--data", data)
    assert_refused(result, 1, beside=tmp_path, keeps={"data"})
    assert "--skip-unreadable" in result.stderr and "--list-unreadable" in result.stderr


def test_mixed_sizes_are_brought_to_one(data: Path, tmp_path: Path) -> None:
    write_images(data / "ill", 2, size=(40, 90))
    assert run(tmp_path / "a.h5", "--data", data).exit_code == 0


def test_an_existing_output_is_kept_and_noticed_before_the_data_are_opened(tmp_path: Path) -> None:
    output = tmp_path / "a.h5"
    output.write_bytes(b"mine")
    result = run(output, "--data", tmp_path / "nowhere")
    assert_refused(result, 2, beside=tmp_path, keeps={"a.h5"})
    assert "--force" in result.stderr
    assert output.read_bytes() == b"mine"


def test_force_replaces_an_existing_output(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.h5"
    for _ in range(2):
        assert run(output, "--data", data, "--force").exit_code == 0
    other = tmp_path / "thesis.tex"
    other.write_text("years of work")
    assert run(other, "--data", data, "--force").exit_code == 2
    assert other.read_text() == "years of work"
    assert output.read_bytes().startswith(b"\x89HDF")


def test_an_output_folder_that_does_not_exist(data: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "no" / "a.h5", "--data", data)
    assert result.exit_code in (1, 2)
    assert_refused(result, result.exit_code, beside=tmp_path, keeps={"data"})


def test_a_read_only_output_folder_is_noticed_before_the_data_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(output_file.tempfile, "TemporaryFile", refuse)  # the tests may run as root, whom no mode stops
    result = run(tmp_path / "a.h5", "--data", tmp_path / "nowhere")
    assert_refused(result, 2, beside=tmp_path, keeps=set())
    assert "Read-only" in result.stderr


def test_a_full_disk_leaves_nothing_behind(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert_refused(run(tmp_path / "a.h5", "--data", data), 1, beside=tmp_path, keeps={"data"})


def test_encoder_weights_that_are_missing_damaged_or_of_another_model(tmp_path: Path) -> None:
    """Noticed before the data are opened: there are none."""
    damaged, foreign = tmp_path / "damaged.safetensors", tmp_path / "foreign.safetensors"
    damaged.write_bytes(b"\0" * 100)
    save_file({"weight": torch.zeros(3)}, foreign)
    for weights in (damaged, foreign, tmp_path / "missing.safetensors"):
        result = run(tmp_path / "a.h5", "--data", tmp_path / "nowhere", "--encoder-weights", weights)
        assert_refused(result, 1, beside=tmp_path, keeps={damaged.name, foreign.name})


@pytest.mark.parametrize(
    "error",
    [RuntimeError(f"unexpected image {SECRET}"), OSError(errno.EIO, os.strerror(errno.EIO), f"/data/{SECRET}.png")],
    ids=lambda error: type(error).__name__,
)
def test_what_we_did_not_foresee_does_not_quote_private_values(
    error: Exception, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(*_: object, **__: object) -> None:
        raise error

    monkeypatch.delenv("DPMEPF_DEBUG", raising=False)
    monkeypatch.setattr(run_module, "embed_images", defective)
    result = run(tmp_path / "a.h5", "--data", data)
    assert_refused(result, 1, beside=tmp_path, keeps={"data"})
    assert type(error).__name__ in result.stderr
    assert SECRET not in result.output
