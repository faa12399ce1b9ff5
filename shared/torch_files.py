"""Files of tensors, by `torch.save` or of safetensors, read without running any code in them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor


class TorchFileError(ValueError):
    """A file does not hold what `torch.save` writes of tensors, numbers, text and containers of them."""


def load_torch_file(path: Path) -> Any:
    """Return what is in a file, tensors on the CPU.

    Raises:
        OSError: it cannot be read.
        MemoryError: it may be sound, but does not fit.
        TorchFileError: it is damaged, or something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd versions of pickle, in files that are none
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of an arbitrary file nearly any: struct.error, IndexError, UnpicklingError, …
        if "can't allocate memory" in str(error):  # torch's RuntimeError
            raise MemoryError(str(error)) from None
        raise TorchFileError(f"{path} is not a file that torch.save wrote") from error


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, on the CPU.

    Raises: OSError; MemoryError; SafetensorError when it is damaged, or something else.
    """
    return load(path.read_bytes())  # not load_file, in which Ctrl-C now and then passes for a ValueError
