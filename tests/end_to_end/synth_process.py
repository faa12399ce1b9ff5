"""One of several processes that torchrun starts: the command, with an event planted in one of them.

Arguments: the rank that it is planted in; the event; the command's.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable

from dpmepf.synthesize import command, labelling, synthesis, training


def before_step(step: int, action: Callable[[], object]) -> None:
    run_step = training.GeneratorTraining.run_step

    def planted(state: training.GeneratorTraining) -> None:
        if state.step == step - 1:
            action()
        run_step(state)

    training.GeneratorTraining.run_step = planted  # type: ignore[method-assign]


def fail(error: Exception) -> None:
    raise error


def kill(*numbers: int, to: Callable[[], int] = os.getpid) -> None:
    for number in numbers:
        os.kill(to(), number)


def ctrl_c() -> None:
    """A terminal sends the signal to torchrun and to its processes, and torchrun passes it on."""
    kill(signal.SIGINT)
    kill(signal.SIGINT, to=os.getppid)


def kill_instead_of(name: str) -> None:
    setattr(synthesis, name, lambda *_: kill(signal.SIGKILL))


def fill_disk() -> None:
    synthesis.save_checkpoint = lambda folder, checkpoint: fail(OSError(errno.ENOSPC, "full"))  # type: ignore[assignment]


def after_training(action: Callable[[], object]) -> None:
    draw = synthesis._draw

    def planted(*arguments: object) -> object:
        action()
        return draw(*arguments)  # type: ignore[arg-type]

    synthesis._draw = planted  # type: ignore[assignment]


EVENTS: dict[str, Callable[[], object]] = {
    "": lambda: None,
    "kill before training": lambda: kill_instead_of("prepare"),
    "kill": lambda: before_step(3, lambda: kill(signal.SIGKILL)),
    "SIGTERM": lambda: before_step(3, lambda: kill(signal.SIGTERM)),
    "SIGTERM at torchrun": lambda: before_step(3, lambda: kill(signal.SIGTERM, to=os.getppid)),
    "Ctrl-C": lambda: before_step(3, ctrl_c),
    "SIGTERM at torchrun while drawing": lambda: after_training(lambda: kill(signal.SIGTERM, to=os.getppid)),
    "a defect": lambda: before_step(3, lambda: fail(ZeroDivisionError("planted"))),
    "a full disk": fill_disk,
}


def main(rank: str, event: str, *arguments: str) -> None:
    if not event.endswith("before a checkpoint"):
        always = functools.partial(synthesis.SynthesisCallbacks, snapshot_seconds=0.0)
        command.SynthesisCallbacks = always  # type: ignore[misc,assignment]
    training.RECALIBRATION_IMAGES = 8
    training.DENOISING_IMAGES = 40
    labelling.IMAGES = labelling.IMAGES_PER_STEP = 40
    if os.environ["RANK"] == rank:
        EVENTS[event.removesuffix(" before a checkpoint")]()
    command.main(args=list(arguments), prog_name="dpmepf-synth")


if __name__ == "__main__":
    main(*sys.argv[1:])
