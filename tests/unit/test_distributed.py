"""Several processes make one release: the integers of one process, one charge, one artifact, one voice."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from summing_process import SCHEMA, UNITS, exact_sums
from torchrun import torchrun

from dpmepf.artifacts.audit import audit_artifact
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.artifacts.register import Register
from dpmepf.embed.distributed import Processes, joined
from dpmepf.shared.errors import UsageError
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.image_workers import usable_cores
from dpmepf.shared.processes import _use_cores

SECRET = "patient-4711"
IMAGES = 43


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Persons with 1 to 8 images, in both classes."""
    root = tmp_path_factory.mktemp("private")
    generator = np.random.default_rng(0)
    for index in range(IMAGES):
        person = f"{SECRET}-{generator.integers(12)}"
        path = root / SCHEMA.classes[index % 2] / person / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(path)
    return root


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(2, 9))
def test_the_shares_of_all_processes_are_all_images_once_and_each_persons_in_one(sizes: list[int], count: int) -> None:
    owners = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    shares = [Processes(rank=rank, count=count, local_rank=0).share(owners) for rank in range(count)]
    assert np.concatenate([np.arange(len(owners))[share] for share in shares]).tolist() == list(range(len(owners)))
    persons = [set(owners[share].tolist()) for share in shares]
    assert sum(map(len, persons)) == len(sizes)
    largest = max(sizes, default=0)
    assert all(len(owners[share]) <= len(owners) / count + largest + 1 for share in shares)


@pytest.mark.parametrize("count", [2, 4])
def test_what_is_noised_is_bit_identical_to_one_process_for_both_units_of_privacy(
    data: Path, tmp_path: Path, count: int
) -> None:
    """None can be reached from outside. Those that see others or in another order stop, or have other features."""
    finished = torchrun(count, Path(__file__).with_name("summing_process.py"), data, tmp_path)
    assert finished.returncode == 0, finished.stderr
    threads = torch.get_num_threads()
    try:
        for unit in UNITS:
            expected = exact_sums(open_images(data, classes=SCHEMA.classes), unit, None)
            assert expected is not None and expected.any()
            assert np.array_equal(np.load(tmp_path / f"{unit}.npy"), expected)
    finally:
        torch.set_num_threads(threads)
    for rank in range(count):
        assert set((tmp_path / f"addresses {rank}").read_text().split()) == {"0100007F"}  # 127.0.0.1
    for rank in range(count):
        features, images = (tmp_path / f"refused {rank}").read_text().splitlines()
        assert "compute other features of the same images" in features
        assert "do not see the same images" in images


def test_the_command_releases_once_by_two_processes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process draws one value of noise for each that is released, and the other none."""
    output, register, draws = tmp_path / "artifact.h5", tmp_path / "register.sqlite", tmp_path / "draws"
    monkeypatch.setenv("DRAWS", str(draws))
    script = Path(__file__).parents[1] / "attacks" / "embedding_process.py"
    finished = torchrun(
        *(2, script, "", "", "--data", data, "--eps", 2, "--workers", 0, "--batch-size", 8, "--device", "cpu"),
        *("--classes", "healthy,ill", "--unit-from-folder", "--output", output),
        *("--dataset", "clinic", "--register", register, "--budget-eps", 3, "--json"),
    )
    assert finished.returncode == 0, finished.stderr
    assert audit_artifact(output).valid
    artifact = read_artifact(output)
    ledger = artifact.ledger
    assert [release.ledger for release in Register(register).read().accounts["clinic"].releases] == [ledger]
    assert finished.stdout.count(ledger.release_id) == finished.stdout.count("\n") == 1
    assert finished.stderr.count("Released once") == finished.stderr.count("Embedding images") == 1
    assert SECRET not in finished.stderr and not re.search(rf"\b({IMAGES}|{IMAGES // 2})\b", finished.stderr)
    ranks, counts = zip(*(line.split() for line in draws.read_text().splitlines()), strict=True)
    assert set(ranks) == {"0"}
    assert sum(map(int, counts)) == artifact.noisy_sums.size + artifact.noisy_counts.size
    assert {path.name for path in tmp_path.iterdir()} == {output.name, register.name, draws.name}


def test_torchruns_one_process_is_as_any_and_joins_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    with joined():
        assert Processes.of_torchrun() is None
        assert not torch.distributed.is_initialized()
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_torchrun_would_repeat_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in (environment | {"TORCHELASTIC_MAX_RESTARTS": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="made again"), joined():
        pytest.fail("it began")


def test_processes_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    cores = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # left over in a shell, without torchrun
    assert usable_cores() == 12
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    for count in ("1", "4", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        cores.append(usable_cores())
    assert cores == [12, 3, 1]


@pytest.mark.parametrize(("set_to", "threads"), [("1", [3]), ("2", [])])
def test_processes_compute_on_their_part_of_the_cores_unless_told(
    set_to: str, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OMP_NUM_THREADS=1 is torchrun's own doing where nobody has set it."""
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": set_to}.items():
        monkeypatch.setenv(name, value)
    _use_cores()
    assert found == threads
