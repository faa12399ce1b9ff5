"""`dpmepf-synth`: a generator and a synthetic data set from a released artifact."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.markup import escape
from rich.progress import Progress, TaskID

from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.console import NamedPath, console, progress_bar, reports_errors, with_version
from dpmepf.shared.processes import SpeakingOnce, joined
from dpmepf.synthesize.checkpoint import CHECKPOINT_FILE
from dpmepf.synthesize.output_folder import OutputFolder
from dpmepf.synthesize.parallel import ALONE, TrainingProcesses
from dpmepf.synthesize.pictures import CURVE_FILE, PREVIEW_FILE
from dpmepf.synthesize.report import (
    REPORT_FILE,
    prior_sentence,
    privacy_claim,
    public_sentence,
    sizes_sentence,
    unjudged_sentence,
)
from dpmepf.synthesize.request import SynthesisRequest
from dpmepf.synthesize.sampling import FORMATS, IMAGES_FOLDER, MOST_UNASKED, NPZ_FILE
from dpmepf.synthesize.settings import DEFAULT_PRESET, LARGEST_SEED, PRESETS
from dpmepf.synthesize.synthesis import SynthesisCallbacks, SynthesisResult, help_to_train, synthesise
from dpmepf.synthesize.training import GeneratorTraining, TrainingError

# Of several processes: flags on the CPU, sums where the generator is.
BACKEND = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@click.command(cls=SpeakingOnce, context_settings={"help_option_names": ["-h", "--help"]})
@with_version
@click.argument("artifact", type=NamedPath(), metavar="ARTIFACT")
@click.option(
    "--output",
    type=NamedPath(),
    default=Path("synthetic"),
    show_default=True,
    metavar="FOLDER",
    help="Folder to create for images, generator, pictures and report.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help=f"{IMAGES_FOLDER}/<class>/NNNNNN.png, or one {NPZ_FILE} with x (float32, 0 to 1) and y (int64).",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="IMAGES",
    help="Images to draw in all, spread over classes like the released sizes.  [default: as many as those say; more "
    f"than {MOST_UNASKED:,} have to be asked for]",
)
@click.option(
    "--relabel/--no-relabel",
    default=None,
    help="Correct the class that an image was drawn for where the class means say otherwise.  [default: relabel]",
)
@click.option(
    "--public",
    type=NamedPath(),
    multiple=True,
    metavar="PATH",
    help="Public images (folder, zip, tar, parquet, IDX or .npz; labels are not used): those that look like a class by "
    "the class means replace up to half of its generated images. Can be repeated.",
)
@click.option(
    "--prior",
    type=NamedPath(),
    metavar="FOLDER",
    help="Begin with the generator in a folder that dpmepf-synth wrote, of public images of the same resolution and "
    "colour: each class from the one of its classes whose images have the nearest mean features. If it was trained on "
    "private images, their epsilon counts, too.  [default: random weights]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that decode --public images.  [default: one for each core, at most 16]",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="How long: quick to look, standard, or best: three times standard, unless noise is so large that more steps "
    f"would learn it.  [default: {DEFAULT_PRESET}]",
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.  [default: the preset's]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    metavar="IMAGES",
    help="Generated images per step.  [default: the preset's]",
)
@click.option(
    "--micro-batch-size",
    type=click.IntRange(min=1),
    metavar="IMAGES",
    help="Images through the encoder at a time: less memory, the same gradient.  [default: the preset's]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Peak learning rate of Adam.  [default: the preset's]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, LARGEST_SEED),
    help="Seed of weights and latent vectors; costs no privacy here.  [default: 0]",
)
@click.option(
    "--vary/--no-vary",
    default=None,
    help="Change images at random as they are drawn (turn, enlarge, move, brighten), by sizes that are learned.  "
    "[default: as the generator of --prior; else images in colour, and grey ones if their mean features are as "
    "short as those of photographs]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--compile/--no-compile",
    "compiling",
    default=False,
    show_default=True,
    help="Train through an encoder that torch.compile made, which takes minutes, and a C++ compiler or Triton.",
)
@click.option(
    "--encoder-weights",
    type=NamedPath(),
    metavar="FILE",
    help="Weights of the encoder that the artifact names.  [default: the package's, or torchvision's]",
)
@click.option(
    "--verify-key",
    type=NamedPath(),
    metavar="FILE",
    help="The custodian's Ed25519 public key (PEM): refuse an artifact that it did not sign.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with an interrupted run, its options given again, or train a finished one for more --steps.",
)
@click.option("--force", is_flag=True, help="Replace the result of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's record as one JSON object.")
@reports_errors()
@joined(nothing="nothing was written", not_again="go on with a run that failed by --resume", backend=BACKEND)
def main(
    artifact: Path,
    output: Path,
    image_format: str,
    samples: int | None,
    relabel: bool | None,
    public: tuple[Path, ...],
    prior: Path | None,
    workers: int | None,
    preset: str | None,
    device: str,
    compiling: bool,
    encoder_weights: Path | None,
    verify_key: Path | None,
    resume: bool,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a generator on the release in ARTIFACT and draw a labelled synthetic data set from it.

    Nothing private is read, so it costs no privacy: run it as often as you like. Ctrl-C keeps a checkpoint.
    """
    request = SynthesisRequest(
        artifact=artifact,
        output=output,
        preset=preset,
        overrides={name: value for name, value in settings.items() if value is not None},
        image_format=image_format,
        samples=samples,
        relabel=relabel,
        public=public,
        prior=prior,
        workers=workers,
        device=device,
        compile=compiling,
        encoder_weights=encoder_weights,
        verify_key=verify_key,
        resume=resume,
        force=force,
    )
    processes = TrainingProcesses.of_torchrun() or ALONE
    keep_freed_memory()
    if not processes.first:
        with _too_little_memory_said(output), _stop_signal(processes) as stop_requested:
            help_to_train(request, processes, stop_requested=stop_requested)
        return
    with _too_little_memory_said(output), progress_bar("images") as bar, _stop_signal(processes) as stop_requested:
        display = _Display(bar, resume=resume)
        result = synthesise(request, display.callbacks(stop_requested), processes=processes)
    _summarise(result)
    if as_json:
        click.echo(json.dumps(result.record, ensure_ascii=False))


class _Display:
    """The live view: bars for training with the loss, learning labels, choosing public images, drawing."""

    def __init__(self, bar: Progress, *, resume: bool) -> None:
        self.bar = bar
        self.resume = resume
        self.images_per_step = 1
        self.training_task: TaskID | None = None
        self.labelling_task: TaskID | None = None
        self.public_task: TaskID | None = None
        self.drawing_task: TaskID | None = None

    def callbacks(self, stop_requested: Callable[[], bool]) -> SynthesisCallbacks:
        return SynthesisCallbacks(
            on_fewer_steps=lambda steps: console.print(
                f"Noise is large beside what classes differ by, and {steps:,} steps would learn it: fewer are made.",
                soft_wrap=True,
            ),
            on_compile=lambda: console.print("Compiling the encoder takes minutes."),
            on_start=self.start,
            on_step=self.step,
            on_labelling=self.labelling,
            on_public_images=self.public_images,
            on_images=self.images,
            on_kept=lambda folder: console.print(
                f"A checkpoint is in {escape(str(folder))}: go on with --resume and the same options.", soft_wrap=True
            ),
            stop_requested=stop_requested,
        )

    def start(self, training: GeneratorTraining, folder: Path) -> None:
        settings = training.settings
        self.images_per_step = training.schedule.images_per_batch
        if self.resume and training.step == 0:
            console.print(f"No run was there to go on with: {escape(str(folder))} is begun anew.", soft_wrap=True)
        varied = " (changed at random as they are drawn)" if training.configuration.varied else ""
        console.print(
            f"Training for {settings.steps:,} steps of {self.images_per_step:,} images{varied} on {training.device}; a "
            f"preview appears in {escape(str(folder / PREVIEW_FILE))}",
            soft_wrap=True,
        )
        self.training_task = self.bar.add_task(
            "Training", total=settings.steps * self.images_per_step, completed=training.step * self.images_per_step
        )

    def step(self, training: GeneratorTraining) -> None:
        if self.training_task is not None:
            recent = training.losses[-20:]
            self.bar.update(
                self.training_task,
                advance=self.images_per_step,
                description=f"Training, loss {sum(recent) / len(recent):.4f}",
            )

    def labelling(self, count: int, total: int) -> None:
        if self.labelling_task is None:
            self.labelling_task = self.bar.add_task("Learning labels", total=total)
        self.bar.advance(self.labelling_task, count)

    def labels_are_learned(self) -> None:
        """Fill the bar: learning ends when images agree no better, mostly before the last one."""
        if self.labelling_task is not None:
            self.bar.update(self.labelling_task, total=self.bar.tasks[self.labelling_task].completed)

    def public_images(self, count: int, total: int) -> None:
        if self.public_task is None:
            self.labels_are_learned()
            self.public_task = self.bar.add_task("Looking at public images", total=total)
        self.bar.update(self.public_task, total=total, advance=count)

    def images(self, count: int, total: int) -> None:
        if self.drawing_task is None:
            self.labels_are_learned()
            self.drawing_task = self.bar.add_task("Drawing", total=total)
        self.bar.advance(self.drawing_task, count)


@contextmanager
def _too_little_memory_said(output: Path) -> Iterator[None]:
    """Say what to do where a GPU's memory does not suffice, in loading, training, learning labels or drawing."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        partial = OutputFolder(path=output).partial
        kept = (partial / CHECKPOINT_FILE).is_file()
        raise TrainingError(
            "the GPU ran out of memory: choose fewer images through the encoder at a time with --micro-batch-size, or "
            "another --device" + (f"; a checkpoint is in {partial}: go on with --resume" if kept else "")
        ) from error


@contextmanager
def _stop_signal(processes: TrainingProcesses) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C or a polite kill came; the second one interrupts at once.

    Except under torchrun, which passes on a Ctrl-C that the terminal sent already, and kills whoever takes too long.
    """
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, _: object) -> None:
        received.append(number)
        if processes.count == 1:
            restore()
        if len(received) == 1:
            console.print(
                "Stopping after this step" + ("; once more to stop at once." if processes.count == 1 else ".")
            )

    for number in previous:
        signal.signal(number, receive)
    try:
        yield lambda: bool(received)
    finally:
        restore()


def _summarise(result: SynthesisResult) -> None:
    record, folder = result.record, result.output
    what = IMAGES_FOLDER + "/" if record["output"]["format"] == "folder" else NPZ_FILE
    console.print()
    images, count = record["output"]["images"], len(record["classes"])
    console.print(f"{images:,} images of {count:,} {'class' if count == 1 else 'classes'}", style="bold")
    if record["public"]:
        console.print(public_sentence(record), soft_wrap=True, markup=False)
    console.print(privacy_claim(record["artifact"]), soft_wrap=True)
    if record["prior"]:
        console.print(prior_sentence(record["prior"]), soft_wrap=True, markup=False)
    for sentence in (sizes_sentence(record), unjudged_sentence(record)):
        if sentence:
            console.print(sentence, soft_wrap=True, markup=False)
    for label, name in (
        ("Look at", PREVIEW_FILE),
        ("Training", CURVE_FILE),
        ("Report", REPORT_FILE),
        ("Images", what),
    ):
        console.print(f"  {label:<9}{escape(str(folder / name))}", soft_wrap=True)
