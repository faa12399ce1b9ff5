"""`dpmepf-eval`: scores of a synthetic data set on real test images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.console import NamedPath, console, progress_bar, reports_errors, with_version
from dpmepf.shared.output_file import REPORT, check_output_file
from dpmepf.synthesize.classifiers import CLASSIFIERS
from dpmepf.synthesize.distances import EXTRACTORS, FEWEST_IMAGES
from dpmepf.synthesize.evaluation import EvaluationSettings, evaluate
from dpmepf.synthesize.evaluation_report import EvaluationReport, write_report


@click.command(name="dpmepf-eval", context_settings={"help_option_names": ["-h", "--help"]})
@with_version
@click.argument("synthetic", type=NamedPath())
@click.option(
    "--real",
    type=NamedPath(),
    required=True,
    metavar="PATH",
    help="Real test images: a folder of class folders, a zip or tar of one, tar shards, parquet files, a folder with "
    "IDX files, or an .npz with x and y.",
)
@click.option(
    "--split",
    metavar="NAME",
    help="Part of the real data to test on: train, test or val.  [default: test if they are divided, else all]",
)
@click.option(
    "--classifiers",
    default=",".join(CLASSIFIERS),
    show_default=True,
    metavar="NAMES",
    help="Classifiers to train on the synthetic images, separated by commas; `none` for distances only.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Trainings of each classifier."
)
@click.option(
    "--distances/--no-distances",
    default=True,
    show_default=True,
    help="Whether to compute FID, KID, precision and recall.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=FEWEST_IMAGES),
    default=10_000,
    show_default=True,
    metavar="IMAGES",
    help="Most images of each side that enter the distances, chosen at random.",
)
@click.option(
    "--extractor",
    type=click.Choice(EXTRACTORS),
    default="auto",
    show_default=True,
    help="Network for the distances; auto takes Inception if its weights are in torch's cache. Nothing is downloaded.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--workers", type=click.IntRange(min=0), help="Decoding processes.  [default: one for each core, at most 16]"
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be decoded, and count them.")
@click.option("--output", type=NamedPath(), metavar="FILE.json", help="Also write the scores to this file as JSON.")
@click.option("--force", is_flag=True, help="Replace an existing --output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@reports_errors(private_names=True)
def main(
    synthetic: Path,
    real: Path,
    split: str | None,
    classifiers: str,
    seeds: int,
    distances: bool,
    samples: int,
    extractor: str,
    device: str,
    workers: int | None,
    skip_unreadable: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Score the images in SYNTHETIC (an output folder of dpmepf-synth, or any form that --real takes).

    Classifiers are trained on the synthetic images and tested on the real ones; FID, KID, precision and recall compare
    the two sets. Accuracy, precision and recall are better when higher, FID and KID when lower.
    """
    settings = EvaluationSettings(
        classifiers=() if classifiers == "none" else tuple(name.strip() for name in classifiers.split(",")),
        seeds=seeds,
        distances=distances,
        samples=samples,
        extractor=extractor,
        device=device,
        split=split,
        workers=workers,
        skip_unreadable=skip_unreadable,
    )
    if output is not None:
        check_output_file(output, REPORT, force=force)
    keep_freed_memory()
    report = evaluate(synthetic, real, settings, watch=_watch)
    console.print(f"[yellow]Note:[/] {escape(report.note)}")
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        Console().print(_table(report))
    if output is not None:
        write_report(output, report)


@contextmanager
def _watch(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    with progress_bar(unit) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def _table(report: EvaluationReport) -> Table:
    counts = report.images
    skipped = f", {counts['skipped']:,} unreadable left out" if counts["skipped"] else ""
    table = Table(
        title=f"{counts['synthetic']:,} synthetic against {counts['real']:,} real images{skipped}",
        caption=f"Features: {report.extractor}" if report.extractor else None,
    )
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("spread", justify="right")
    for name, score in report.accuracy.items():
        spread = "" if score.std is None else f"± {100 * score.std:.2f}"
        table.add_row(
            f"accuracy, {name} ({len(score.seeds)} seed{'s' if score.seeds[1:] else ''})",
            f"{100 * score.mean:.2f} %",
            spread,
        )
    if report.distances is not None:
        table.add_row("FID", f"{report.distances.fid:.4g}", "")
        table.add_row("KID", f"{report.distances.kid_mean:.4g}", f"± {report.distances.kid_std:.2g}")
        table.add_row("precision", f"{100 * report.distances.precision:.1f} %", "")
        table.add_row("recall", f"{100 * report.distances.recall:.1f} %", "")
    return table
