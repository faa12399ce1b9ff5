"""The output folder: filled under another name beside it, and renamed when everything is there.

While `synthetic/` is being made, it is called `synthetic.partial/` and holds a marker file; previews and the checkpoint
appear there. The run that makes it holds a lock on that file, so that no other takes it for one that was interrupted.
Nothing is ever deleted but folders that hold this program's own files and no others.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dpmepf.shared.errors import UsageError
from dpmepf.shared.output_file import replacing
from dpmepf.synthesize.checkpoint import CHECKPOINT_FILE
from dpmepf.synthesize.generator import CONFIGURATION_FILE, WEIGHTS_FILE
from dpmepf.synthesize.pictures import CURVE_FILE, PREVIEW_FILE
from dpmepf.synthesize.report import REPORT_FILE
from dpmepf.synthesize.sampling import IMAGES_FOLDER, NPZ_FILE

RUN_FILE = "run.json"
MARKER_FILE = ".unfinished"
OWN_NAMES = {RUN_FILE, MARKER_FILE, CHECKPOINT_FILE, CONFIGURATION_FILE, WEIGHTS_FILE, CURVE_FILE, PREVIEW_FILE}
OWN_NAMES |= {REPORT_FILE, IMAGES_FOLDER, NPZ_FILE}
OF_FILE_BROWSERS = {".DS_Store", "Thumbs.db", "desktop.ini"}
REPLACED = ".replaced"  # ending of the name that an earlier result has for a moment


@dataclass(kw_only=True)
class OutputFolder:
    """Where a run's results go.

    Fields:
        path: the finished folder, which appears at once and complete.
        lock: descriptor of the locked marker of the run that fills it, from `begin` to `finish` or `abandon`.
        replaces: whether what is at `path` may be replaced, as `check` was told.
    """

    path: Path
    lock: int | None = field(default=None, init=False)
    replaces: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self.path.name:
            raise UsageError(f"--output {self.path} does not name a folder to create")

    @property
    def partial(self) -> Path:
        """The folder that is being filled."""
        return self.path.with_name(f"{self.path.name}.partial")

    def check(self, *, resume: bool, force: bool) -> None:
        """Refuse, before anything is computed, a path that could not be written or would lose someone's files.

        Raises:
            UsageError: naming what is there and what to do.
        """
        above = next(folder for folder in self.path.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise UsageError(f"{above} is not a folder: choose another --output")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UsageError(f"nothing may be written in {above}: choose another --output")
        for path, recognised in ((self.path, RUN_FILE), (self.partial, MARKER_FILE)):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise UsageError(f"{path} exists and is not a folder: choose another --output")
            if path.is_dir() and any(path.iterdir()) and not (path / recognised).is_file():
                raise UsageError(f"{path} holds files that dpmepf-synth did not write: choose another --output")
            _require_ours(path)
        if os.path.ismount(self.path):
            raise UsageError(f"{self.path} is a mount point, which no folder can replace: name a folder in it")
        self.replaces = resume or force
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

    def require_apart(self, inputs: Iterable[Path]) -> None:
        """Refuse inputs that lie where this run would delete or replace them.

        Raises: UsageError naming the first.
        """
        for path in inputs:
            for folder in (self.path, self.partial):
                if path.resolve().is_relative_to(folder.resolve()):
                    raise UsageError(f"{path} is read by this run, which replaces {folder}: choose another --output")

    def checkpoint_folder(self) -> Path | None:
        """Return the folder whose checkpoint `--resume` goes on from: of the interrupted run, else the finished one."""
        return next((folder for folder in (self.partial, self.path) if (folder / CHECKPOINT_FILE).is_file()), None)

    def require_unused(self) -> None:
        """Refuse a folder that another run is filling.

        Raises:
            UsageError: there is one.
        """
        if (self.partial / MARKER_FILE).is_file():
            os.close(self._locked())

    def restore(self) -> None:
        """Give an earlier result its name again that a killed run was about to replace; no other may be filling it."""
        unnamed = re.compile(rf"\.{re.escape(self.path.name)}\.[0-9a-f]+{re.escape(REPLACED)}")
        left = next((name for name in sorted(_names(self.path.parent)) if unnamed.fullmatch(name)), None)
        if left is not None and not os.path.lexists(self.path):
            self.path.with_name(left).rename(self.path)

    def begin(self, *, keep_checkpoint: bool) -> Path:
        """Create the folder to fill, holding the checkpoint to resume from if `keep_checkpoint`, and return it.

        Raises:
            UsageError: another run is filling it, or somebody has put something into it.
        """
        self.partial.mkdir(parents=True, exist_ok=True)
        _require_ours(self.partial)
        self.lock = self._locked()
        kept = {MARKER_FILE, CHECKPOINT_FILE} if keep_checkpoint else {MARKER_FILE}
        for leftover in self.partial.iterdir():  # of a run that was interrupted, perhaps while it drew
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            elif leftover.name not in kept:
                leftover.unlink()
        if keep_checkpoint and self.checkpoint_folder() == self.path:
            with replacing(self.partial / CHECKPOINT_FILE) as copy:
                shutil.copyfile(self.path / CHECKPOINT_FILE, copy)
        return self.partial

    def finish(self) -> None:
        """Give the filled folder its name; a folder that it replaces is removed afterwards.

        What somebody has put into that since `check` is kept in the new one. Where the folder cannot be named, it is
        left as an interrupted run's.

        Raises:
            UsageError: something has come to be there that may not be replaced.
        """
        if self._has_files() and not self.replaces:
            raise UsageError(
                f"{self.path} has come to hold files meanwhile: move them, then go on with --resume, which draws again"
            )
        if sys.platform == "win32":  # where no folder can be renamed in which a file is open
            self._unlock()
        replaced = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}{REPLACED}")
        if self.path.exists():
            self.path.rename(replaced)
        try:
            self.partial.rename(self.path)
        except OSError:
            if replaced.exists():
                replaced.rename(self.path)
            raise
        (self.path / MARKER_FILE).unlink()
        self._unlock()
        if replaced.exists():
            for name in _not_ours(replaced):
                kept = self.path / name
                kept.parent.mkdir(parents=True, exist_ok=True)
                (replaced / name).rename(kept.with_name(f"{kept.name}.before") if os.path.lexists(kept) else kept)
            shutil.rmtree(replaced)

    def abandon(self) -> None:
        """After a failure: keep what `--resume` can use, remove what it cannot."""
        if self.lock is None:  # another run's
            return
        self._unlock()
        if not (self.partial / CHECKPOINT_FILE).is_file() and not _not_ours(self.partial):
            shutil.rmtree(self.partial)

    def _locked(self) -> int:
        """The marker, locked for this process until the descriptor is closed, wherever a file system has locks."""
        descriptor = os.open(self.partial / MARKER_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        if sys.platform == "win32":
            return descriptor
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(
                f"another dpmepf-synth is writing to {self.partial}: wait for it, or choose another --output"
            ) from error
        except OSError:  # a file system without locks
            pass
        return descriptor

    def _unlock(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _has_files(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())


def _require_ours(folder: Path) -> None:
    others = _not_ours(folder)
    if others:
        raise UsageError(
            f"{folder} holds what dpmepf-synth did not write, {others[0]!a}"
            + (f" and {len(others) - 1} more" if others[1:] else "")
            + ", and would not keep: move it elsewhere, or choose another --output"
        )


def _not_ours(folder: Path) -> list[str]:
    """Paths below `folder`, if there is one, of what neither this program nor a file browser puts there."""
    images = folder / IMAGES_FOLDER
    found = [*_names(folder), *(f"{IMAGES_FOLDER}/{name}" for name in _names(images) if not (images / name).is_dir())]
    others = [name for name in found if re.sub(r"^\.(.+)\.\d+\.tmp$", r"\1", name) not in OWN_NAMES]  # see `replacing`
    for name in _names(images):
        others += [f"{IMAGES_FOLDER}/{name}/{of_class}" for of_class in _names(images / name)]
    return sorted(
        name
        for name in others
        if not re.fullmatch(rf"{IMAGES_FOLDER}/[^/]+/\d{{6,}}\.png", name)
        and name.rpartition("/")[2] not in OF_FILE_BROWSERS
        and not name.rpartition("/")[2].startswith("._")
    )


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() and not folder.is_symlink() else []
