"""The device that `--device` names, on every command."""

from __future__ import annotations

import pytest
import torch

from dpmepf.shared.devices import choose_device
from dpmepf.shared.errors import UsageError


def test_a_gpu_is_taken_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(choose_device("auto")) == str(choose_device("cpu")) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert str(choose_device("auto")) == "cuda"


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta", ""])
def test_a_device_that_is_not_here_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=rf"the device '{name}' cannot be used here: choose one of auto, cpu"):
        choose_device(name)
