"""Fixtures that several test files use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(2)
os.environ["COLUMNS"] = "80"  # for rich, also in the processes that tests start: a sentence is folded at the same place
hypothesis.settings.register_profile("dpmepf", deadline=None)  # a loaded machine is no defect
hypothesis.settings.load_profile("dpmepf")
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, also by the commands under test


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with MNIST, CIFAR-10 and Tiny ImageNet beside this checkout; the test is skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the image data in ../shared/data, which this machine does not have")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _state_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the register of whoever runs it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
