"""bfloat16 is used exactly where the hardware computes with it natively."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from dpmepf.shared import precision


@pytest.fixture(autouse=True)
def forget_the_real_processor() -> Iterator[None]:
    precision._cpu_has_fast_bfloat16.cache_clear()
    yield
    precision._cpu_has_fast_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, None),
        ({"avx2": True}, None),
        ({"avx2": True, "avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_a_processor_gets_bfloat16_only_if_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision.autocast_dtype("cpu") == expected
    with precision.autocast("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (expected or torch.float32)


def test_an_older_torch_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert precision.autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_gets_bfloat16_only_if_it_is_not_emulated(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    asked: list[bool] = []

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert precision.autocast_dtype("cuda") == (torch.bfloat16 if supported else None)
    assert asked == [False]


def test_an_unknown_kind_of_device_stays_in_float32() -> None:
    assert precision.autocast_dtype("mps") is None


def test_exact_float32_is_by_cudnn_without_tf32_or_search_and_leaves_no_trace() -> None:
    def state() -> tuple[object, ...]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        return (
            *(cudnn.enabled, cudnn.deterministic, cudnn.benchmark),
            *(cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision),
            *(torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        )

    before = state()
    with pytest.raises(RuntimeError, match="inside"), precision.exact_float32():
        inside = state()
        raise RuntimeError("inside")
    assert inside == (True, True, False, "ieee", "ieee", "ieee", False, False)
    assert state() == before


def test_exact_float32_takes_what_was_set_and_what_is_set_later() -> None:
    """By the names that torch has had for it since 2.9; a process of its own, as some of it cannot be taken back."""
    program = """
import torch
from dpmepf.shared.precision import exact_float32
backends = torch.backends
for value in ("ieee", "tf32", "none"):
    for part in (backends, backends.cudnn.rnn, backends.mkldnn.conv):
        part.fp32_precision = value
        before = [of.fp32_precision for of in (backends, backends.cudnn.conv, backends.mkldnn.matmul, part)]
        with exact_float32():
            assert backends.cudnn.rnn.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"
        assert before == [of.fp32_precision for of in (backends, backends.cudnn.conv, backends.mkldnn.matmul, part)]
for value in ("tf32", "ieee"):
    backends.fp32_precision = value
    with exact_float32():
        pass
assert backends.cuda.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_exact_float32_is_the_same_whatever_the_program_has_set() -> None:
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(64, 500, generator=random), torch.randn(500, 64, generator=random)
    expected = left @ right
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with precision.exact_float32():
                assert torch.equal(left @ right, expected)
            assert (left @ right).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
