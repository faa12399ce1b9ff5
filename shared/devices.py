"""Choosing the device that `--device` names."""

from __future__ import annotations

import torch

from dpmepf.shared.errors import UsageError


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first CUDA device if there is one, else the CPU.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable = ["auto", "cpu"] + [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        raise UsageError(f"the device {name!r} cannot be used here: choose one of {', '.join(usable)}") from error
    return device
