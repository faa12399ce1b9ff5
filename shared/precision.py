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
    mkldnn: Any = torch.backends.mkldnn
    products = [torch.backends.cuda.matmul, mkldnn.matmul, mkldnn.conv]
    before = [product.fp32_precision for product in products]
    with (
        torch.backends.cudnn.flags(  # which switches cuDNN off unless told
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False, fp32_precision="ieee"
        ),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        for product in products:
            product.fp32_precision = "ieee"
        try:
            yield
        finally:
            for product, precision in zip(products, before, strict=True):
                product.fp32_precision = precision


@lru_cache(maxsize=1)
def _cpu_has_fast_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(feature, False) for feature in FAST_BFLOAT16_FEATURES)
    return bool(torch.cpu._is_avx512_bf16_supported())  # before torch 2.12; every processor with AMX has it too
