"""What `dpmepf-embed` shows, on stderr, and its JSON object on stdout. Every number here is public, but one.

The exception is the number of images in the live progress bar: it is shown on a terminal only, to the custodian, and
erased at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.panel import Panel
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from dpmepf.artifacts.accounts import Account
from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.ledger import ONE_PERSON, Ledger
from dpmepf.embed.expectation import noise_per_count, noise_per_feature, noise_to_signal
from dpmepf.shared.console import console, progress_bar
from dpmepf.shared.feature_map_description import FeatureMapDescription
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.schema import ImageSchema

CLASSES_SHOWN = 12


@contextmanager
def embedding_progress(images: int, draws: int) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Live bars, on a terminal only and erased at the end, because the number of images is private."""
    if not (console.is_terminal and sys.stderr.isatty()):  # FORCE_COLOR makes rich take a log file for a terminal
        console.print(
            "Embedding images, without a bar: it shows on a terminal only, as the number of images is private.",
            soft_wrap=True,
        )
        yield (lambda _: None), (lambda _: None)
        return
    with progress_bar("images", transient=True) as embedding:
        task = embedding.add_task("Embedding images", total=images)
        yield (lambda done: embedding.advance(task, done)), _noise_bar(embedding, draws)


def _noise_bar(progress: Progress, draws: int) -> Callable[[int], None]:
    tasks: list[TaskID] = []

    def advance(done: int) -> None:
        if not tasks:  # the bar appears when the noise does
            tasks.append(progress.add_task("Drawing noise", total=draws))
        progress.advance(tasks[0], done)

    return advance


def announce(source: ImageSource, schema: ImageSchema) -> None:
    """What was recognised; nothing of it depends on a single image, unless the schema was inferred from them."""
    colour = "grey" if schema.channels == 1 else "RGB"
    part = "" if source.split is None else f", its part {source.split}"
    shown = ", ".join(map(repr, schema.classes[:CLASSES_SHOWN])) + (
        ", …" if len(schema.classes) > CLASSES_SHOWN else ""
    )
    count = f"{len(schema.classes)} {'class' if len(schema.classes) == 1 else 'classes'}"
    console.print(
        Text(f"{source.kind}{part}: {count} ({shown}), {schema.resolution}×{schema.resolution} {colour}"),
        soft_wrap=True,
    )


def note(sentence: str) -> None:
    console.print(Text(sentence[:1].upper() + sentence[1:]), soft_wrap=True)


def warn(sentence: str) -> None:
    console.print(Text("Warning: ", style="bold yellow") + Text(sentence), soft_wrap=True)


def warn_from_any_process(sentence: str) -> None:
    """Warn of what concerns this process alone; of several, those after the first are silent otherwise."""
    quiet, console.quiet = console.quiet, False
    try:
        warn(sentence)
    finally:
        console.quiet = quiet


def show_dry_run(
    ledger: Ledger, description: FeatureMapDescription, assumed: list[str], records: int, as_json: bool
) -> None:
    ratio = noise_to_signal(ledger, records=records)
    units = "persons" if ledger.unit_of_privacy == ONE_PERSON else "images"
    table = Table(title="Dry run: no image was read, nothing was released", show_header=False, title_justify="left")
    for name, value in (
        ("claim", _claim(ledger)),
        ("encoder", f"{description.encoder}, features {description.preset}"),
        ("dimension", f"{ledger.class_count} classes × {ledger.feature_dimension:,} features, and the class counts"),
        ("sensitivity", f"{_features(ledger, ledger.sensitivity):.6f} (a record's features have length at most 1)"),
        (
            "sigma",
            f"{noise_per_feature(ledger):.6f} on each feature sum; {noise_per_count(ledger):.1f} {units} on each count",
        ),
        (
            "noise in a mean",
            f"{ratio:.2%} of the length that a class mean can have at most, for {records:,} {units} spread evenly "
            "(CIFAR-10's at epsilon 0.2, delta 1e-5 is 19%, and its classes can be told; from 100% on it is noise)",
        ),
    ):
        table.add_row(name, value)
    if assumed:
        table.add_row(
            "assumed", f"{', '.join(assumed)}: {description.resolution} pixels, {description.channels} channels"
        )
    console.print(table)
    if as_json:
        click.echo(json.dumps({"dry_run": True, **_parameters(ledger), "noise_to_signal": ratio}))


def show_release(artifact: Artifact, output: Path, as_json: bool, *, weights: Path | None = None) -> None:
    """What was spent, and what comes next: where the encoder's weights are a file of the user's, with that file."""
    (ledger,) = artifact.ledger.releases
    carried = "" if weights is None else f" --encoder-weights {weights}"
    console.print(
        Panel(
            Text(
                f"{_claim(ledger)}\n"
                f"sensitivity {_features(ledger, ledger.sensitivity):.6f}, sigma {noise_per_feature(ledger):.6f}, "
                f"{ledger.coordinates:,} noisy numbers\n"
                f"artifact    {output}\n"
                f"next        dpmepf-audit {output}\n"
                f"            dpmepf-synth {output}{carried}"
            ),
            title="Released once",
            title_align="left",
            expand=False,
        )
    )
    if as_json:
        click.echo(json.dumps({"artifact": str(output), **_parameters(ledger), "release_id": ledger.release_id}))


def show_account(register: Path, account: Account) -> None:
    """What the data set has spent by now, and that an account is new where it is."""
    budget = account.budget
    opened = "a new account, " if len(account.releases) == 1 else ""
    console.print(
        Text(
            f"{register}: {opened}{account.dataset} has spent epsilon {account.epsilon_spent():.4g} of "
            f"{budget.epsilon:g} at delta {budget.delta:g}, in {len(account.releases)} release"
            + ("s" if len(account.releases) > 1 else "")
        ),
        soft_wrap=True,
    )


def _claim(ledger: Ledger) -> str:
    relation = ledger.relation.value.replace("-", " ")
    return f"({ledger.epsilon:g}, {ledger.delta:g})-differentially private, {relation}, for {ledger.unit_of_privacy}"


def _features(ledger: Ledger, lattice_units: float) -> float:
    return lattice_units / 2.0**ledger.lattice_exponent


def _parameters(ledger: Ledger) -> dict[str, Any]:
    """As in the ledger and the audit, sigma and sensitivity are in lattice units, those of features beside them."""
    return {
        "epsilon": ledger.epsilon,
        "delta": ledger.delta,
        "relation": ledger.relation.value,
        "sigma": ledger.sigma,
        "sensitivity": ledger.sensitivity,
        "sigma_features": noise_per_feature(ledger),
        "sensitivity_features": _features(ledger, ledger.sensitivity),
        "dimension": ledger.feature_dimension,
        "unit_of_privacy": ledger.unit_of_privacy,
    }
