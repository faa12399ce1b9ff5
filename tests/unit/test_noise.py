"""`add_discrete_gaussian_noise`: nothing to seed, nothing to inject, every failure is an error."""

import inspect
import random
import threading

import numpy as np
import opendp.prelude as dp
import pytest
import torch

from dpmepf.embed import noise
from dpmepf.embed.noise import CHUNK_DRAWS, NoiseError, add_discrete_gaussian_noise


def test_two_draws_differ_in_practically_every_value_whatever_is_seeded() -> None:
    """Two draws agree in one coordinate with probability 1/(2σ√π) = 3e-7, so in 5,000 twice with less than 1e-5."""
    draws = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        draws.append(add_discrete_gaussian_noise(np.zeros(5_000, dtype=np.int64), sigma=1e6))
    assert np.count_nonzero(draws[0] == draws[1]) <= 3  # false alarm below 1e-12


def test_there_is_nothing_to_seed_inject_or_switch_off() -> None:
    assert set(inspect.signature(add_discrete_gaussian_noise).parameters) == {"values", "sigma", "progress"}


def test_the_noise_adds_to_the_values_and_leaves_the_argument_alone() -> None:
    values = np.arange(-3000, 3000, dtype=np.int64) * 10**12
    copy = values.copy()
    noisy = add_discrete_gaussian_noise(values, sigma=50.0)
    assert np.array_equal(values, copy)
    assert 0 < np.abs(noisy - values).max() < 50 * 12  # 12σ: false alarm below 1e-28


def test_many_chunks_all_arrive_in_their_place_and_progress_counts_them() -> None:
    values = np.arange(2 * CHUNK_DRAWS + 5, dtype=np.int64) * 10**9
    finished: list[int] = []
    noisy = add_discrete_gaussian_noise(values, sigma=1.0, progress=finished.append)
    assert np.abs(noisy - values).max() < 20
    assert sum(finished) == len(values) and len(finished) == 3


def test_values_at_the_edge_of_int64_saturate_instead_of_wrapping() -> None:
    values = np.full(200, 2**63 - 1, dtype=np.int64)
    assert add_discrete_gaussian_noise(values, sigma=2.0**20).min() > 2**62


def test_no_value_gives_no_value() -> None:
    assert add_discrete_gaussian_noise(np.zeros(0, dtype=np.int64), sigma=2.0).shape == (0,)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 0.5, float("nan"), float("inf"), 2.0**57])
def test_a_scale_that_the_accounting_does_not_cover_is_refused(sigma: float) -> None:
    with pytest.raises(NoiseError, match="noise scale"):
        add_discrete_gaussian_noise(np.zeros(3, dtype=np.int64), sigma=sigma)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 2), dtype=np.int64), np.zeros(3, dtype=np.int32)])
def test_only_integer_vectors_are_noised(values: np.ndarray) -> None:
    with pytest.raises(NoiseError, match="integers only"):
        add_discrete_gaussian_noise(values, sigma=2.0)


def test_missing_entropy_is_an_error_without_the_librarys_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entropy(*_: object, **__: object) -> object:
        raise OSError("value 123456 could not be noised")

    monkeypatch.setattr(dp.m, "make_gaussian", no_entropy)
    with pytest.raises(NoiseError, match="nothing was released") as caught:
        add_discrete_gaussian_noise(np.zeros(3, dtype=np.int64), sigma=2.0)
    assert "123456" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_mechanism_that_returns_too_few_values_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp.m, "make_gaussian", lambda *_, **__: lambda values: values[:-1].tolist())
    with pytest.raises(NoiseError, match="another number of values"):
        add_discrete_gaussian_noise(np.zeros(3, dtype=np.int64), sigma=2.0)


def test_a_failure_in_one_chunk_fails_the_whole_release(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls, lock = noise._noisy_chunk, [], threading.Lock()

    def second_fails(values: np.ndarray, sigma: float) -> np.ndarray:
        with lock:
            calls.append(None)
            number = len(calls)
        if number == 2:
            raise NoiseError("planted")
        return real(values, sigma)

    monkeypatch.setattr(noise, "_noisy_chunk", second_fails)
    with pytest.raises(NoiseError, match="planted"):
        add_discrete_gaussian_noise(np.zeros(CHUNK_DRAWS * 3, dtype=np.int64), sigma=2.0)
