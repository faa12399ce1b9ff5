"""From an artifact to a folder of synthetic images: everything that `dpmepf-synth` does."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.hdf5_file import read_verified_artifact
from dpmepf.artifacts.signature import load_verifying_key, verify_file
from dpmepf.shared.devices import choose_device
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import build_feature_map
from dpmepf.shared.image_sources import ImageSource
from dpmepf.shared.precision import autocast_dtype
from dpmepf.synthesize import sampling
from dpmepf.synthesize.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dpmepf.synthesize.generator import Generator, save_generator
from dpmepf.synthesize.labelling import MeanDiscriminant, learn_discriminant
from dpmepf.synthesize.output_folder import RUN_FILE, OutputFolder
from dpmepf.synthesize.pictures import preview_classes, preview_images, write_curve, write_preview
from dpmepf.synthesize.public_images import ChosenImages, choose_public_images, open_public_images, per_class
from dpmepf.synthesize.record import run_record
from dpmepf.synthesize.report import write_report
from dpmepf.synthesize.settings import DEFAULT_PRESET, LARGEST_SEED, SynthesisSettings, settings_for
from dpmepf.synthesize.targets import class_targets
from dpmepf.synthesize.training import (
    FeatureFunction,
    GeneratorTraining,
    TrainedGenerator,
    TrainingCallbacks,
    TrainingStopped,
    train_generator,
)


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
        relabel: correct the class that an image was drawn for where the class means say otherwise.
        public: public images, of which those that look like a class take the place of generated ones; with `resume`
            to be named again, as what to draw is no part of a checkpoint.
        device: auto, cpu, cuda or cuda:N.
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
    relabel: bool = True
    public: Sequence[Path] = ()
    device: str = "auto"
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
class SynthesisCallbacks:
    """What a run tells while it works, and how it is asked to stop.

    Fields:
        on_start: called once, before the first step, with the folder where previews appear.
        on_step: called after every training step.
        on_public_images: called with the number of public images just looked at and the number of all.
        on_images: called with the number of images just written, first 0, and the number to write.
        stop_requested: asked after every step; True ends the run with `TrainingStopped`, a checkpoint kept.
        snapshot_seconds: time between checkpoints and previews.
    """

    on_start: Callable[[GeneratorTraining, Path], None] = lambda training, folder: None
    on_step: Callable[[GeneratorTraining], None] = lambda training: None
    on_public_images: Callable[[int, int], None] = lambda count, total: None
    on_images: Callable[[int, int], None] = lambda count, total: None
    stop_requested: Callable[[], bool] = lambda: False
    snapshot_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class SynthesisResult:
    """The finished folder and its record, as in `run.json`."""

    output: Path
    record: dict[str, Any]


def synthesise(request: SynthesisRequest, callbacks: SynthesisCallbacks | None = None) -> SynthesisResult:
    """Train a generator on the release in `request.artifact` and draw a labelled data set from it.

    Guarantee: post-processing; reads no private data, so the release's (ε, δ) is that of everything written.

    Raises:
        DpmepfError: an unusable artifact, encoder, setting, device, output folder or set of public images; nothing
            half-written remains.
        TrainingStopped: as `callbacks` asked; the checkpoint is beside `request.output` for `resume`.
    """
    callbacks = callbacks or SynthesisCallbacks()
    began = time.monotonic()
    output = OutputFolder(path=Path(request.output))
    output.check(resume=request.resume, force=request.force)
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
    device = choose_device(request.device)
    settings = _settings(request, checkpoint, device)
    numbers = sampling.images_per_class(artifact.counts(), samples=request.samples)
    feature_map = build_feature_map(artifact.feature_map, weights_file=request.encoder_weights, device=device)

    folder = output.begin(keep_checkpoint=checkpoint is not None)
    try:
        trained, training_seconds = _train(
            artifact, feature_map, settings, device, folder, callbacks, checkpoint=checkpoint, sha256=sha256
        )
        sampling_began = time.monotonic()
        chosen = _draw(folder, artifact, feature_map, trained, numbers, public, request, settings, callbacks)
        now = time.monotonic()
        resumed_seconds = checkpoint.seconds if checkpoint else 0.0
        record = run_record(
            artifact,
            settings,
            trained,
            numbers,
            public=chosen,
            file=request.artifact.name,
            image_format=request.image_format,
            relabelled=request.relabel and len(artifact.classes) > 1,
            sha256=sha256,
            device=device,
            timings={
                "training_seconds": training_seconds,
                "sampling_seconds": now - sampling_began,
                "total_seconds": now - began + resumed_seconds,
            },
        )
        write_report(folder, record)
        (folder / RUN_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
        output.finish()
    except TrainingStopped as error:
        raise TrainingStopped(f"{error}; its checkpoint and preview are in {folder}: go on with --resume") from error
    except BaseException:
        output.abandon()
        raise
    return SynthesisResult(output=output.path, record=record)


def _checkpoint(request: SynthesisRequest, output: OutputFolder, sha256: str) -> Checkpoint | None:
    folder = output.checkpoint_folder() if request.resume else None
    if folder is None:
        return None
    checkpoint = load_checkpoint(folder)
    if checkpoint.artifact_sha256 != sha256:
        raise UsageError(f"the run in {folder} learned from another artifact: name that one, or begin with --force")
    return checkpoint


def _settings(request: SynthesisRequest, checkpoint: Checkpoint | None, device: torch.device) -> SynthesisSettings:
    """The preset with what was asked for; for a run that goes on its own settings, of which `steps` may change."""
    if checkpoint is None:
        bfloat16 = autocast_dtype(device) is torch.bfloat16
        return settings_for(request.preset or DEFAULT_PRESET, bfloat16=bfloat16, **request.overrides)
    asked = dict(request.overrides) | ({"preset": request.preset} if request.preset else {})
    for name, value in asked.items():
        stored = getattr(checkpoint.settings, name)
        if name != "steps" and value != stored:
            raise UsageError(
                f"the run to resume has --{name.replace('_', '-')} {stored}, not {value}: leave the option out, or "
                "begin again with --force"
            )
    return replace(checkpoint.settings, steps=asked.get("steps", checkpoint.settings.steps))


def _train(
    artifact: Artifact,
    feature_map: FeatureFunction,
    settings: SynthesisSettings,
    device: torch.device,
    folder: Path,
    callbacks: SynthesisCallbacks,
    *,
    checkpoint: Checkpoint | None,
    sha256: str,
) -> tuple[TrainedGenerator, float]:
    began = time.monotonic() - (checkpoint.seconds if checkpoint else 0.0)

    def snapshot(training: GeneratorTraining) -> None:
        seconds = time.monotonic() - began
        state = training.state_dict()
        save_checkpoint(folder, Checkpoint(artifact_sha256=sha256, settings=settings, state=state, seconds=seconds))
        write_preview(folder, preview_images(training.averaged_generator()), artifact.classes)
        write_curve(folder, training.losses)

    trained = train_generator(
        artifact,
        feature_map,
        settings,
        device=device,
        callbacks=TrainingCallbacks(
            on_start=lambda training: callbacks.on_start(training, folder),
            on_step=callbacks.on_step,
            on_snapshot=snapshot,
            stop_requested=callbacks.stop_requested,
            snapshot_seconds=callbacks.snapshot_seconds,
        ),
        state=checkpoint.state if checkpoint else None,
    )
    return trained, time.monotonic() - began


def _draw(
    folder: Path,
    artifact: Artifact,
    feature_map: FeatureFunction,
    trained: TrainedGenerator,
    numbers: tuple[int, ...],
    public: Mapping[Path, ImageSource],
    request: SynthesisRequest,
    settings: SynthesisSettings,
    callbacks: SynthesisCallbacks,
) -> list[ChosenImages]:
    """Write the data set, generated images before public ones, with pictures and generator; return the public ones."""
    generator, configuration = trained.generator, trained.generator.configuration
    form = {"resolution": configuration.resolution, "channels": configuration.channels}
    total = sum(numbers)

    def advance(count: int) -> None:
        callbacks.on_images(count, total)

    save_generator(folder, generator, classes=artifact.classes)
    write_curve(folder, trained.losses)
    advance(0)
    label, chosen = None, []
    if (request.relabel or public) and len(artifact.classes) > 1:
        discriminant = learn_discriminant(
            generator,
            class_targets(artifact),
            feature_map,
            ridge=settings.metric_ridge,
            seed=LARGEST_SEED - settings.seed,
        )
        label = discriminant if request.relabel else None
        if public:
            chosen = choose_public_images(public, discriminant, numbers, on_images=callbacks.on_public_images, **form)
    write_preview(folder, _first_images(generator, label, seed=settings.seed), artifact.classes)
    public_numbers = per_class(chosen, len(numbers))
    batches = chain(
        sampling.draw_images(generator, (numbers - public_numbers).tolist(), seed=settings.seed, label=label),
        *(part.batches(**form) for part in chosen),
    )
    if request.image_format == "folder":
        sampling.write_image_folders(folder, batches, artifact.classes, advance=advance)
    else:
        shape = (total, configuration.channels, configuration.resolution, configuration.resolution)
        last = int(public_numbers.sum()) if public else None
        sampling.write_npz(folder, batches, artifact.classes, shape, public=last, advance=advance)
    return chosen


def _first_images(generator: Generator, label: MeanDiscriminant | None, *, seed: int) -> np.ndarray:
    """The images of `preview_classes`, drawn and labelled as the data set is."""
    classes = preview_classes(generator.configuration.class_count)
    found: list[list[np.ndarray]] = [[] for _ in range(generator.configuration.class_count)]
    for images, class_index in sampling.draw_images(generator, np.bincount(classes).tolist(), seed=seed, label=label):
        found[class_index].append(images)
    return np.concatenate([part for parts in found for part in parts])
