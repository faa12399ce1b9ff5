"""Measuring: sides that alternate in one run, and the peak memory of a process of its own."""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

_POLL_SECONDS = 0.02
_IDLE_SECONDS = 0.03  # the kernel counts in hundredths
_POLLS_PER_LOOK = 12  # at the processes that the child started
_MIB = 1 << 20


def alternately(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measure every side `repeats` times, in turns, so that a machine whose speed drifts treats all alike."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            figures[name].append(side())
    return figures


def ratios(figures: Mapping[str, list[float]], above: str, below: str) -> list[float]:
    """Of the two sides' figures of the same turn."""
    return [a / b for a, b in zip(figures[above], figures[below], strict=True)]


def seconds_of(work: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds until `device` has finished."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: str) -> None:
    """Until a GPU has done what was queued; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def give_freed_memory_back() -> None:
    """What `keep_freed_memory` keeps: a process is then as small as a command's that has not run its encoder yet."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def wait_until_idle(processes: Sequence[multiprocessing.process.BaseProcess]) -> float:
    """Wait until none of `processes` uses the processor any more; since when, by `time.perf_counter`. Linux only."""
    since, before = time.perf_counter(), processor_times(processes)
    while processes:
        time.sleep(_IDLE_SECONDS)
        now = processor_times(processes)
        if now == before:
            break
        since, before = time.perf_counter(), now
    return since


def processor_times(processes: Sequence[multiprocessing.process.BaseProcess]) -> list[list[str]]:
    """Hundredths of a second that each has run, in itself and in the kernel."""
    states = ["".join(_lines_of(f"/proc/{process.pid}/stat")) for process in processes]
    return [state.rpartition(")")[2].split()[11:13] for state in states]


def peak_of_process(pid: int | str = "self") -> int:
    """VmHWM of a process in bytes, 0 once it has ended; Linux only.

    Unlike `ru_maxrss` it is the program's own: that of a child begins with the size of whoever started it.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else 0


def memory_beside(pid: int) -> float:
    """Bytes that the processes which a process started have in memory beside its own; Linux only.

    No file holds them, and it does not have them itself: pages of its own that it has written to since they were shared
    count, as the others keep them as they were. NaN where the kernel (before 5.4) does not say.
    """
    others = list(_started_by(pid))  # first: one that starts from here on shares what is counted as its own
    if not others:
        return 0
    own_share, own = _anonymous_memory(pid)  # of one moment, as it may free much
    shares = sum(_anonymous_memory(other)[0] for other in others)
    return max(0.0, shares - (own - own_share))


def _started_by(pid: int) -> Iterator[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return
    for child in children:
        yield child
        yield from _started_by(child)


def _anonymous_memory(pid: int) -> tuple[float, float]:
    """Bytes that no file holds: this process's share, and all that it has; 0 once it has ended."""
    rows = (line.split(":", 1) for line in _lines_of(f"/proc/{pid}/smaps_rollup")[1:])  # the first names the mapping
    found = {name: 1024.0 * int(size.split()[0]) for name, size in rows}
    return found.get("Pss_Anon", math.nan if found else 0), found.get("Anonymous", 0)


@dataclass(frozen=True)
class Child:
    """A command that has ended.

    peak_mib: its own, the kernel's high-water mark, read often: what grows in the last hundredth of a second may be
        missed. peak_of_all_mib: and the most that the processes which it starts (its decoding workers) have beside it,
        looked at less often, whether at the same time or not.
    """

    seconds: float
    peak_mib: float
    peak_of_all_mib: float
    output: str


def run_child(command: list[object]) -> Child:
    """Run a command. Raises RuntimeError with what it wrote to stderr."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    peak = looks = 0
    beside = [0.0]
    while True:
        try:
            output, errors = process.communicate(timeout=_POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, peak_of_process(process.pid))
            if looks % _POLLS_PER_LOOK == 0:
                beside.append(memory_beside(process.pid))
            looks += 1
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors.decode(errors='replace')}")
    return Child(seconds, peak / _MIB, (peak + float(np.max(beside))) / _MIB, output.decode())


def run_script(name: str, **arguments: object) -> dict[str, float]:
    """Run a script beside this one in a process of its own; it prints one JSON object, to which its peaks are added."""
    script = Path(__file__).with_name(name)
    child = run_child([sys.executable, script, json.dumps(arguments, default=str)])
    found = {"seconds": child.seconds, "peak_mib": child.peak_mib, "peak_of_all_mib": child.peak_of_all_mib}
    return {**found, **json.loads(child.output)}


def machine(device: str) -> str:
    """GPU if `device` is one, processor, threads and versions, for the head of every table."""
    names = [line for line in _lines_of("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f"{torch.cuda.get_device_name(device)}, " if torch.device(device).type == "cuda" else ""
    return f"{gpu}{processor}, {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _lines_of(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []
