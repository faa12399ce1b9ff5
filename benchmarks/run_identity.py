"""Which code made a figure, and on which machine."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from dpmepf import shared
from dpmepf.shared import __version__

PACKAGES = ("shared", "artifacts", "embed", "synthesize")


@cache
def version_of(*further: str) -> str:
    """`version_now`, but asked again it is what it was: what runs was imported by then."""
    return version_now(*further)


def require_unchanged(version: str, *further: str) -> None:
    """Exit if the code is no longer `version`: commands that a run called may have been of either."""
    if (now := version_now(*further)) != version:
        raise SystemExit(f"the code changed during this run, from {version} to {now}: it was not logged; run a clone")


def version_now(*further: str) -> str:
    """The code of a run: version, the last commit that changed it, and a hash of what is not committed, if anything.

    Documents beside the code are not part of it.

    Args:
        further: files of the checkout besides the packages, relative to its root.
    """
    root = _root()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments, "--", *PACKAGES, *further, ":(exclude)*.md"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    try:
        commit, difference = git("log", "-1", "--format=%h", "--abbrev=10").strip(), git("diff", "HEAD")
        new = [root / name for name in git("ls-files", "-z", "--others", "--exclude-standard").split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # installed from a wheel
        return __version__
    content = difference.encode()
    content += b"".join(str(file.relative_to(root)).encode() + file.read_bytes() for file in new if file.is_file())
    changed = f"+{hashlib.sha256(content).hexdigest()[:8]}" if content else ""
    return f"{__version__} {commit}{changed}"


def _root() -> Path:
    """Of the packages that are imported, wherever this file lies."""
    return Path(shared.__file__).resolve().parents[1]


def commit_time_of(version: str) -> str:
    """When the commit that `version_of` names was made, in UTC; "" without git."""
    commit = version.partition(" ")[2].partition("+")[0]
    command = ["git", "-C", str(_root()), "show", "-s", "--format=%ct", commit]
    try:
        seconds = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def machine() -> str:
    """The processor or GPU, the number of threads, and PyTorch's version."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
