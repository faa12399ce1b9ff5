"""`make bench` works: its quick run, in which every part measures next to nothing, fills every table."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import measuring
import pytest
from measuring import memory_beside, run_child
from tables import Part, Target

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "speed"

LETTERS = {"embed": "(a)", "release": "(b)", "synth": "(c)", "scaling": "(d)", "ceilings": "(e)"}
ABSENT = "the whole command on MNIST"


@pytest.fixture(scope="module")
def parts() -> list[dict[str, object]]:
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--quick", "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    found: list[dict[str, object]] = json.loads(finished.stdout)["parts"]
    return found


@pytest.mark.slow  # as those below that take `parts`: a run of the benchmark, which `make bench` is for
@pytest.mark.parametrize("part", LETTERS)
def test_every_figure_of_a_quick_run_is_finite_and_positive(part: str, parts: list[dict[str, object]]) -> None:
    tables = [table for table in parts if str(table["title"]).startswith(LETTERS[part])]
    rows = [row for table in tables for row in table["rows"]]  # type: ignore[attr-defined]
    assert len(rows) >= 5
    for row in rows:
        assert row["figures"] and all(math.isfinite(figure) and figure > 0 for figure in row["figures"]), row
        assert (row["verdict"] is None) == (row["target"] is None)


@pytest.mark.slow
def test_data_that_are_not_here_are_named_in_a_sentence_and_the_rest_is_measured(
    parts: list[dict[str, object]],
) -> None:
    [table] = [table for table in parts if ABSENT in str(table["title"])]
    assert not table["rows"]
    assert "is not on this machine" in str(table["notes"])


@pytest.mark.slow
def test_every_part_has_targets_but_the_release(parts: list[dict[str, object]]) -> None:
    targets = {str(table["title"])[:3] for table in parts for row in table["rows"] if row["target"]}  # type: ignore[attr-defined]
    assert targets == {"(a)", "(c)", "(d)"}


@pytest.mark.parametrize(
    ("target", "figure", "verdict"),
    [
        (Target(at_least=0.8), 0.8, "PASS"),
        (Target(at_least=0.8), 0.76, "misses by 5 %"),
        (Target(at_most=1.4), 1.39, "PASS"),
        (Target(at_most=1.4), 1.61, "misses by 15 %"),
        (Target(at_most=1.0), 1.0001, "misses by less than 1 %"),
        (Target(at_most=1.0), math.nan, "not measured"),
    ],
)
def test_a_verdict_says_by_how_much_a_target_was_missed(target: Target, figure: float, verdict: str) -> None:
    assert target.verdict(figure) == verdict


def test_the_verdict_is_the_medians() -> None:
    part = Part(title="")
    part.add("", "ratio", [0.7, 0.9, 0.9], Target(at_least=0.8))
    assert part.rows[0].to_dict()["verdict"] == "PASS"


def test_memory_that_a_look_could_not_tell_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([1.0, math.nan])
    monkeypatch.setattr(measuring, "memory_beside", lambda pid: next(looks, 0.0))
    child = run_child([sys.executable, "-c", "import time; time.sleep(1)"])
    assert math.isnan(child.peak_of_all_mib) and child.peak_mib > 0


ROLLUP = Path("/proc/self/smaps_rollup")
TOLD_BY_KERNEL = ROLLUP.exists() and "Pss_Anon" in ROLLUP.read_text()
PARENT_THAT_REWRITES = """
import multiprocessing, sys, time
if __name__ == "__main__":
    held = bytearray(b"x") * (128 << 20)
    processes = multiprocessing.get_context("fork")
    for _ in range(2):
        processes.Process(target=time.sleep, args=(60,), daemon=True).start()
    for letter in (b"x", b"y"):
        if letter == b"y":
            held[:] = letter * len(held)
        print("ready", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.skipif(not TOLD_BY_KERNEL, reason="the kernel does not say how much memory processes share")
def test_memory_that_several_children_keep_after_their_parent_rewrote_it_is_counted_once() -> None:
    command = [sys.executable, "-c", PARENT_THAT_REWRITES]
    found = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
            found.append(memory_beside(process.pid) / 2**20)
            process.stdin.write("\n")
            process.stdin.flush()
    assert found[0] < 32  # all of it is the parent's, too
    assert 120 < found[1] < 160
