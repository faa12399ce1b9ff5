"""One of several processes that torchrun starts: the command, with an event planted in one of them.

Arguments: the rank that it is planted in; the event (as "kill while embedding", see embedding_runs.py); the command's.
"""

from __future__ import annotations

import os
import signal
import sys

from embedding_runs import after, events

from dpmepf.embed import command
from dpmepf.embed.summing import ClassSums


def main(rank: str, event: str, *arguments: str) -> None:
    if os.environ["RANK"] == rank:
        if event == "Ctrl-C at torchrun":
            after(ClassSums, "add", lambda: os.kill(os.getppid(), signal.SIGINT))
        else:
            events()[event]()
    command.main(args=list(arguments), prog_name="dpmepf-embed")


if __name__ == "__main__":
    main(*sys.argv[1:])
