"""The checkpoint of a training run: written to a temporary name and renamed, read without running any code."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.output_file import replacing
from dpmepf.shared.torch_files import load_torch_file
from dpmepf.synthesize.settings import SynthesisSettings

CHECKPOINT_FILE = "checkpoint.pt"
FORMAT = 4


class CheckpointError(DpmepfError):
    """A checkpoint is damaged or belongs to another artifact."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A training run that can go on.

    Fields:
        artifact_sha256: of the file that the run learns from.
        settings: of the run.
        state: `GeneratorTraining.state_dict()`.
        seconds: time trained so far.
        prior: origin of the generator that it began with, if any (`Prior`).
        relabel: whether it was to correct labels; None: the checkpoint is of a version that did not say.
    """

    artifact_sha256: str
    settings: SynthesisSettings
    state: dict[str, Any]
    seconds: float
    prior: dict[str, Any] | None = None
    relabel: bool | None = None

    @property
    def losses(self) -> list[float]:
        """One for each step that was made; a state without any does not load (`GeneratorTraining`)."""
        return list(self.state.get("losses", ()))


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint.pt` into `folder`; an interruption leaves the previous one."""
    content = {
        "format": FORMAT,
        "artifact_sha256": checkpoint.artifact_sha256,
        "settings": checkpoint.settings.to_dict(),
        "state": checkpoint.state,
        "seconds": checkpoint.seconds,
        "prior": checkpoint.prior,
        "relabel": checkpoint.relabel,
    }
    buffer = io.BytesIO()  # so that a full disk is an OSError, which torch's own writer would hide
    torch.save(content, buffer)
    with replacing(folder / CHECKPOINT_FILE) as path:
        path.write_bytes(buffer.getbuffer())


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in `folder`.

    Raises:
        CheckpointError: it is damaged or of another version.
    """
    path = folder / CHECKPOINT_FILE
    try:
        content = load_torch_file(path)
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path} was written by another version: begin again with --force")
        if not isinstance(content["state"], dict):
            raise TypeError("a state is a dictionary")
        return Checkpoint(
            artifact_sha256=content["artifact_sha256"],
            settings=SynthesisSettings.from_dict(content["settings"]),
            state=content["state"],
            seconds=float(content["seconds"]),
            prior=content.get("prior"),
            relabel=content.get("relabel"),
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: begin again with --force") from error
