"""Several processes train the generator that one process would train, each on a share of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthesis_stand_ins import RandomFeatureMap, release_of_squares, small_settings
from torchrun import torchrun
from training_process import CASES, PLANTED, STEPS, first_step, outcome, save_state, trained

from dpmepf.embed.distributed import Processes
from dpmepf.shared.errors import UsageError
from dpmepf.shared.processes import LaunchedProcesses
from dpmepf.synthesize.checkpoint import load_checkpoint
from dpmepf.synthesize.parallel import TrainingProcesses
from dpmepf.synthesize.training import GeneratorTraining

# In float32. What differs is the order of sums, to which the metric is sensitive where images hardly vary: dividing the
# batch of one process into micro-batches changes its first gradient by 1e-5.
GRADIENT_TOLERANCE = 2e-4  # of the first step, as a share of its length; found: 3e-5
STATISTICS_TOLERANCE = 1e-5  # of the batch norms after it, as a share of the length of all; found: 1e-6
LOSSES_TOLERANCE = 2e-3  # over 20 steps, as a share of the largest; found: 1e-4, with classes in turns 7e-4
PLANTED_AT_LEAST = 50  # tolerances


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process makes of the same trainings."""
    return {name: outcome(trained(case)) | first_step(trained(case, steps=1)) for name, case in CASES.items()}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As the processes have: images of this size are not worth more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def first_steps_differ_by(one: dict[str, Any], other: dict[str, Any]) -> float:
    """In tolerances, of which equal first steps differ by less than 1."""
    relative = {name: float((one[name] - other[name]).norm() / one[name].norm()) for name in ("gradient", "statistics")}
    return max(relative["gradient"] / GRADIENT_TOLERANCE, relative["statistics"] / STATISTICS_TOLERANCE)


def losses_differ_by(one: dict[str, Any], other: dict[str, Any]) -> float:
    losses = torch.tensor([one["losses"], other["losses"]])
    return float((losses[0] - losses[1]).abs().max() / losses[0].abs().max())


@given(st.integers(1, 50), st.integers(1, 9))
def test_the_shares_of_all_processes_are_all_images_once_and_differ_by_one(images: int, count: int) -> None:
    shares = [range(images)[TrainingProcesses(rank=r, count=count, local_rank=0).share(images)] for r in range(count)]
    assert [image for share in shares for image in share] == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 4))])
def test_several_processes_train_as_one_does(count: int, alone: dict[str, Any], tmp_path: Path) -> None:
    """The gradients and losses of one, the same bits in all processes, also where another number made the first steps.

    Each bug that can be planted in the sums is noticed. What ends the training in one process ends it in all.
    """
    save_state(tmp_path, trained(CASES["in turns"], steps=STEPS // 2))
    finished = torchrun(count, Path(__file__).with_name("training_process.py"), tmp_path)
    assert finished.returncode == 0, finished.stderr
    first, *others = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]
    found = first["found"]
    for name in CASES:
        assert first_steps_differ_by(alone[name], found[name]) < 1, name
        assert losses_differ_by(alone[name], found[name]) < LOSSES_TOLERANCE, name
    for plant in PLANTED:
        assert first_steps_differ_by(alone["whole batches"], found[plant.__name__]) > PLANTED_AT_LEAST, plant
    halfway = load_checkpoint(tmp_path / "halfway").state
    resumed_by_one = outcome(trained(CASES["in turns"], state=halfway))
    for resumed in (found["resumed by several"], resumed_by_one):
        assert losses_differ_by(alone["in turns"], resumed) < LOSSES_TOLERANCE
    for name in (*CASES, "resumed by several"):
        assert {other["found"][name]["hash"] for other in others} == {found[name]["hash"]}, name

    assert all(other["refusals"] == first["refusals"] for other in others)
    refusals = first["refusals"]
    assert refusals["stopped"] == "TrainingStopped: stopped after step 3 of 6"
    assert len(load_checkpoint(tmp_path / "0").state["losses"]) == 3
    assert refusals["not finite"].startswith("TrainingError: the loss is no longer finite at step 3")
    assert "do not see the same artifact, settings, checkpoint" in refusals["not the same"]


def test_more_processes_than_images_are_refused() -> None:
    processes = TrainingProcesses(rank=0, count=13, local_rank=0)
    release: Any = release_of_squares(RandomFeatureMap())
    with pytest.raises(UsageError, match="13 processes cannot share the 12 images of a step: start fewer, or"):
        GeneratorTraining(release, RandomFeatureMap(), small_settings(), processes=processes)


@pytest.mark.parametrize("kind", [TrainingProcesses, Processes])
def test_each_process_takes_a_gpu_of_its_own_or_says_that_there_are_too_few(
    kind: type[LaunchedProcesses], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    several = [kind(rank=4 + local, count=8, local_rank=local) for local in range(3)]
    assert [str(one.device("auto")) for one in several[:2]] == ["cuda:0", "cuda:1"] == [str(one) for one in chosen]
    assert str(several[1].device("cpu")) == "cpu"
    assert str(kind(rank=0, count=1, local_rank=0).device("auto")) == "cuda"
    with pytest.raises(UsageError, match="has 2 GPUs"):
        several[2].device("auto")
