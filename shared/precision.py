"""Which arithmetic trains fastest without losing accuracy: bfloat16 where the hardware has it, float32 elsewhere.

Without bfloat16 instructions a processor emulates them: on one with AVX2 only, convolutions under bfloat16 autocast
took ten times as long as in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

FAST_BFLOAT16_FEATURES = ("avx512_bf16", "amx_bf16")


def autocast_dtype(device: str | torch.device) -> torch.dtype | None:
    """Return `torch.bfloat16` if `device` computes with it natively, else None: stay in float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_fast_bfloat16() else None
    return None


def autocast(device: str | torch.device) -> torch.autocast:
    """Return a context manager: bfloat16 autocast where `autocast_dtype` finds it native, else nothing."""
    dtype = autocast_dtype(device)
    return torch.autocast(torch.device(device).type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 itself, whatever the caller's program has set: not TF32 or bfloat16, no autocast; and on a GPU the same
    algorithms every time, none of them chosen by trying.
    """
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    kernels = [(backends.cuda.matmul, backends), (cudnn.conv, cudnn), (cudnn.rnn, cudnn)]
    kernels += [(mkldnn.matmul, mkldnn), (mkldnn.conv, mkldnn)]
    # One that follows what is set above it goes on doing so.
    precisions = ["none" if of.fp32_precision == above.fp32_precision else of.fp32_precision for of, above in kernels]
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
        for kernel, _ in kernels:
            kernel.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before
        for (kernel, _), precision in zip(kernels, precisions, strict=True):
            kernel.fp32_precision = precision


@lru_cache(maxsize=1)
def _cpu_has_fast_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(feature, False) for feature in FAST_BFLOAT16_FEATURES)
    return bool(torch.cpu._is_avx512_bf16_supported())  # before torch 2.12; every processor with AMX has it too
