"""`dpmepf-pretrain`: train the built-in encoder on public images. Neither custodian nor modeller needs it."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from safetensors import SafetensorError
from torch import Tensor

from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.console import NamedPath, console, progress_bar, reports_errors, with_version
from dpmepf.shared.devices import choose_device
from dpmepf.shared.encoders import BuiltinEncoder, file_sha256, is_finite
from dpmepf.shared.errors import UsageError
from dpmepf.shared.image_loading import load_all
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.output_file import WEIGHTS, check_output_file
from dpmepf.shared.pretraining import (
    PretrainingProgress,
    PretrainingSettings,
    encoder_of,
    held_out_accuracy,
    pretrain_encoder,
    save_weights,
    split_held_out,
    whiten,
)
from dpmepf.shared.torch_files import load_safetensors

DEFAULTS = PretrainingSettings()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@with_version
@click.option(
    "--data",
    "paths",
    type=NamedPath(),
    multiple=True,
    required=True,
    help="PUBLIC labelled images: a folder, zip or tar of class folders, tar shards, parquet files. Give it several "
    "times to join parts.",
)
@click.option("--output", type=NamedPath(), default=Path("encoder.safetensors"), metavar="FILE", help="Weights.")
@click.option(
    "--start-from",
    type=NamedPath(),
    metavar="FILE",
    show_default="random weights",
    help="Weights of an earlier run over the same classes (.safetensors) to train further.",
)
@click.option("--force", is_flag=True, help="Replace --output if it exists.")
@click.option(
    "--epochs",
    type=click.IntRange(0),
    default=DEFAULTS.epochs,
    help="Passes over the training images. 0: only measure the whitening of the features of --start-from.",
)
@click.option(
    "--resolutions",
    default=",".join(map(str, DEFAULTS.resolutions)),
    metavar="PIXELS,…",
    help="Image sides of equal shares of the epochs, small to full.",
)
@click.option("--batch-size", type=click.IntRange(2), default=DEFAULTS.batch_size, help="Images per step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULTS.learning_rate,
    help="Peak of the one-cycle schedule, for SGD with momentum 0.9.",
)
@click.option(
    "--attack-radius",
    type=click.FloatRange(0),
    default=DEFAULTS.attack_radius,
    help="Train on images moved so far in the direction that raises the loss most (Euclidean length, pixels from 0 to "
    "1): what is then generated shows more of what a person recognises. 0: not at all.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=DEFAULTS.seed, help="Of initialisation, order and augmentation."
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be decoded instead of stopping.")
@click.option("--device", default="auto", help="Where to train: auto, cpu, cuda or cuda:N.")
@reports_errors()
def main(
    *,
    paths: tuple[Path, ...],
    output: Path,
    start_from: Path | None,
    force: bool,
    epochs: int,
    resolutions: str,
    batch_size: int,
    learning_rate: float,
    attack_radius: float,
    seed: int,
    skip_unreadable: bool,
    device: str,
) -> None:
    """Train the built-in encoder on PUBLIC images and report its accuracy on held-out ones.

    A checkpoint beside the output (FILE.checkpoint) makes a run resumable: repeat the same command.
    """
    if epochs == 0 and start_from is None:
        raise UsageError("--epochs 0 leaves weights as they are: name them by --start-from, or give a number of epochs")
    check_output_file(output, WEIGHTS, force=force)
    where = str(choose_device(device))
    settings = PretrainingSettings(
        epochs=max(epochs, 1),
        resolutions=_resolutions(resolutions),
        batch_size=batch_size,
        learning_rate=learning_rate,
        attack_radius=attack_radius,
        seed=seed,
    )
    initial_state = None if start_from is None else read_weights(start_from)
    images, labels, class_count = load_public_images(
        paths, resolution=settings.resolutions[-1], skip_unreadable=skip_unreadable
    )
    training, held_out = split_held_out(labels, settings.held_out_share)
    if not len(training):
        raise UsageError("every image is the first of its class, and held out: give at least two images of a class")
    keep_freed_memory()
    checkpoint = output.with_name(output.name + ".checkpoint")
    if initial_state is not None and epochs == 0:
        encoder = encoder_of(initial_state, class_count).to(where)
    else:
        encoder = _trained(images[training], labels[training], class_count, settings, checkpoint, initial_state, where)
    with console.status("whitening features"):
        whiten(encoder, images[training], device=where)
    accuracy = held_out_accuracy(encoder, images[held_out], labels[held_out], device=where)
    save_weights(encoder, output)
    if epochs > 0:
        checkpoint.unlink()
    console.print(f"{output}: held-out top-1 {accuracy:.1%} of {len(held_out):,} images, {class_count} classes")
    result = {"accuracy": accuracy, "held_out": len(held_out), "classes": class_count, "sha256": file_sha256(output)}
    click.echo(json.dumps(result))


def _trained(
    images: Tensor,
    labels: Tensor,
    class_count: int,
    settings: PretrainingSettings,
    checkpoint: Path,
    initial_state: dict[str, Tensor] | None,
    device: str,
) -> BuiltinEncoder:
    """Train behind a progress bar."""
    with progress_bar("images") as bar:
        task = bar.add_task("training", total=None)

        def report(progress: PretrainingProgress) -> None:
            bar.update(
                task,
                total=progress.step_count * progress.images,
                completed=progress.step * progress.images,
                description=f"{progress.resolution} px, loss {progress.loss:.2f}",
            )

        return pretrain_encoder(
            images,
            labels,
            class_count,
            settings,
            checkpoint=checkpoint,
            initial_state=initial_state,
            device=device,
            report=report,
        )


def load_public_images(
    paths: tuple[Path, ...], *, resolution: int, skip_unreadable: bool = False
) -> tuple[Tensor, Tensor, int]:
    """Join public sources that share their class names: N×3×R×R uint8, N int64, number of classes."""
    sources = [open_images(path, public=True) for path in paths]
    classes = sources[0].classes
    for path, source in zip(paths, sources, strict=True):
        if source.classes != classes:
            raise UsageError(
                f"{path} has other classes than {paths[0]}: parts of one data set share their class folders"
            )
    if len(classes) < 2:
        raise UsageError(f"{paths[0]} has one class, of which an encoder learns nothing: put images into class folders")
    with console.status("reading images"):
        parts = [
            load_all(source, resolution=resolution, channels=3, skip_unreadable=skip_unreadable) for source in sources
        ]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]), len(classes)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises: UsageError when it is missing or damaged."""
    try:
        state = load_safetensors(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is not a readable .safetensors file: name one that dpmepf-pretrain wrote") from error
    if not is_finite(state):
        raise UsageError(f"{file} holds weights that are not finite numbers: name one that dpmepf-pretrain wrote")
    return state


def _resolutions(text: str) -> tuple[int, ...]:
    try:
        sides = tuple(int(side) for side in text.split(","))
    except ValueError:
        sides = ()
    if not sides or min(sides) < 8:
        raise UsageError(
            f"--resolutions {text!r} is not a list of image sides: give numbers of at least 8, as 16,24,32"
        )
    return sides


if __name__ == "__main__":
    main()
