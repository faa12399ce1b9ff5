"""Killed or interrupted at any stage, a release is complete or not there, and the register knows what was charged."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from embedding_runs import Run, run_all, stages
from PIL import Image

from dpmepf.artifacts.accounts import Account
from dpmepf.artifacts.audit import audit_artifact
from dpmepf.artifacts.errors import RegisterBudgetError
from dpmepf.artifacts.register import Register

STAGES = list(stages(lambda: None))
CHARGED = STAGES[STAGES.index("between entry and return of the charge") :]
NAMED = STAGES[STAGES.index("after naming") :]
ENDINGS = [
    pytest.param(f"{how} {stage}", marks=marks)
    for how, marks in (("kill", ()), ("Ctrl-C", pytest.mark.slow))
    for stage in STAGES
]
OPTIONS = ("--dataset", "clinic", "--budget-eps", 2, "--register", "state/register.sqlite")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("private")
    generator = np.random.default_rng(0)
    for index in range(40):  # more than one batch
        Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(root / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A finished run by its ending. All that are killed are carried out together, and so are all with Ctrl-C."""

    @functools.cache
    def together(how: str) -> dict[str, Run]:
        root = tmp_path_factory.mktemp("runs")
        runs = [
            Run(folder=root / str(number), arguments=("--data", data, *OPTIONS), event=f"{how} {stage}")
            for number, stage in enumerate(STAGES)
        ]
        return {run.event: run for run in run_all(runs)}

    return lambda ending: together(ending.split()[0])[ending]


def stage_of(ending: str) -> str:
    return ending.partition(" ")[2]


def account(run: Run) -> Account | None:
    """The data set's account, read as the auditor's command reads it; None where none was opened."""
    book = Register(run.folder / "state" / "register.sqlite")
    return book.read().accounts.get("clinic") if book.path.exists() else None


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_ended_where_it_should(ending: str, ended: Callable[[str], Run]) -> None:
    status = ended(ending).exit_status
    assert status == -9 if ending.startswith("kill") else status in (1, 130), ended(ending).text("stderr")


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_artifact_is_complete_or_not_there_and_nothing_else_is(ending: str, ended: Callable[[str], Run]) -> None:
    run = ended(ending)
    output = run.folder / "out" / "artifact.h5"
    assert run.files("out") == ({output.name} if stage_of(ending) in NAMED else set())
    assert run.files("tmp") == run.files("home") == set()
    assert not output.exists() or audit_artifact(output).valid


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_after_ctrl_c_the_custodian_is_told_what_was_released_and_charged(
    stage: str, ended: Callable[[str], Run]
) -> None:
    said = ended(f"Ctrl-C {stage}").text("stderr")
    assert ("the release was made" in said) == (stage in NAMED)
    assert ("stays charged, although out/artifact.h5 does not hold the release" in said) == (
        stage in CHARGED and stage not in NAMED
    )
    assert ("nothing was released and nothing was written" in said) == (stage not in CHARGED)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_release_is_charged_exactly_if_its_noise_could_have_been_drawn(
    ending: str, ended: Callable[[str], Run]
) -> None:
    found = account(ended(ending))
    charged = () if found is None else found.releases
    assert len(charged) == (stage_of(ending) in CHARGED)
    output = ended(ending).folder / "out" / "artifact.h5"
    if output.exists():
        assert charged[0].ledger == audit_artifact(output).ledger


@pytest.mark.parametrize("stage", STAGES)
def test_the_register_of_a_killed_run_goes_on(stage: str, ended: Callable[[str], Run], tmp_path: Path) -> None:
    """No lock and no half entry stay: what was not spent can be spent, and nothing more."""
    state = shutil.copytree(ended(f"kill {stage}").folder / "state", tmp_path / "state")
    whole = account(ended("kill after everything"))
    assert whole is not None
    book = Register(state / "register.sqlite")
    with pytest.raises(RegisterBudgetError) if stage in CHARGED else contextlib.nullcontext():
        book.charge(whole.releases[0].ledger, budget=whole.budget)
    assert len(book.read().accounts["clinic"].releases) == 1
