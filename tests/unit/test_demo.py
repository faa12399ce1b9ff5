"""The demo takes the MNIST that it is told to take, and never quietly another data set."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
@pytest.mark.parametrize("below", [".", "raw"])
def test_the_folder_that_is_named_is_taken_or_raw_in_it(
    name: str, below: str, demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / below).mkdir(exist_ok=True)
    (tmp_path / below / name).touch()
    monkeypatch.setenv("DPMEPF_MNIST", str(tmp_path))
    assert demo.find_mnist() == tmp_path / below


def test_a_named_folder_without_mnist_is_an_error(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPMEPF_MNIST", str(tmp_path))
    with pytest.raises(SystemExit, match=r"DPMEPF_MNIST is .*holds train-images-idx3-ubyte"):
        demo.find_mnist()


def test_without_mnist_in_the_usual_places_there_is_none(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DPMEPF_MNIST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert demo.find_mnist() is None
