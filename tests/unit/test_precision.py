"""bfloat16 is used exactly where the hardware computes with it natively."""

from __future__ import annotations

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
