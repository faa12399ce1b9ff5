"""The harness of the hostile files sees what it is there to see: each kind of harm is planted once, and found."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import limited_process
import malformed_structure
import numpy as np
import pytest
from artifact_examples import example_artifact
from limited_process import MEMORY, SECONDS, Ending, call_limited
from malformed_bytes import FORMAT
from malformed_structure import CLASSES, DIMENSION, OUTSIDE

from dpmepf.artifacts.errors import TextError
from dpmepf.artifacts.hdf5_file import write_artifact


def returns(path: Path) -> str:
    return path.name


def refuses(path: Path) -> str:
    raise TextError(f"{path.name}: no")


def raises_untyped(path: Path) -> str:
    raise ValueError("out buffer")


def exits(path: Path) -> str:
    raise SystemExit(0)


def aborts(path: Path) -> str:
    os.abort()


def leaves_without_a_word(path: Path) -> str:
    os._exit(0)


def hangs_in_c_and_keeps_the_interpreter(path: Path) -> str:
    return str(re.match(r"(a+)+$", "a" * 60 + "b"))


def waits_for_ever(path: Path) -> str:
    os.mkfifo(path)
    return path.read_text()


def fills_the_memory_and_stays(path: Path) -> str:
    kept = []
    while True:
        kept.append(np.ones(2**22))


def fills_the_memory_for_a_moment(path: Path) -> str:
    np.ones(MEMORY // 8)
    return "nothing happened"


def fills_the_memory_and_hides_it(path: Path) -> str:
    np.ones(MEMORY // 8)
    raise TextError("a refusal in good order")


def reads_all_plainly(path: Path) -> str:
    """As one reads HDF5 who expects no harm."""
    with h5py.File(path) as file:
        return str({name: file[name][()] for name in ("classes", "noisy_counts", "noisy_sums")})


def reads_all_plainly_and_refuses(path: Path) -> str:
    raise TextError(reads_all_plainly(path))


@pytest.mark.parametrize(
    ("function", "ending", "message"),
    [
        (returns, Ending.RETURNED, r"a\.h5"),
        (refuses, Ending.REFUSED, r"a\.h5: no"),
        (raises_untyped, Ending.UNTYPED, "out buffer"),
        (exits, Ending.UNTYPED, "0"),
        (aborts, Ending.CRASH, "exit status -6"),
        (leaves_without_a_word, Ending.CRASH, "exit status 0"),
        (hangs_in_c_and_keeps_the_interpreter, Ending.HANG, ""),
        (fills_the_memory_and_stays, Ending.MEMORY, ""),
        (fills_the_memory_for_a_moment, Ending.MEMORY, ""),
        (fills_the_memory_and_hides_it, Ending.MEMORY, ""),
    ],
)
def test_every_ending_is_told_from_the_others(
    function: Callable[[Path], str], ending: Ending, message: str, tmp_path: Path
) -> None:
    outcome = call_limited(function, tmp_path / "a.h5")
    assert outcome.ending is ending, outcome
    assert re.search(message, outcome.message)
    assert outcome.orderly == (function in (returns, refuses))
    assert outcome.seconds < SECONDS + 1
    assert outcome.ending is Ending.MEMORY or outcome.peak_memory < MEMORY


def test_a_call_that_waits_for_ever_hangs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_process, "SECONDS_BY_THE_CLOCK", 1.0)
    assert call_limited(waits_for_ever, tmp_path / "pipe").ending is Ending.HANG


@pytest.mark.parametrize("reader", [reads_all_plainly, reads_all_plainly_and_refuses])
@pytest.mark.parametrize(
    "lure", ["external_link", "link_on_an_intermediate_path", "external_storage", "virtual_dataset"]
)
def test_a_plain_reader_is_seen_to_read_outside(reader: Callable[[Path], str], lure: str, tmp_path: Path) -> None:
    outside = tmp_path / OUTSIDE
    outside.mkdir()
    for path in (tmp_path / "a.h5", outside / "secret.h5"):
        write_artifact(path, example_artifact(classes=CLASSES, feature_dimension=DIMENSION))
    assert call_limited(reader, tmp_path / "a.h5", forbidden=outside).orderly  # nothing leads outside yet
    with h5py.File(tmp_path / "a.h5", "r+", libver=FORMAT) as file:
        getattr(malformed_structure, lure)(file)
    outcome = call_limited(reader, tmp_path / "a.h5", forbidden=outside)
    assert (outcome.ending, outcome.message) == (Ending.OUTSIDE, "opened secret.h5")
