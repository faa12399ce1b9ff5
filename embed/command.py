"""`dpmepf-embed`: the only command that touches private data.

What it shows is for the custodian's own screen. The number of images appears in the live progress bar on a terminal,
which is erased when it ends, and nowhere else: where stderr is a file or a pipe there is no bar, and no message, log or
artifact holds a count, a file name or a value of the data.
"""

from __future__ import annotations

from pathlib import Path

import click

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.register import Register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.tables import weakness
from dpmepf.embed.display import (
    announce,
    embedding_progress,
    note,
    show_account,
    show_dry_run,
    show_release,
    warn,
    warn_from_any_process,
)
from dpmepf.embed.distributed import Processes, joined
from dpmepf.embed.listing import write_list_of_unusable
from dpmepf.embed.pipeline import plan
from dpmepf.embed.request import ReleaseRequest, open_private
from dpmepf.embed.run import ReleaseCallbacks, described, make_release
from dpmepf.shared.class_names import check_class_names, parse_classes
from dpmepf.shared.console import NamedPath, reports_errors, with_version
from dpmepf.shared.encoders import BUILTIN
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import DEFAULT, PRESETS, build_feature_map
from dpmepf.shared.feature_map_description import SUPPORTED_RESOLUTIONS
from dpmepf.shared.processes import SpeakingOnce
from dpmepf.shared.schema import ImageSchema


@click.command(cls=SpeakingOnce, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@with_version
@click.option(
    "--data",
    type=NamedPath(),
    help="Private images: a folder of class folders, a flat folder, a zip or tar of either, tar shards (WebDataset: "
    "KEY.png with KEY.cls), parquet files (columns image and label), a folder with IDX files (MNIST), or an .npz with "
    "x and y. Required, except by --dry-run with --classes.",
)
@click.option(
    "--eps",
    "epsilon",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NATS",
    help="Privacy loss epsilon of this release, above 0; smaller is more private and noisier. Required, except by "
    "--list-unreadable.",
)
@click.option(
    "--delta",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=1e-6,
    metavar="PROBABILITY",
    help="Privacy failure delta, between 0 and 1; well below one over the number of records.",
)
@click.option(
    "--relation",
    type=click.Choice([relation.value for relation in NeighbouringRelation]),
    default=NeighbouringRelation.ADD_OR_REMOVE_ONE.value,
    help="What the guarantee hides: one record (an image, or a person) being there at all, or one record's content "
    "(then the number of records counts as public).",
)
@click.option(
    "--unit",
    "unit_list",
    type=NamedPath(),
    metavar="FILE.csv",
    help="Protect persons, not images: a table with the columns image (its path below --data, its number, or in a "
    "folder of shards a.tar/KEY.png, a.parquet/17) and person. Images in folders need --classes. Nobody may have two "
    "names, and no two the same.",
)
@click.option(
    "--unit-from-folder",
    is_flag=True,
    help="Protect persons, not images: each image lies in a folder named for its person, inside its class folder "
    "(class/person/image). Needs --classes. Nobody may have two names, and no two the same.",
)
@click.option(
    "--resolution",
    type=int,
    metavar="|".join(map(str, SUPPORTED_RESOLUTIONS)),
    help="Side of the square images in pixels; undeclared, it is inferred from the most frequent size.",
)
@click.option(
    "--channels",
    type=int,
    metavar="1|3",
    help="1 for grey, 3 for RGB; undeclared, it is inferred: grey only if every image is.",
)
@click.option(
    "--classes",
    metavar="NAMES|COUNT|@FILE",
    help="Class names between commas, their number (named 0, 1, …), or @FILE with one name a line; undeclared, the "
    "names of folders, or those that a file stores beside its labels.",
)
@click.option("--strict", is_flag=True, help="Refuse to infer classes, resolution or channels: they must be declared.")
@click.option(
    "--split",
    metavar="train|test|val",
    help="Which part of data that are divided so (IDX files, split folders, train-0001.tar); undeclared, train.",
)
@click.option(
    "--dataset",
    "dataset_name",
    metavar="NAME",
    help="Public name of the data, for the ledger and the register: releases under one name share one budget.",
)
@click.option(
    "--register",
    "register_file",
    type=NamedPath(),
    metavar="FILE",
    help="The custodian's own book of releases, which refuses what the budget does not hold; with --dataset, by "
    "default that in the user's state folder.",
)
@click.option(
    "--budget-eps",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NATS",
    help="Once for each data set: epsilon that all its releases may spend together.",
)
@click.option(
    "--budget-delta",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    metavar="PROBABILITY",
    help="Once for each data set: delta of that budget, --delta if undeclared.",
)
@click.option(
    "--sign-key",
    type=NamedPath(),
    metavar="FILE",
    help="The custodian's Ed25519 private key (PEM): signs the artifact, in a file beside it.",
)
@click.option("--encoder", default=BUILTIN, metavar="NAME", help="builtin, or a torchvision classifier such as vgg19.")
@click.option(
    "--encoder-weights",
    type=NamedPath(),
    metavar="FILE",
    help="Weights of the encoder (.safetensors or .pth) instead of the packaged or cached ones, learned from public "
    "images alone. dpmepf-synth will need the same file.",
)
@click.option(
    "--features",
    "preset",
    type=click.Choice(list(PRESETS)),
    default=DEFAULT,
    help="Of the encoder's activations. "
    + "; ".join(f"{name}: {of.description}" for name, of in PRESETS.items())
    + ".",
)
@click.option("--output", type=NamedPath(), default=Path("artifact.h5"), metavar="FILE", help="Artifact to write.")
@click.option("--force", is_flag=True, help="Replace --output if it exists, and its signature.")
@click.option(
    "--checkpoint",
    "checkpoint_file",
    type=NamedPath(),
    metavar="FILE",
    help="Keep the exact sums in FILE while images are read, and go on from it if it is there. It is private: without "
    "noise, for your eyes only, and deleted when the artifact is written.",
)
@click.option("--device", default="auto", help="Where the encoder runs: auto, cpu, cuda or cuda:N.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, metavar="IMAGES", help="Images for each forward pass."
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="PROCESSES",
    help="Decoding processes, 0 for none; undeclared, one for each core, at most 16.",
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be decoded instead of stopping.")
@click.option(
    "--list-unreadable",
    type=NamedPath(),
    metavar="FILE",
    help="Release nothing: write which images cannot be decoded, or where else the data are refused, to a new FILE, "
    "which is private, and stop.",
)
@click.option(
    "--dry-run", is_flag=True, help="Read no image and release nothing: show the noise to expect. Needs --records."
)
@click.option(
    "--records",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="With --dry-run: about how many images (or persons) there are, a guess that may be public.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the release to stdout.")
@reports_errors(private_data=True)
@joined()
def main(
    *,
    data: Path | None,
    epsilon: float | None,
    delta: float,
    relation: str,
    unit_list: Path | None,
    unit_from_folder: bool,
    resolution: int | None,
    channels: int | None,
    classes: str | None,
    strict: bool,
    split: str | None,
    dataset_name: str | None,
    register_file: Path | None,
    budget_eps: float | None,
    budget_delta: float | None,
    sign_key: Path | None,
    encoder: str,
    encoder_weights: Path | None,
    preset: str,
    output: Path,
    force: bool,
    checkpoint_file: Path | None,
    device: str,
    batch_size: int,
    workers: int | None,
    skip_unreadable: bool,
    list_unreadable: Path | None,
    dry_run: bool,
    records: int | None,
    as_json: bool,
) -> None:
    """Embed private images and release their class means once, with (epsilon, delta)-differential privacy.

    The artifact is the only thing that may leave: dpmepf-audit checks it, dpmepf-synth makes images from it.
    """
    processes = Processes.of_torchrun()
    if processes is not None and (dry_run or list_unreadable is not None):
        raise UsageError("--dry-run and --list-unreadable are for one process: start them without torchrun")
    declared = None if classes is None else _declared_classes(classes)
    if list_unreadable is not None:
        write_list_of_unusable(lambda: open_private(data, declared, split), list_unreadable, workers=workers)
        note(f"{list_unreadable} lists what cannot be used of the data; it is private. Nothing was released.")
        return
    if epsilon is None:
        raise UsageError("--eps is missing: name the privacy loss epsilon of this release, as --eps 2")
    if dry_run != (records is not None):
        raise UsageError(
            "--dry-run and --records belong together: --dry-run --records 60000 --classes 10 shows the noise to expect"
        )
    request = ReleaseRequest(
        data=data,
        epsilon=epsilon,
        delta=delta,
        relation=NeighbouringRelation(relation),
        unit_list=unit_list,
        unit_from_folder=unit_from_folder,
        resolution=resolution,
        channels=channels,
        classes=declared,
        strict=strict,
        split=split,
        dataset_name=dataset_name,
        register=register_file,
        budget_epsilon=budget_eps,
        budget_delta=budget_delta,
        sign_key=sign_key,
        encoder=encoder,
        encoder_weights=encoder_weights,
        features=preset,
        output=output,
        force=force,
        checkpoint=checkpoint_file,
        device=device,
        batch_size=batch_size,
        workers=workers,
        skip_unreadable=skip_unreadable,
    )
    if records is not None:
        _dry_run(request, records, as_json)
        return

    def on_release(artifact: Artifact, register: Register | None) -> None:
        if register is not None:
            show_account(register.path, register.read().accounts[artifact.ledger.dataset_name])
        show_release(artifact, output, as_json, weights=encoder_weights)

    make_release(
        request,
        processes=processes,
        callbacks=ReleaseCallbacks(
            say=note,
            warn=warn,
            warn_from_any_process=warn_from_any_process,
            on_schema=announce,
            progress=embedding_progress,
            on_release=on_release,
            ask_passphrase=_ask_passphrase,
        ),
    )


def _dry_run(request: ReleaseRequest, records: int, as_json: bool) -> None:
    """Show the noise that the release would have, of about so many records; no image is read."""
    settings = request.settings()
    if weak := weakness(settings.epsilon, settings.delta):
        warn(weak)
    description = described(request, say=note)
    if request.data is None and request.classes is None:
        raise UsageError("a dry run needs the class names: pass --classes, or --data with class folders")
    names = request.classes or request.open().classes
    assumed = [name for name in ("resolution", "channels") if getattr(request, name) is None]
    schema = ImageSchema(
        classes=tuple(names), resolution=description.resolution, channels=description.channels, inferred=()
    )
    feature_map = build_feature_map(description, weights_file=request.encoder_weights)
    show_dry_run(plan(schema, feature_map, settings), description, assumed, records, as_json)


def _declared_classes(text: str) -> tuple[str, ...]:
    """The class names of `--classes`: the text itself says them, or @FILE, one a line."""
    if not text.startswith("@"):
        return parse_classes(text)
    file = Path(text[1:])
    if not file.exists():
        raise UsageError(f"--classes {text} names a file that does not exist: give one class name a line")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"--classes {text} names a file that cannot be read as text: give one class name a line"
        ) from None
    return check_class_names([line.strip() for line in lines if line.strip()])


def _ask_passphrase() -> str:
    try:
        passphrase: str = click.prompt("Passphrase of the signing key", hide_input=True, err=True)
    except click.Abort:
        raise UsageError("the signing key is encrypted, and no passphrase was given: type it when asked") from None
    return passphrase
