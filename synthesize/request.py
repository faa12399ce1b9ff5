"""What a run of `dpmepf-synth` is asked for, and what it starts from: all is checked before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.hdf5_file import read_verified_artifact
from dpmepf.artifacts.signature import load_verifying_key, verify_file
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import FeatureMap, build_feature_map
from dpmepf.shared.feature_map_description import FeatureMapError
from dpmepf.shared.image_sources import ImageSource
from dpmepf.shared.precision import autocast_dtype
from dpmepf.synthesize import sampling
from dpmepf.synthesize.checkpoint import Checkpoint, load_checkpoint
from dpmepf.synthesize.compilation import compiled_feature_map
from dpmepf.synthesize.generator import Generator
from dpmepf.synthesize.output_folder import OutputFolder
from dpmepf.synthesize.parallel import TrainingProcesses
from dpmepf.synthesize.prior import Prior, load_prior, require_fit
from dpmepf.synthesize.public_images import open_public_images
from dpmepf.synthesize.settings import DEFAULT_PRESET, SynthesisSettings, settings_for
from dpmepf.synthesize.targets import class_sizes, class_targets
from dpmepf.synthesize.training import ClassSchedule, generator_configuration

CHANGEABLE = ("steps", "micro_batch_size")  # settings that a run may go on with others of


@dataclass(frozen=True, kw_only=True)
class SynthesisRequest:
    """What to make, from what, and where.

    Fields:
        artifact: HDF5 file of a release.
        output: folder to create.
        preset: row of the presets; None: the default, or with `resume` that of the run that goes on.
        overrides: settings that differ from the preset's, by name.
        image_format: `folder` (PNG files by class) or `npz`.
        samples: number of images in all; None: as many as the released class sizes say.
        relabel: correct the class that an image was drawn for where the class means say otherwise; None: yes, or
            with `resume` as that run did last.
        public: public images, of which those that look like a class take the place of generated ones; with `resume`
            to be named again, as what to draw is no part of a checkpoint.
        prior: folder of a synthetic data set whose generator training begins with, as one of public images; None:
            training begins with random weights.
        workers: processes that decode public images; None: the default.
        device: auto, cpu, cuda or cuda:N.
        compile: train through an encoder that torch.compile made.
        encoder_weights: file of the encoder's weights; None: where the encoder's are usually found.
        verify_key: file of the public key whose signature the artifact has to bear; None: any artifact is taken.
        resume: go on from a checkpoint at `output`, if there is one.
        force: replace an earlier result at `output`.
    """

    artifact: Path
    output: Path
    preset: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    image_format: str = "folder"
    samples: int | None = None
    relabel: bool | None = None
    public: Sequence[Path] = ()
    prior: Path | None = None
    workers: int | None = None
    device: str = "auto"
    compile: bool = False
    encoder_weights: Path | None = None
    verify_key: Path | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.force:
            raise UsageError("--resume goes on with a run and --force begins it again: choose one")
        if self.image_format not in sampling.FORMATS:
            raise UsageError(f"--format is {self.image_format!r}, but has to be one of {', '.join(sampling.FORMATS)}")


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """What a run starts from.

    Fields:
        artifact: the release.
        sha256: of its file, in hexadecimal.
        checkpoint: to go on from, if any.
        public: sources of public images, by path.
        prior: that training begins with, if it begins.
        origin: of the generator that training begins or began with, if any (`Prior`).
        device: of this process.
        settings: of the training.
        relabel: whether classes that images were drawn for may be corrected.
        sizes: of the classes, as far as the release tells (`class_sizes`).
        numbers: images of each class to draw.
        feature_map: the one the artifact describes, on `device`.
        compiled: the same for the steps of the training, where that was asked for.
    """

    artifact: Artifact
    sha256: str
    checkpoint: Checkpoint | None
    public: Mapping[Path, ImageSource]
    prior: Generator | None
    origin: dict[str, Any] | None
    device: torch.device
    settings: SynthesisSettings
    relabel: bool
    sizes: np.ndarray
    numbers: tuple[int, ...]
    feature_map: FeatureMap
    compiled: Callable[[Tensor], Tensor] | None


def prepare(
    request: SynthesisRequest,
    output: OutputFolder,
    processes: TrainingProcesses,
    *,
    on_fewer_steps: Callable[[int], None] = lambda steps: None,
    on_compile: Callable[[], None] = lambda: None,
) -> PreparedRun:
    """Read and check everything that `request` names; write nothing.

    When this returns in one of several `processes`, all have read what they need of the output folder.

    Args:
        on_fewer_steps, on_compile: as in `SynthesisCallbacks`.

    Raises:
        DpmepfError: something cannot be used, or is not the same in all processes.
    """
    output.check(resume=request.resume, force=request.force)
    output.require_apart([*request.public, *filter(None, [request.prior])])
    artifact = read_verified_artifact(request.artifact)  # the report repeats its claim
    if request.verify_key is not None:
        verify_file(request.artifact, load_verifying_key(request.verify_key))
    with request.artifact.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    checkpoint = _checkpoint(request, output, sha256)
    if request.public and len(artifact.classes) == 1:
        raise UsageError(
            "--public chooses images by how they differ between classes, and there is but one: leave it out"
        )
    public = open_public_images(request.public)
    device = processes.device(request.device)
    feature_map = build_feature_map(artifact.feature_map, weights_file=request.encoder_weights, device=device)
    if feature_map.dimension != artifact.dimension:
        raise FeatureMapError(
            f"the artifact has {artifact.dimension:,} features per class, but its feature map gives "
            f"{feature_map.dimension:,} by this version of dpmepf: use the version that made it, or have it made again"
        )
    prior = load_prior(request.prior, device=device) if request.prior else None
    origin = _origin(prior, checkpoint)
    if checkpoint is None:
        settings = _first_settings(request, device, class_targets(artifact).relative_noise, on_fewer_steps)
    else:
        settings = _resumed_settings(request, checkpoint)
    if prior is not None and settings.vary is None:
        settings = replace(settings, vary=prior.generator.configuration.varied)
    configuration = generator_configuration(artifact, settings)
    if prior is not None:
        require_fit(prior.generator, configuration)
    settings = replace(settings, vary=configuration.varied)
    sizes = class_sizes(artifact)
    own = ClassSchedule(len(artifact.classes), settings.batch_size).share(processes)
    run = PreparedRun(
        artifact=artifact,
        sha256=sha256,
        checkpoint=checkpoint,
        public=public,
        prior=prior.generator if prior and not checkpoint else None,
        origin=origin,
        device=device,
        settings=settings,
        relabel=_relabels(request, checkpoint),
        sizes=sizes,
        numbers=sampling.images_per_class(sizes, samples=request.samples),
        feature_map=feature_map,
        compiled=None,
    )
    processes.require_same(_fingerprint(run))
    steps_made = len(checkpoint.losses) if checkpoint else 0
    if request.compile and steps_made < settings.steps:
        images = own.stop - own.start
        on_compile()
        compiled = compiled_feature_map(feature_map, images=min(images, settings.micro_batch_size or images))
        run = replace(run, compiled=compiled)
        processes.require_same(b"compiled")  # in all of them, before anything is written
    return run


def _relabels(request: SynthesisRequest, checkpoint: Checkpoint | None) -> bool:
    if request.relabel is not None or checkpoint is None:
        return request.relabel is not False
    return checkpoint.settings.probe if checkpoint.relabel is None else checkpoint.relabel


def _fingerprint(run: PreparedRun) -> bytes:
    """SHA-256 of what the processes of a training have to agree in."""
    losses = run.checkpoint.losses if run.checkpoint else None
    parts = [run.sha256, run.settings.to_dict(), losses, run.origin, run.device.type, torch.__version__]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def _checkpoint(request: SynthesisRequest, output: OutputFolder, sha256: str) -> Checkpoint | None:
    folder = output.checkpoint_folder() if request.resume else None
    if folder is None:
        return None
    checkpoint = load_checkpoint(folder)
    if checkpoint.artifact_sha256 != sha256:
        raise UsageError(f"the run in {folder} learned from another artifact: name that one, or begin with --force")
    return checkpoint


def _origin(prior: Prior | None, checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    if checkpoint is None:
        return prior.origin if prior else None
    if prior and prior.origin["sha256"] != (checkpoint.prior or {}).get("sha256"):
        raise UsageError(
            "the run to resume began with other weights than those of --prior: leave the option out, or begin again "
            "with --force"
        )
    return checkpoint.prior


def _first_settings(
    request: SynthesisRequest, device: torch.device, relative_noise: float, on_fewer_steps: Callable[[int], None]
) -> SynthesisSettings:
    """The preset, with what was asked for."""
    judged = request.relabel is not False or bool(request.public)
    overrides = {"probe": judged} | dict(request.overrides)
    preset, bfloat16 = request.preset or DEFAULT_PRESET, autocast_dtype(device) is torch.bfloat16
    without_noise = settings_for(preset, bfloat16=bfloat16, **overrides)
    settings = settings_for(preset, bfloat16=bfloat16, relative_noise=relative_noise, **overrides)
    if settings != without_noise:
        on_fewer_steps(without_noise.steps)
    return settings


def _resumed_settings(request: SynthesisRequest, checkpoint: Checkpoint) -> SynthesisSettings:
    """Those that the run began with, but for those `CHANGEABLE`."""
    if request.relabel and not checkpoint.settings.probe:
        raise UsageError(
            "the run to resume was trained with --no-relabel, without what tells how far labels can be trusted: leave "
            "--relabel out, or begin again with --force"
        )
    asked = dict(request.overrides) | ({"preset": request.preset} if request.preset else {})
    for name, value in asked.items():
        stored = getattr(checkpoint.settings, name)
        if name not in CHANGEABLE and value != stored:
            raise UsageError(
                f"the run to resume has {_option(name, stored)}, not {_option(name, value)}: leave the option out, or "
                "begin again with --force"
            )
    steps, made = asked.get("steps", checkpoint.settings.steps), len(checkpoint.losses)
    if steps < made:
        raise UsageError(
            f"the run to resume has made {made:,} steps, more than --steps {steps:,}: leave the option out, or begin "
            "again with --force"
        )
    return replace(checkpoint.settings, **{name: value for name, value in asked.items() if name in CHANGEABLE})


def _option(name: str, value: object) -> str:
    """As it is written on the command line."""
    option = name.replace("_", "-")
    return f"--{'' if value else 'no-'}{option}" if isinstance(value, bool) else f"--{option} {value}"
