"""A run that kept its sums and was killed or interrupted: they are the owner's alone, and the same command goes on."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from embedding_runs import Run, keeping_stages, run_all
from PIL import Image

from dpmepf.artifacts.audit import audit_artifact
from dpmepf.artifacts.register import Register

*STAGES, WRITTEN = list(keeping_stages(lambda: None))
SECRET = "patient-4711"
HOW = ("kill", "Ctrl-C")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("private")
    generator = np.random.default_rng(0)
    for index in range(40):  # in batches of 16
        Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(root / f"{SECRET}-{index:02}.png")
    return root


@pytest.fixture(scope="module")
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Run]]:
    """By event: the run that it ended, and one by the same command afterwards."""
    root = tmp_path_factory.mktemp("runs")
    events = [f"{how} {stage}" for how in HOW for stage in (*STAGES, WRITTEN)]

    def runs(which: str, planted: bool) -> list[Run]:
        found = []
        for number, event in enumerate(events):
            kept, register = root / f"kept{number}", root / f"register{number}.sqlite"
            options = ("--data", data, "--checkpoint", kept, "--dataset", "clinic", "--register", register)
            found.append(
                Run(
                    folder=root / which / str(number),
                    arguments=(*options, "--budget-eps", 5),
                    event=event if planted else "",
                )
            )
        return run_all(found)

    first = runs("first", True)
    for number in range(len(events)):
        for file in (root / f"kept{number}", *root.glob(f".kept{number}.*")):
            if file.exists():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (root / "kept0").exists()
    written = root / f"kept{events.index(f'Ctrl-C {WRITTEN}')}"
    assert not written.exists()
    return dict(zip(events, zip(first, runs("second", False), strict=True), strict=True))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", HOW)
def test_the_same_command_goes_on_and_leaves_no_sums(how: str, stage: str, ended: dict[str, tuple[Run, Run]]) -> None:
    first, second = ended[f"{how} {stage}"]
    assert first.exit_status == (-9 if how == "kill" else 130), first.text("stderr")
    assert second.exit_status == 0, second.text("stderr")
    assert first.files("out") == set()
    assert second.files("out") == {"artifact.h5"}
    assert audit_artifact(second.folder / "out" / "artifact.h5").valid
    kept, register = second.arguments[3], second.arguments[7]
    assert isinstance(kept, Path)
    assert isinstance(register, Path)
    assert list(kept.parent.glob(f"*{kept.name}*")) == []
    charged = Register(register).read().accounts["clinic"].releases
    assert len(charged) == (2 if stage == "with sums kept, before the artifact is written" else 1)
    assert SECRET not in first.text("stderr") + second.text("stderr") + first.text("stdout") + second.text("stdout")


def test_who_interrupts_it_is_told_how_it_goes_on(ended: dict[str, tuple[Run, Run]]) -> None:
    first, _ = ended["Ctrl-C after keeping sums"]
    assert f"nothing was released; the same command goes on from {first.arguments[3]}" in first.text("stderr")


def test_sums_do_not_outlive_the_artifact_that_ctrl_c_came_too_late_for(ended: dict[str, tuple[Run, Run]]) -> None:
    first, _ = ended[f"Ctrl-C {WRITTEN}"]
    assert first.files("out") == {"artifact.h5"}
    assert "out/artifact.h5 is complete: the release was made, and counts" in first.text("stderr")
    kept = first.arguments[3]
    assert isinstance(kept, Path)
    assert list(kept.parent.glob(f"*{kept.name}*")) == []


def test_who_interrupts_it_after_the_charge_is_told_that_it_will_be_charged_anew(
    ended: dict[str, tuple[Run, Run]],
) -> None:
    first, _ = ended["Ctrl-C with sums kept, before the artifact is written"]
    said = first.text("stderr")
    assert "stays charged" in said
    assert f"goes on from {first.arguments[3]}, which is private, to release and charge anew" in said
