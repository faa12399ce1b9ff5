"""`torchrun … -m dpmepf.synthesize`: what one process makes, written and told once, or a sentence and a checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from test_synth_command import CLASSES, FILES, write_release
from torchrun import torchrun

from dpmepf.synthesize.checkpoint import CHECKPOINT_FILE, load_checkpoint

STEPS = 6
LONG_ENOUGH = 100  # seconds in which it has to be over; the test machine needs about 10 to start it


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release") / "artifact.h5", CLASSES)


def run(
    count: int, artifact: Path, output: Path, *options: object, rank: int = 0, event: str = ""
) -> subprocess.CompletedProcess[str]:
    """The command by `count` processes, with an event in one of them (see synth_process.py)."""
    settings = ("--steps", STEPS, "--batch-size", 6, "--samples", 5, "--device", "cpu")
    script = Path(__file__).with_name("synth_process.py")
    return torchrun(count, script, rank, event, artifact, "--output", output, *settings, *options)


def sentences(finished: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in finished.stderr.splitlines() if line.startswith("Error: ")]


def losses(folder: Path) -> list[float]:
    found: list[float] = json.loads((folder / "run.json").read_text("utf-8"))["losses"]["every_step"]
    return found


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_processes_leave_a_checkpoint_that_others_finish(count: int, artifact: Path, tmp_path: Path) -> None:
    """torchrun ends its processes by SIGTERM: after the same step, and only the first leaves something."""
    output = tmp_path / "out"
    stopped = run(2, artifact, output, rank=1, event="SIGTERM at torchrun")
    assert stopped.returncode != 0
    (sentence,) = sentences(stopped)
    assert f"stopped after step 3 of {STEPS}" in sentence and "--resume" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert len(load_checkpoint(tmp_path / "out.partial").state["losses"]) == 3

    finished = run(count, artifact, output, "--resume", "--json")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == json.loads((output / "run.json").read_text("utf-8"))
    assert finished.stderr.count("5 images of 2 classes") == finished.stderr.count("Training for") == 1
    assert {path.name for path in output.iterdir()} == FILES | {"images"}
    assert len(list((output / "images").rglob("*.png"))) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(losses(output)) == STEPS


def test_a_process_that_is_killed_ends_the_run_with_one_sentence(artifact: Path, tmp_path: Path) -> None:
    """That the connection broke, or on a busy machine before that, that torchrun stops the others."""
    said = "the training stopped before its first checkpoint|another process of this run failed or was stopped"
    check_ending(artifact, tmp_path, 1, "kill before a checkpoint", said, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "event", "said", "steps_kept"),
    [
        (1, "kill before training", "another process of this run", None),
        (0, "kill", "its last checkpoint is in", 2),
        (1, "kill", "its last checkpoint is in", 2),
        (0, "SIGTERM", "stopped after step 3", 3),
        (1, "SIGTERM", "stopped after step 3", 3),
        (0, "Ctrl-C", "stopped after step 3", 3),
        (1, "Ctrl-C", "stopped after step 3", 3),
        (0, "SIGTERM at torchrun while drawing", "stopped while", STEPS),
        (0, "a full disk", "the disk is full", None),
    ],
)
def test_what_ends_one_process_ends_all_with_one_sentence_and_what_can_be_resumed(
    artifact: Path, tmp_path: Path, rank: int, event: str, said: str, steps_kept: int | None
) -> None:
    check_ending(artifact, tmp_path, rank, event, said, steps_kept)


@pytest.mark.slow
def test_a_defect_in_one_process_keeps_its_traceback_and_is_the_only_one_to_speak(
    artifact: Path, tmp_path: Path
) -> None:
    finished = run(2, artifact, tmp_path / "out", rank=1, event="a defect")
    assert finished.returncode != 0
    assert sentences(finished) == []
    assert finished.stderr.count("ZeroDivisionError: planted") == 1
    assert len(load_checkpoint(tmp_path / "out.partial").state["losses"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"), [(("--steps", "few"), "is not a valid integer"), (("--batch-size", 2), "3 processes cannot")]
)
def test_what_every_process_refuses_is_refused_once(
    artifact: Path, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    finished = run(3, artifact, tmp_path / "out", *options)
    assert finished.returncode != 0
    assert finished.stderr.count(said) == 1, finished.stderr
    assert list(tmp_path.iterdir()) == []


def check_ending(artifact: Path, tmp_path: Path, rank: int, event: str, said: str, steps_kept: int | None) -> None:
    """The run ends soon, says one sentence, and leaves nothing but a checkpoint after `steps_kept` steps, if any."""
    began = time.monotonic()
    finished = run(2, artifact, tmp_path / "out", rank=rank, event=event)
    assert finished.returncode != 0
    assert time.monotonic() - began < LONG_ENOUGH
    assert finished.stdout == ""
    assert len(sentences(finished)) == 1, finished.stderr
    assert re.search(said, sentences(finished)[0])
    if steps_kept is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
        checkpoint = tmp_path / "out.partial" / CHECKPOINT_FILE
        assert len(load_checkpoint(checkpoint.parent).state["losses"]) == steps_kept
