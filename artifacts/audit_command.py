"""`dpmepf-audit`: what an artifact released, at which (ε, δ), recomputed."""

from __future__ import annotations

import decimal
import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpmepf.artifacts.audit import AuditReport, audit_artifact
from dpmepf.shared.console import reports_errors

_CLASSES_SHOWN = 12
_CURVE_STRIDE = 5


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--delta",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Report epsilon at this delta (0 < delta < 1); the ledger's by default. Claims are judged at the ledger's.",
)
@reports_errors()
def main(artifact: Path, as_json: bool, delta: float | None) -> None:
    """Show what ARTIFACT released and recompute every claim of its ledger.

    Exit status: 0 if every claim holds, 1 if one does not or the file cannot be read, 2 if there is no such file.
    """
    report = audit_artifact(artifact, delta=delta)
    if as_json:
        click.echo(json.dumps(report.to_dict(), allow_nan=False, indent=2))
    else:
        _render(report, Console())
    sys.exit(0 if report.valid else 1)


def _render(report: AuditReport, console: Console) -> None:
    for table in (_release_table(report), _claims_table(report), _epsilon_table(report), _curve_table(report)):
        console.print(table)
        console.print()
    if report.valid:
        console.print(Text("Every claim holds. ", style="bold green"), end="")
    else:
        failed = ", ".join(check.name for check in report.checks if not check.holds)
        console.print(Text(f"NOT VALID: {failed}. ", style="bold red"), end="")
    console.print("A forgery that changes all parameters consistently cannot be told from the file alone.")


def _release_table(report: AuditReport) -> Table:
    artifact, ledger = report.artifact, report.artifact.ledger
    names = ", ".join(artifact.classes[:_CLASSES_SHOWN]) + (", …" if len(artifact.classes) > _CLASSES_SHOWN else "")
    feature_map = artifact.feature_map
    inferred = ", ".join(ledger.inferred_schema)
    table = _table("Release", "", "")
    for name, value in (
        ("release id", ledger.release_id),
        ("data set (custodian's name)", ledger.dataset_name),
        ("claim", f"epsilon {ledger.epsilon:g}, delta {ledger.delta:g}, {ledger.relation.value}"),
        ("unit of privacy", ledger.unit_of_privacy),
        ("mechanism", f"{ledger.mechanism}, one release of {ledger.coordinates:,} integers"),
        ("sigma, sensitivity (lattice units)", f"{ledger.sigma:.8g}, {report.sensitivity:.8g}"),
        ("lattice step, stored step", f"2^-{ledger.lattice_exponent}, 2^{ledger.coarsening_exponent} lattice units"),
        ("features", f"{artifact.dimension:,} ({feature_map.preset}) of {feature_map.encoder}"),
        ("encoder weights (SHA-256)", feature_map.weights_sha256),
        ("images", f"{feature_map.resolution} x {feature_map.resolution}, {feature_map.channels} channel(s)"),
        ("classes", f"{len(artifact.classes)}: {names}"),
        ("inferred, treated as public", inferred or "nothing: the schema was declared"),
        ("library versions", ", ".join(f"{name} {version}" for name, version in ledger.library_versions.items())),
    ):
        table.add_row(Text(name), Text(value))
    return table


def _claims_table(report: AuditReport) -> Table:
    table = _table("Claims, recomputed", "claim", "", "found")
    for check in report.checks:
        verdict = Text("holds", style="green") if check.holds else Text("FAILS", style="bold red")
        table.add_row(Text(check.name), verdict, Text(check.detail))
    return table


def _epsilon_table(report: AuditReport) -> Table:
    table = _table(f"epsilon at delta = {report.delta:g}", "accountant", "relation", "epsilon", "note")
    for estimate in report.estimates:
        epsilon = "" if estimate.epsilon is None else _rounded_up(estimate.epsilon)
        table.add_row(Text(estimate.accountant), Text(estimate.relation.value), Text(epsilon), Text(estimate.note))
    return table


def _curve_table(report: AuditReport) -> Table:
    relation = report.artifact.ledger.relation.value
    table = _table(f"delta(epsilon), {relation}, lattice surcharge included", "epsilon", "delta")
    for epsilon, delta in report.curve[::_CURVE_STRIDE]:
        table.add_row(f"{epsilon:g}", _rounded_up(delta))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for column in table.columns:
        column.overflow = "fold"  # nothing of a claim is cut off
    table.columns[0].no_wrap = True
    return table


def _rounded_up(value: float) -> str:
    """Six significant digits, never below the value."""
    return f"{float(decimal.Context(prec=6, rounding=decimal.ROUND_CEILING).create_decimal(value)):.6g}"


if __name__ == "__main__":
    main()
