"""Start several processes as `torchrun` does, each with its part of the cores."""

from __future__ import annotations

import os
import subprocess
import sys


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `arguments` (a script or -m module, and its arguments) in `count` processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
