"""What a release is asked for: refused in a sentence before data or encoder are looked at, or made what it takes."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dpmepf.artifacts.accounts import Budget
from dpmepf.artifacts.atomic_file import check_writable_target
from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON, UNNAMED
from dpmepf.artifacts.register import Register, default_register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.signature import signature_file
from dpmepf.embed.distributed import Processes
from dpmepf.embed.pipeline import EmbedSettings
from dpmepf.shared.class_names import check_class_names
from dpmepf.shared.devices import choose_device
from dpmepf.shared.encoders import BUILTIN
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import DEFAULT
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.output_file import ARTIFACT, require_kind, require_writable_folder


def _text(value: str) -> str:
    return str.__str__(value)  # of an enumeration the value, which its own `str` may not be


def _path(value: str | Path) -> Path:
    text = _text(value) if isinstance(value, str) else str(value)
    if not text or "\0" in text:
        raise ValueError("empty, as a variable that is not set, or no path at all")
    return Path(text)


def _classes(value: Sequence[str]) -> tuple[str, ...]:
    return check_class_names([_text(name) for name in value])


_NUMBER = (numbers.Real, float, "a finite number")
_COUNT = (numbers.Integral, int, "a whole number")
_TEXT = (str, _text, "text")
_SWITCH = (bool, bool, "True or False")
_PATH = ((str, Path), _path, "a path")
_FIELDS: dict[str, tuple[Any, Callable[[Any], object], str]] = {
    **dict.fromkeys(("epsilon", "delta", "budget_epsilon", "budget_delta"), _NUMBER),
    **dict.fromkeys(("resolution", "channels", "batch_size", "workers"), _COUNT),
    **dict.fromkeys(("split", "dataset_name", "encoder", "features", "device"), _TEXT),
    **dict.fromkeys(("unit_from_folder", "strict", "force", "skip_unreadable"), _SWITCH),
    **dict.fromkeys(("data", "unit_list", "register", "sign_key", "encoder_weights", "output", "checkpoint"), _PATH),
    "relation": (str, NeighbouringRelation, f"one of {', '.join(NeighbouringRelation)}"),
    "classes": ((list, tuple), _classes, "a list of names"),
}
"""Of each field of a request: types that it may have, what makes of them the one that it has, what to say of others."""


def _taken(name: str, value: object) -> object:
    """The value of a field as it is used from here on: a call from Python may pass anything."""
    allowed, converted, described = _FIELDS[name]
    if isinstance(value, allowed) and isinstance(value, bool) == (allowed is bool):
        with contextlib.suppress(ValueError, TypeError, ArithmeticError):
            return converted(value)
    found = f"{value!a}" if isinstance(value, str) and len(value) < 40 else f"of type {type(value).__name__}"
    raise UsageError(f"{name} is {found}, but has to be {described}")


@dataclass(frozen=True, kw_only=True)
class ReleaseRequest:
    """Which images to release, at which privacy parameters, and where to. Field by field an option of `dpmepf-embed`.

    Fields:
        data: private images, in any form that `open_images` reads; None for a dry run alone.
        epsilon: above 0, in nats.
        delta: in (0, 1), well below one over the number of records.
        relation: which data sets are neighbours.
        unit_list, unit_from_folder: to protect persons, not images: a table of whose each image is, or folders that
            are persons.
        resolution, channels: side of the square images in pixels, 1 or 3; None: inferred from the data, and public.
        classes: their names, in the order of their labels; None: those of folders, or of the file.
        strict: refuse to infer any of these.
        split: train, test or val of data that are divided so; None: train.
        dataset_name: public name of the data, for the ledger and the register.
        register: the custodian's book; None: the user's, if a name or a budget is given, or else none.
        budget_epsilon, budget_delta: of a data set that is new to the register.
        sign_key: file of the custodian's Ed25519 private key (PEM); None: the artifact is not signed.
        encoder: builtin, or a torchvision classifier by name.
        encoder_weights: file of its weights; None: the package's, or torchvision's.
        features: a preset of `feature_map.PRESETS`.
        output: file to write.
        force: replace an artifact at `output`, and its signature.
        checkpoint: file in which exact sums are kept, private, while images are read; None: nowhere.
        device: auto, cpu, cuda or cuda:N.
        batch_size: images in every forward pass.
        workers: processes that decode; None: one for each core, at most 16.
        skip_unreadable: leave out images that cannot be decoded, instead of stopping.
    """

    data: Path | None = None
    epsilon: float
    delta: float = 1e-6
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE
    unit_list: Path | None = None
    unit_from_folder: bool = False
    resolution: int | None = None
    channels: int | None = None
    classes: Sequence[str] | None = None
    strict: bool = False
    split: str | None = None
    dataset_name: str | None = None
    register: Path | None = None
    budget_epsilon: float | None = None
    budget_delta: float | None = None
    sign_key: Path | None = None
    encoder: str = BUILTIN
    encoder_weights: Path | None = None
    features: str = DEFAULT
    output: Path = Path("artifact.h5")
    force: bool = False
    checkpoint: Path | None = None
    device: str = "auto"
    batch_size: int = 256
    workers: int | None = None
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                object.__setattr__(self, field.name, _taken(field.name, value))
        if self.unit_list is not None and self.unit_from_folder:
            raise UsageError("--unit and --unit-from-folder both say whose image each image is: choose one")

    @property
    def unit_of_privacy(self) -> str:
        """Whom the release is to protect: an image, or a person with all of theirs."""
        return ONE_IMAGE if self.unit_list is None and not self.unit_from_folder else ONE_PERSON

    def settings(self, processes: Processes | None = None) -> EmbedSettings:
        """Those of the embedding; the register is the business of the first of several `processes`."""
        releases = processes is None or processes.first
        return EmbedSettings(
            epsilon=self.epsilon,
            delta=self.delta,
            relation=self.relation,
            unit_of_privacy=self.unit_of_privacy,
            batch_size=self.batch_size,
            workers=self.workers,
            device=str(choose_device(self.device) if processes is None else processes.device(self.device)),
            skip_unreadable=self.skip_unreadable,
            dataset_name=UNNAMED if self.dataset_name is None else self.dataset_name,
            register=self._register() if releases else None,
            budget=self._budget() if releases else None,
        )

    def open(self) -> ImageSource:
        """Open the data; no image is decoded."""
        return open_private(self.data, self.classes, self.split)

    def _register(self) -> Register | None:
        """The book that is asked for: anything of it asks for one, and a data set's name is enough."""
        if self.dataset_name is None and self.register is None and self.budget_epsilon is None:
            return None
        return Register(default_register() if self.register is None else self.register.absolute())

    def _budget(self) -> Budget | None:
        """The budget of a new data set, if any; δ is that of the release unless it is named."""
        if self.budget_epsilon is None:
            if self.budget_delta is not None:
                raise UsageError("--budget-delta belongs to --budget-eps: give both, or neither if the budget is set")
            return None
        return Budget(
            epsilon=self.budget_epsilon,
            delta=self.delta if self.budget_delta is None else self.budget_delta,
            relation=self.relation,
            unit_of_privacy=self.unit_of_privacy,
        )


def open_private(data: Path | None, classes: Sequence[str] | None, split: str | None) -> ImageSource:
    """Open images that messages must not tell of."""
    if data is None:
        raise UsageError("--data is missing: name the folder or file with the private images")
    return open_images(data, classes=classes, split=split, tables_refused=True)


def check_output(request: ReleaseRequest, register: Register | None) -> None:
    """Refuse a place for the artifact where it cannot be written, or must not."""
    written = {request.output.resolve(), signature_file(request.output).resolve()}
    if register is not None and register.path.resolve() in written:
        raise UsageError(
            f"--register {register.path} is the file that --output {request.output} or its signature would be"
        )
    check_writable_target(request.output, force=request.force)
    require_kind(request.output, ARTIFACT)
    require_writable_folder(request.output)
