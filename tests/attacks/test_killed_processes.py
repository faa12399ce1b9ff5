"""One of several processes fails, is killed or interrupted: the run ends, nothing is released, charged or left behind,
and it is said once, or by torchrun alone: the others have done their part when the first has all sums, and whether it
then released anything is not theirs to say.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchrun import torchrun

LONG_ENOUGH = 100  # seconds in which it has to be over; the test machine needs about 15 to start it
SECRET = "patient-4711"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "private"
    root.mkdir()
    generator = np.random.default_rng(0)
    for index in range(80):
        Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(root / f"{SECRET}-{index:02}.png")
    return root


INTERRUPTED = "interrupted: nothing was released and nothing was written"
LOST = f"another process of this run|{INTERRUPTED}"  # by which comes first: the loss, or torchrun's word to stop for it
ENDS = [
    (1, "kill before the data are opened", LOST),
    (1, "kill while embedding", LOST),
    (3, "kill while embedding", LOST),
    (0, "kill while embedding", LOST),
    (0, "kill after the sums", None),
    (2, "a defect that quotes private values", "internal error RuntimeError"),
    (0, "a defect that quotes private values", "internal error RuntimeError"),
    (2, "Ctrl-C while embedding", INTERRUPTED),
    (2, "Ctrl-C at torchrun", INTERRUPTED),
    (2, "an image that cannot be decoded", "an image cannot be used"),
]


@pytest.mark.parametrize(
    ("processes", "rank", "event", "said"),
    [(2, *ENDS[1]), *(pytest.param(4, *end, marks=pytest.mark.slow) for end in ENDS)],
)
def test_a_process_that_ends_too_early_ends_the_run_with_one_sentence_at_most(
    data: Path, tmp_path: Path, processes: int, rank: int, event: str, said: str | None
) -> None:
    out, register = tmp_path / "out", tmp_path / "register.sqlite"
    out.mkdir()
    if event == "an image that cannot be decoded":
        (data / f"{SECRET}-{80 * rank // processes:02}.png").write_bytes(b"not an image")
        event = ""
    began = time.monotonic()
    finished = torchrun(
        *(processes, Path(__file__).with_name("embedding_process.py"), rank, event),
        *("--data", data, "--eps", 2, "--workers", 0, "--batch-size", 8, "--device", "cpu", "--output", out / "a.h5"),
        *("--classes", "1", "--resolution", 28, "--channels", 1),
        *("--dataset", "clinic", "--register", register, "--budget-eps", 2),
    )
    assert finished.returncode != 0
    assert time.monotonic() - began < LONG_ENOUGH
    assert list(out.iterdir()) == []
    assert not register.exists()
    assert finished.stdout == ""
    assert SECRET not in finished.stderr
    sentences = [line for line in finished.stderr.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == (said is not None), finished.stderr
    assert said is None or re.search(said, sentences[0])
    assert "Released once" not in finished.stderr


@pytest.mark.slow
def test_processes_that_kept_their_sums_go_on_and_leave_none(data: Path, tmp_path: Path) -> None:
    def command(event: str) -> subprocess.CompletedProcess[str]:
        return torchrun(
            *(2, Path(__file__).with_name("embedding_process.py"), 1, event),
            *("--data", data, "--eps", 2, "--workers", 0, "--batch-size", 8, "--device", "cpu"),
            *("--output", tmp_path / "a.h5", "--checkpoint", tmp_path / "kept"),
        )

    assert command("kill after keeping sums").returncode != 0
    assert sorted(tmp_path.glob("kept*")) == [tmp_path / "kept.0", tmp_path / "kept.1"]
    assert not (tmp_path / "a.h5").exists()
    finished = command("")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "a.h5").exists()
    assert list(tmp_path.glob("*kept*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("sums that cannot be kept", "the sums could not be kept in {} (No space left on device); the run goes on"),
        ("sums that cannot be deleted", "delete {}, which holds exact sums and could not be deleted"),
    ],
)
def test_a_process_whose_sums_are_not_as_they_should_be_says_so_itself(
    data: Path, tmp_path: Path, event: str, said: str
) -> None:
    finished = torchrun(
        *(2, Path(__file__).with_name("embedding_process.py"), 1, event),
        *("--data", data, "--eps", 2, "--workers", 0, "--batch-size", 8, "--device", "cpu"),
        *("--output", tmp_path / "a.h5", "--checkpoint", tmp_path / "kept"),
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("Warning: " + said.format(tmp_path / "kept.1")) == 1, finished.stderr
    assert SECRET not in finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("option", "said"), [("--data", "does not exist"), ("--eps", "is not a valid float")])
def test_an_option_that_every_process_refuses_is_refused_once(tmp_path: Path, option: str, said: str) -> None:
    options = {"--data": tmp_path, "--eps": 2, "--output": tmp_path / "a.h5"} | {option: "nowhere"}
    finished = torchrun(2, "-m", "dpmepf.embed", *(part for pair in options.items() for part in pair))
    assert finished.returncode != 0
    assert finished.stderr.count("Error: ") - finished.stderr.count("ChildFailedError: ") == 1, finished.stderr
    assert said in finished.stderr
    assert list(tmp_path.iterdir()) == []
