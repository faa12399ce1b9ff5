"""Runs of `dpmepf-embed` for the leak scan, each in a process of its own with one event planted in it.

As a program it loads the command once (most of the time that a run takes) and forks a child for each run: the child's
working folder, stdout, stderr, TMPDIR, HOME and state folder are its own, and it then is the command.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Action = Callable[[], object]
FOLDERS = ("out", "tmp", "state", "home")
PARALLEL = 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the command in `folder`, which is made: arguments, and the name of a planted event."""

    folder: Path
    arguments: Sequence[object]
    event: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    exit_status: int | None = None
    """Known when it has ended; -9 where it was killed."""

    def text(self, stream: str) -> str:
        return (self.folder / stream).read_text("utf-8")

    def files(self, name: str) -> set[str]:
        return {str(path.relative_to(self.folder / name)) for path in (self.folder / name).rglob("*")}


def run_all(runs: Sequence[Run]) -> list[Run]:
    """Carry the runs out, two at a time."""
    jobs = []
    for run in runs:
        for name in FOLDERS:
            (run.folder / name).mkdir(parents=True)
        arguments = ["--eps", 2, "--batch-size", 16, "--workers", 0, "--device", "cpu", "--output", "out/artifact.h5"]
        jobs.append(
            {
                "folder": str(run.folder),
                "arguments": [*map(str, arguments), *map(str, run.arguments)],
                "event": run.event,
                "environment": run.environment,
            }
        )
    finished = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # two runs at a time
        input=json.dumps(jobs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    statuses = json.loads(finished.stdout)
    return [
        Run(folder=run.folder, arguments=run.arguments, event=run.event, exit_status=statuses[str(run.folder)])
        for run in runs
    ]


def kill() -> None:
    """As the kernel does when memory is short, or `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def before(owner: Any, name: str, action: Action) -> None:
    """Let `action` happen whenever the function `owner.name` is called, before it does anything."""
    real = getattr(owner, name)

    def planted(*arguments: Any, **options: Any) -> Any:
        action()
        return real(*arguments, **options)

    setattr(owner, name, planted)


def after(owner: Any, name: str, action: Callable[..., object]) -> None:
    """Let `action`, with what it returned, happen whenever the function `owner.name` has done its work."""
    real = getattr(owner, name)

    def planted(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        action(result) if action.__code__.co_argcount else action()
        return result

    setattr(owner, name, planted)


def while_the_artifact_is_written(plant: Action) -> None:
    """Plant only then: the register's file is written in the same way."""
    from dpmepf.artifacts import hdf5_file

    before(hdf5_file, "write_atomically", plant)


def once(action: Action) -> Action:
    """`action` the first time only."""
    actions = [action]
    return lambda: actions.pop()() if actions else None


def raising(error: BaseException) -> Action:
    def action() -> None:
        raise error

    return action


def stages(action: Action) -> dict[str, Action]:
    """What plants `action` at each stage of a run, in the order in which they come."""
    from dpmepf.artifacts import atomic_file, register
    from dpmepf.embed import noise, pipeline, request, run
    from dpmepf.embed import release as release_module
    from dpmepf.embed.summing import ClassSums

    return {
        "before the data are opened": lambda: before(request, "open_images", action),
        "before the first image": lambda: before(pipeline, "sum_images", action),
        "while embedding": lambda: after(ClassSums, "add", action),
        "after the sums": lambda: after(ClassSums, "take", action),
        "between check and charge": lambda: before(register.Register, "charge", action),
        "in the middle of the charge": lambda: after(register, "_append", action),
        "between entry and return of the charge": lambda: before(register.Register, "read", once(action)),
        "after the charge": lambda: after(register.Register, "charge", action),
        "while the noise is drawn": lambda: after(noise, "_noisy_chunk", action),
        "between noise and writing": lambda: after(release_module, "add_discrete_gaussian_noise", action),
        "before the artifact is written": lambda: before(run, "write_artifact", action),
        "between writing and naming": lambda: while_the_artifact_is_written(
            lambda: after(atomic_file.os, "fsync", action)
        ),
        "after naming": lambda: while_the_artifact_is_written(lambda: before(atomic_file, "_flush_folder", action)),
        "after everything": lambda: after(run, "write_artifact", action),
    }


def keep_often() -> None:
    """Keep sums after every batch."""
    from dpmepf.embed import run

    def often(kept: Any) -> None:
        kept.interval_seconds, kept.largest_share = 0.0, math.inf

    after(run, "place_checkpoint", often)


def keeping_stages(action: Action) -> dict[str, Action]:
    """What plants `action` where sums are kept, which then happens after every batch."""
    from dpmepf.artifacts import atomic_file
    from dpmepf.embed import checkpoint, run

    def planted(plant: Action) -> Action:
        return lambda: (keep_often(), plant())

    return {
        "after keeping sums": planted(lambda: after(checkpoint.Checkpoint, "save", action)),
        "between writing and naming the sums": planted(
            lambda: before(checkpoint, "write_atomically", lambda: after(atomic_file.os, "fsync", action))
        ),
        "between naming the sums and giving them their name": planted(
            lambda: before(checkpoint, "write_atomically", lambda: before(atomic_file.Path, "replace", action))
        ),
        "with sums kept, before the artifact is written": planted(lambda: before(run, "write_artifact", action)),
        "with sums kept, after the artifact is written": planted(lambda: after(run, "write_artifact", action)),
    }


def failures() -> dict[str, Action]:
    """Things that go wrong on their own, with private values in the text of the exception where there can be any."""
    import opendp.prelude as dp

    from dpmepf.artifacts import atomic_file
    from dpmepf.embed import checkpoint, request
    from dpmepf.embed.summing import ClassSums

    def cannot_be_kept() -> None:
        keep_often()
        real = checkpoint.write_atomically
        begun = []

        def write(*arguments: Any, **options: Any) -> None:
            if begun:
                raise full
            begun.append(real(*arguments, **options))

        checkpoint.write_atomically = write

    def cannot_be_deleted() -> None:
        real = Path.unlink

        def unlink(path: Path, **options: Any) -> None:
            if path.name.startswith("kept"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            real(path, **options)

        Path.unlink = unlink  # type: ignore[method-assign]

    seen: list[Any] = []

    def defective(self: object, features: Any, *_: Any) -> None:
        raise RuntimeError(f"unexpected {seen[0].location(0)} among {len(seen[0])}: {features.sum()}")

    def defect_while_summing() -> None:
        after(request, "open_images", lambda source: seen.append(source))
        ClassSums.add = defective  # type: ignore[method-assign]

    def no_entropy(*_: object, **__: object) -> Any:
        def mechanism(values: Any) -> Any:
            raise OSError(f"no entropy for {list(values[:50])}")

        return mechanism

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return {
        "a defect that quotes private values": defect_while_summing,
        "no entropy": lambda: setattr(dp.m, "make_gaussian", no_entropy),
        "a full disk": lambda: while_the_artifact_is_written(lambda: before(atomic_file.os, "fsync", raising(full))),
        "sums that cannot be kept": cannot_be_kept,
        "sums that cannot be deleted": cannot_be_deleted,
    }


def leaks() -> dict[str, Action]:
    """Planted leaks, all of which the scan has to find."""
    from dpmepf.artifacts import hdf5_file
    from dpmepf.embed import release as release_module
    from dpmepf.embed import request
    from dpmepf.embed.summing import ClassSums

    def say(text: object) -> None:
        sys.stderr.write(f"{text}\n")

    def keep(sums: Any) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(sums.features.tobytes())

    def noise_without(exact: slice) -> Action:
        real = release_module.add_discrete_gaussian_noise

        def noise(values: Any, **parameters: Any) -> Any:
            noisy = real(values, **parameters)
            noisy[exact] = values[exact]
            return noisy

        return lambda: setattr(release_module, "add_discrete_gaussian_noise", noise)

    def hidden_in_slack() -> None:
        real, seen = hdf5_file.write_atomically, []
        after(request, "open_images", lambda source: seen.append(len(source)))

        def write(path: Path, content: Any, **options: Any) -> None:
            real(path, bytes(content) + seen[0].to_bytes(8, "little"), **options)

        hdf5_file.write_atomically = write

    return {
        "a name on stderr": lambda: after(request, "open_images", lambda source: say(source.location(0))),
        "the number of records on stderr": lambda: after(
            request, "open_images", lambda source: say(f"{len(source)} images")
        ),
        "sums in a temporary file": lambda: after(ClassSums, "take", keep),
        "features without noise": noise_without(slice(0, 20_000)),
        "counts without noise": noise_without(slice(-3, None)),
        "the number of records in the file's slack": hidden_in_slack,
    }


def events() -> dict[str, Action]:
    killed = {f"kill {stage}": plant for stage, plant in (stages(kill) | keeping_stages(kill)).items()}
    interrupted = {f"Ctrl-C {stage}": plant for stage, plant in (stages(interrupt) | keeping_stages(interrupt)).items()}
    return killed | interrupted | failures() | leaks() | {"": lambda: None}


def be_the_command(job: dict[str, Any]) -> None:
    from dpmepf.embed import command

    folder = Path(job["folder"])
    for descriptor, name in ((0, os.devnull), (1, folder / "stdout"), (2, folder / "stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), descriptor)
    os.environ |= {
        "TMPDIR": str(folder / "tmp"),
        "XDG_STATE_HOME": str(folder / "state"),
        "HOME": str(folder / "home"),
        **job["environment"],
    }
    tempfile.tempdir = None
    os.chdir(folder)
    events()[job["event"]]()
    command.main(args=job["arguments"], prog_name="dpmepf-embed")


def main() -> None:
    import dpmepf.embed.command  # noqa: F401  before any fork

    gc.freeze()  # or every child, as it ends, walks through (and so copies) all that was imported: four seconds

    statuses: dict[str, int] = {}
    running: dict[int, str] = {}

    def wait_for_one() -> None:
        process, status = os.wait()
        statuses[running.pop(process)] = os.waitstatus_to_exitcode(status)

    for job in json.load(sys.stdin):
        if len(running) == PARALLEL:
            wait_for_one()
        process = os.fork()
        if process == 0:
            be_the_command(job)
            return
        running[process] = job["folder"]
    while running:
        wait_for_one()
    json.dump(statuses, sys.stdout)


if __name__ == "__main__":
    main()
