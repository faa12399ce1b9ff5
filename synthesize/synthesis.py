"""From an artifact to a folder of synthetic images: everything that `dpmepf-synth` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpmepf.shared.processes import ProcessesError
from dpmepf.synthesize import sampling
from dpmepf.synthesize.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from dpmepf.synthesize.feature_function import in_parts
from dpmepf.synthesize.generator import Generator, save_generator
from dpmepf.synthesize.labelling import MeanDiscriminant, learn_discriminant
from dpmepf.synthesize.output_folder import RUN_FILE, OutputFolder
from dpmepf.synthesize.parallel import ALONE, TrainingProcesses
from dpmepf.synthesize.pictures import preview_classes, preview_images, write_curve, write_preview
from dpmepf.synthesize.probe import probe_for
from dpmepf.synthesize.public_images import ChosenImages, choose_public_images, per_class
from dpmepf.synthesize.record import run_record
from dpmepf.synthesize.report import write_report
from dpmepf.synthesize.request import PreparedRun, SynthesisRequest, prepare
from dpmepf.synthesize.settings import LARGEST_SEED
from dpmepf.synthesize.targets import class_targets
from dpmepf.synthesize.training import (
    GeneratorTraining,
    TrainedGenerator,
    TrainingCallbacks,
    TrainingStopped,
    train_generator,
)


@dataclass(frozen=True, kw_only=True)
class SynthesisCallbacks:
    """What a run tells while it works, and how it is asked to stop.

    Fields:
        on_fewer_steps: called with a preset's number of steps where noise makes it take fewer (`MUCH_NOISE`).
        on_compile: called before the encoder is compiled, which takes minutes, if it is.
        on_start: called once, before the first step, with the folder where previews appear.
        on_step: called after every training step.
        on_labelling: called with the number of images just drawn to learn labels from, and the number of all, at most.
        on_public_images: called with the number of public images just looked at and the number of all.
        on_images: called with the number of images just written, first 0, and the number to write.
        on_kept: called with the folder of a checkpoint that a run has made or gone on from, before an error leaves that
            does not name it.
        stop_requested: asked after every step and every few images; True ends the run with `TrainingStopped`, a
            checkpoint kept.
        snapshot_seconds: time between checkpoints and previews.
    """

    on_fewer_steps: Callable[[int], None] = lambda steps: None
    on_compile: Callable[[], None] = lambda: None
    on_start: Callable[[GeneratorTraining, Path], None] = lambda training, folder: None
    on_step: Callable[[GeneratorTraining], None] = lambda training: None
    on_labelling: Callable[[int, int], None] = lambda count, total: None
    on_public_images: Callable[[int, int], None] = lambda count, total: None
    on_images: Callable[[int, int], None] = lambda count, total: None
    on_kept: Callable[[Path], None] = lambda folder: None
    stop_requested: Callable[[], bool] = lambda: False
    snapshot_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class SynthesisResult:
    """The finished folder and its record, as in `run.json`."""

    output: Path
    record: dict[str, Any]


def synthesise(
    request: SynthesisRequest, callbacks: SynthesisCallbacks | None = None, *, processes: TrainingProcesses = ALONE
) -> SynthesisResult:
    """Train a generator on the release in `request.artifact` and draw a labelled data set from it.

    Of several `processes` this is for the first, which alone writes; the others `help_to_train`.

    Guarantee: post-processing; reads no private data, so the release's (ε, δ) is that of everything written, with what
    a prior's own releases spent (`SynthesisRequest.prior`).

    Raises:
        DpmepfError: an unusable artifact, encoder, setting, device, output folder or set of public images, or another
            process that ended. What remains of a run that fails is its checkpoint, beside `request.output` for
            `resume`, with what it was writing.
        TrainingStopped: as `callbacks` asked; the checkpoint is beside `request.output` for `resume`.
    """
    callbacks = callbacks or SynthesisCallbacks()
    began = time.monotonic()
    output = OutputFolder(path=Path(request.output))
    output.require_unused()
    output.restore()
    run = prepare(request, output, processes, on_fewer_steps=callbacks.on_fewer_steps, on_compile=callbacks.on_compile)
    try:
        folder = output.begin(keep_checkpoint=run.checkpoint is not None)
        with _ending_resumably(output):
            trained, training_seconds = _train(run, folder, callbacks, processes)
            sampling_began = time.monotonic()
            drawn = _draw(folder, run, trained, request, callbacks)
        now = time.monotonic()
        resumed_seconds = run.checkpoint.seconds if run.checkpoint else 0.0
        record = run_record(
            run.artifact,
            run.settings,
            trained,
            run.numbers,
            sizes=run.sizes,
            public=drawn.public,
            unjudged=drawn.unjudged,
            prior=run.origin,
            file=request.artifact.name,
            image_format=request.image_format,
            relabelled=drawn.relabelled,
            sha256=run.sha256,
            device=run.device,
            compiled=run.compiled is not None,
            timings={
                "training_seconds": training_seconds,
                "sampling_seconds": now - sampling_began,
                "total_seconds": now - began + resumed_seconds,
            },
        )
        write_report(folder, record)
        (folder / RUN_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
        output.finish()
    except BaseException as error:
        ours = output.lock is not None
        output.abandon()
        said = isinstance(error, TrainingStopped | ProcessesError | torch.OutOfMemoryError)
        if ours and not said and (output.partial / CHECKPOINT_FILE).is_file():
            callbacks.on_kept(output.partial)
        raise
    return SynthesisResult(output=output.path, record=record)


def help_to_train(
    request: SynthesisRequest, processes: TrainingProcesses, *, stop_requested: Callable[[], bool] = lambda: False
) -> None:
    """Train together with the first of `processes`, which does all the rest (`synthesise`); write nothing.

    Raises: as `synthesise`.
    """
    output = OutputFolder(path=Path(request.output))
    run = prepare(request, output, processes)
    with _ending_resumably(output):
        train_generator(
            run.artifact,
            run.feature_map,
            run.settings,
            device=run.device,
            callbacks=TrainingCallbacks(stop_requested=stop_requested),
            state=run.checkpoint.state if run.checkpoint else None,
            prior=run.prior,
            compiled=run.compiled,
            processes=processes,
        )


@contextmanager
def _ending_resumably(output: OutputFolder) -> Iterator[None]:
    """Say of a training that ended early how it can go on."""
    try:
        yield
    except TrainingStopped as error:
        raise TrainingStopped(
            f"{error}; its checkpoint and preview are in {output.partial}: go on with --resume and the same options"
        ) from error
    except ProcessesError as error:
        if not (output.partial / CHECKPOINT_FILE).is_file():
            raise ProcessesError(f"{error} before its first checkpoint") from error
        raise ProcessesError(
            f"{error}; its last checkpoint is in {output.partial}: go on with --resume and the same options"
        ) from error


def _train(
    run: PreparedRun, folder: Path, callbacks: SynthesisCallbacks, processes: TrainingProcesses
) -> tuple[TrainedGenerator, float]:
    checkpoint = run.checkpoint
    began = time.monotonic() - (checkpoint.seconds if checkpoint else 0.0)

    def snapshot(training: GeneratorTraining) -> None:
        seconds = time.monotonic() - began
        state = training.state_dict()
        save_checkpoint(
            folder,
            Checkpoint(
                artifact_sha256=run.sha256,
                settings=run.settings,
                state=state,
                seconds=seconds,
                prior=run.origin,
                relabel=run.relabel,
            ),
        )
        write_preview(folder, preview_images(training.averaged_generator()), run.artifact.classes)
        write_curve(folder, training.losses)

    trained = train_generator(
        run.artifact,
        run.feature_map,
        run.settings,
        device=run.device,
        callbacks=TrainingCallbacks(
            on_start=lambda training: callbacks.on_start(training, folder),
            on_step=callbacks.on_step,
            on_snapshot=snapshot,
            stop_requested=callbacks.stop_requested,
            snapshot_seconds=callbacks.snapshot_seconds,
        ),
        state=checkpoint.state if checkpoint else None,
        prior=run.prior,
        compiled=run.compiled,
        processes=processes,
    )
    return trained, time.monotonic() - began


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What there is to say of a data set that was drawn.

    Fields:
        public: images in it that are public ones.
        relabelled: whether classes of generated images were corrected.
        unjudged: of each class the number of generated images that the class means were not asked about.
    """

    public: list[ChosenImages]
    relabelled: bool
    unjudged: list[int]


def _draw(
    folder: Path,
    run: PreparedRun,
    trained: TrainedGenerator,
    request: SynthesisRequest,
    callbacks: SynthesisCallbacks,
) -> _Drawn:
    """Write the data set, generated images before public ones, with pictures and generator."""
    artifact, settings, numbers, public = run.artifact, run.settings, run.numbers, run.public
    generator, configuration = trained.generator, trained.generator.configuration
    form = {"resolution": configuration.resolution, "channels": configuration.channels}
    total = sum(numbers)

    def advance(count: int) -> None:
        callbacks.on_images(count, total)
        stop_if_requested("drawing images")

    def drew_to_learn(count: int, most: int) -> None:
        callbacks.on_labelling(count, most)
        stop_if_requested("learning labels")

    def looked_at_public(count: int, of: int) -> None:
        callbacks.on_public_images(count, of)
        stop_if_requested("choosing public images")

    def stop_if_requested(doing: str) -> None:
        if callbacks.stop_requested():
            raise TrainingStopped(f"stopped while {doing}")

    save_generator(folder, generator, classes=artifact.classes)
    write_curve(folder, trained.losses)
    label, chosen = None, []
    if (run.relabel or public) and len(artifact.classes) > 1:
        targets = class_targets(artifact)
        discriminant = learn_discriminant(
            generator,
            targets,
            in_parts(run.feature_map, settings.micro_batch_size),
            probe=probe_for(targets, seed=settings.seed) if settings.probe else None,
            sizes=run.sizes.tolist(),
            ridge=settings.metric_ridge,
            seed=LARGEST_SEED - settings.seed,
            on_images=drew_to_learn,
        )
        label = discriminant if run.relabel and discriminant.corrects else None
        if public:
            chosen = choose_public_images(
                public,
                discriminant,
                numbers,
                seed=settings.seed,
                workers=request.workers,
                on_images=looked_at_public,
                **form,
            )
    advance(0)
    write_preview(folder, _first_images(generator, label, seed=settings.seed), artifact.classes)
    public_numbers, unjudged = per_class(chosen, len(numbers)), [0] * len(numbers)

    def count_unjudged(class_index: int, count: int) -> None:
        unjudged[class_index] += count

    generated = sampling.draw_images(
        generator,
        (numbers - public_numbers).tolist(),
        seed=settings.seed,
        label=label,
        on_drawn=lambda: stop_if_requested("drawing images"),
        on_unjudged=count_unjudged,
    )
    batches = chain(generated, *(part.batches(workers=request.workers, **form) for part in chosen))
    if request.image_format == "folder":
        sampling.write_image_folders(folder, batches, artifact.classes, advance=advance)
    else:
        shape = (total, configuration.channels, configuration.resolution, configuration.resolution)
        last = int(public_numbers.sum()) if public else None
        sampling.write_npz(folder, batches, artifact.classes, shape, public=last, advance=advance)
    return _Drawn(public=chosen, relabelled=label is not None, unjudged=unjudged)


def _first_images(generator: Generator, label: MeanDiscriminant | None, *, seed: int) -> np.ndarray:
    """The images of `preview_classes`, drawn and labelled as the data set is."""
    class_count = generator.configuration.class_count
    numbers = np.bincount(preview_classes(class_count), minlength=class_count).tolist()
    found: list[list[np.ndarray]] = [[] for _ in numbers]
    for images, class_index in sampling.draw_images(generator, numbers, seed=seed, label=label):
        found[class_index].append(images)
    return np.concatenate([part for parts in found for part in parts])
