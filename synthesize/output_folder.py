"""The output folder: filled under another name beside it, and renamed when everything is there.

While `synthetic/` is being made, it is called `synthetic.partial/` and holds a marker file; previews and the checkpoint
appear there. Nothing is ever deleted but folders that carry this program's own files.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dpmepf.shared.errors import UsageError
from dpmepf.synthesize.checkpoint import CHECKPOINT_FILE

RUN_FILE = "run.json"
MARKER_FILE = ".unfinished"


@dataclass(frozen=True, kw_only=True)
class OutputFolder:
    """Where a run's results go.

    Fields:
        path: the finished folder, which appears at once and complete.
    """

    path: Path

    @property
    def partial(self) -> Path:
        """The folder that is being filled."""
        return self.path.with_name(f"{self.path.name}.partial")

    def check(self, *, resume: bool, force: bool) -> None:
        """Refuse, before anything is computed, a path that could not be written or would lose someone's files.

        Raises:
            UsageError: naming what is there and what to do.
        """
        if not self.path.name:
            raise UsageError(f"--output {self.path} does not name a folder to create")
        for path, recognised in ((self.path, RUN_FILE), (self.partial, MARKER_FILE)):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise UsageError(f"{path} exists and is not a folder: choose another --output")
            if path.is_dir() and any(path.iterdir()) and not (path / recognised).is_file():
                raise UsageError(f"{path} holds files that dpmepf-synth did not write: choose another --output")
        if resume:
            if self._has_files() and self.checkpoint_folder() is None:
                raise UsageError(f"{self.path} holds no {CHECKPOINT_FILE} to resume from: begin again with --force")
        elif not force:
            if self._has_files():
                raise UsageError(f"{self.path} exists: choose another --output, or replace it with --force")
            if (self.partial / CHECKPOINT_FILE).is_file():
                raise UsageError(
                    f"an interrupted run is in {self.partial}: go on with --resume or begin again with --force"
                )

    def checkpoint_folder(self) -> Path | None:
        """Return the folder whose checkpoint `--resume` goes on from: of the interrupted run, else the finished one."""
        return next((folder for folder in (self.partial, self.path) if (folder / CHECKPOINT_FILE).is_file()), None)

    def begin(self, *, keep_checkpoint: bool) -> Path:
        """Create the folder to fill, holding the checkpoint to resume from if `keep_checkpoint`, and return it."""
        if not keep_checkpoint:
            self._remove_partial()
        self.partial.mkdir(parents=True, exist_ok=True)
        (self.partial / MARKER_FILE).touch()
        source = self.checkpoint_folder()
        if keep_checkpoint and source == self.path:
            shutil.copyfile(source / CHECKPOINT_FILE, self.partial / CHECKPOINT_FILE)
        for leftover in self.partial.iterdir():  # images of a run that was interrupted while it drew
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover.name not in (MARKER_FILE, CHECKPOINT_FILE):
                leftover.unlink()
        return self.partial

    def finish(self) -> None:
        """Give the filled folder its name; a folder that it replaces is removed afterwards."""
        (self.partial / MARKER_FILE).unlink()
        replaced = self.path.with_name(f".{self.path.name}.{os.getpid()}.replaced")
        if self.path.exists():
            self.path.rename(replaced)
        self.partial.rename(self.path)
        if replaced.exists():
            shutil.rmtree(replaced)

    def abandon(self) -> None:
        """After a failure: keep what `--resume` can use, remove what it cannot."""
        if not (self.partial / CHECKPOINT_FILE).is_file():
            self._remove_partial()

    def _has_files(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def _remove_partial(self) -> None:
        if (self.partial / MARKER_FILE).is_file():
            shutil.rmtree(self.partial)
