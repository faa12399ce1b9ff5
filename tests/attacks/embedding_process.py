"""One of several processes that torchrun starts: the command, with an event planted in one of them.

Arguments: the rank that it is planted in; the event (as "kill while embedding", see embedding_runs.py); the command's.
Where DRAWS names a file, each process adds a line for every draw of noise: its rank and how many values it is for.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
from embedding_runs import after, events
from numpy.typing import NDArray

from dpmepf.embed import command, noise
from dpmepf.embed.summing import ClassSums


def tell_of_draws(file: Path) -> None:
    draw = noise._noisy_chunk

    def told(values: NDArray[np.int64], sigma: float) -> NDArray[np.int64]:
        with file.open("a") as lines:
            lines.write(f"{os.environ['RANK']} {len(values)}\n")
        return draw(values, sigma)

    noise._noisy_chunk = told


def main(rank: str, event: str, *arguments: str) -> None:
    if os.environ["RANK"] == rank:
        if event == "Ctrl-C at torchrun":
            after(ClassSums, "add", lambda: os.kill(os.getppid(), signal.SIGINT))
        else:
            events()[event]()
    if draws := os.environ.get("DRAWS"):
        tell_of_draws(Path(draws))
    command.main(args=list(arguments), prog_name="dpmepf-embed")


if __name__ == "__main__":
    main(*sys.argv[1:])
