"""`dpmepf-audit`: what an artifact released, or all that a register holds, at which (ε, δ), recomputed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpmepf.artifacts.audit import AuditReport, audit_artifact
from dpmepf.artifacts.ledger import Ledger
from dpmepf.artifacts.merged_ledger import MergedLedger
from dpmepf.artifacts.register import Register
from dpmepf.artifacts.register_command import is_sqlite, register_group, show_register
from dpmepf.artifacts.signature import load_verifying_key
from dpmepf.artifacts.tables import plain_table, rounded_up, weakness
from dpmepf.shared.console import NamedPath, reports_errors, with_version
from dpmepf.shared.errors import UsageError

_CLASSES_SHOWN = 12
_CURVE_STRIDE = 5


class _FilesAndCommands(click.Group):
    """A group whose unnamed command takes a file: `dpmepf-audit artifact.h5`, beside `dpmepf-audit register init`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--version"):
            args = ["audit", *args]
        return super().parse_args(ctx, args)


class _Unnamed(click.Command):
    """The command that need not be named."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        assert ctx.parent is not None
        formatter.write_usage(ctx.parent.command_path, " ".join(self.collect_usage_pieces(ctx)))


@click.group(cls=_FilesAndCommands, context_settings={"help_option_names": ["-h", "--help"]})
@with_version
def main() -> None:
    """Recompute what was released."""


main.add_command(register_group)


@main.command("audit", cls=_Unnamed)
@click.argument("file", type=NamedPath())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--delta",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Report epsilon at this delta (0 < delta < 1); the ledger's (a register's: the budget's) by default, at "
    "which claims are judged.",
)
@click.option(
    "--verify-key",
    type=NamedPath(),
    metavar="FILE",
    help="The custodian's Ed25519 public key (PEM): FILE.sig has to be its signature of an artifact.",
)
@click.option(
    "--noted",
    metavar="HASH",
    help="Last hash of a register that was noted earlier: fails if an entry up to it has changed.",
)
@reports_errors()
def audit_file(file: Path, as_json: bool, delta: float | None, verify_key: Path | None, noted: str | None) -> None:
    """Show what FILE, an artifact, released and recompute every claim of its ledger.

    FILE may also be a register: then its history, and what each data set's releases amount to together. dpmepf-audit
    register init opens a data set's account.

    Exit status: 0 if every claim holds; 1 if one does not, or the file holds no artifact or register that can be read;
    2 if there is no such file, or an option is wrong.
    """
    key = None if verify_key is None else load_verifying_key(verify_key)
    if is_sqlite(file):
        if key is not None:
            raise UsageError(f"{file} is a register, which is not signed: leave --verify-key out")
        sys.exit(0 if show_register(Register(file), delta=delta, noted=noted, as_json=as_json) else 1)
    if noted is not None:
        raise UsageError(f"{file} is no register, which --noted is for: leave it out")
    report = audit_artifact(file, delta=delta, verify_key=key)
    if as_json:
        json.dump(report.to_dict(), sys.stdout, allow_nan=False, indent=2)  # piece by piece: names can be many
        click.echo()
    else:
        _render(report, Console())
    sys.exit(0 if report.valid else 1)


def _render(report: AuditReport, console: Console) -> None:
    tables = [_release_table(report), _claims_table(report), _epsilon_table(report), _curve_table(report)]
    if isinstance(report.ledger, MergedLedger):
        tables.insert(1, _merged_table(report.ledger))
    for table in tables:
        console.print(table)
        console.print()
    if report.valid:
        console.print(Text("Every claim holds. ", style="bold green"), end="")
    else:
        failed = ", ".join(check.name for check in report.checks if not check.holds)
        console.print(Text(f"NOT VALID: {failed}. ", style="bold red"), end="")
    if report.signed_by is None:
        console.print("A forgery that changes all parameters consistently cannot be told from the file alone.")
    else:
        console.print(f"Signed by the holder of the key {report.signed_by}.", soft_wrap=True)
    if report.assumption is not None:
        console.print(report.assumption, soft_wrap=True)
    if weak := weakness(report.ledger.epsilon, report.ledger.delta):
        console.print(Text("Weak: ", style="bold yellow") + Text(weak + "."), soft_wrap=True)


def _release_table(report: AuditReport) -> Table:
    ledger, feature_map, classes = report.ledger, report.feature_map, report.classes
    names = ", ".join(classes[:_CLASSES_SHOWN]) + (", …" if len(classes) > _CLASSES_SHOWN else "")
    inferred = ", ".join(ledger.inferred_schema)
    positions = zip(feature_map.layers, feature_map.pooling, strict=True)
    merged = isinstance(ledger, MergedLedger)
    number = f"{len(ledger.releases)} releases, added up, each" if merged else "one release"
    table = plain_table("Merged releases, together" if merged else "Release", "", "")
    for name, value in (
        ("release id", "below" if isinstance(ledger, MergedLedger) else ledger.release_id),
        ("data set (custodian's name)", ledger.dataset_name),
        ("claim", f"epsilon {ledger.epsilon:g}, delta {ledger.delta:g}, {ledger.relation.value}"),
        ("unit of privacy", ledger.unit_of_privacy),
        ("mechanism", f"{ledger.mechanism}, {number} of {ledger.coordinates:,} integers"),
        ("sigma, sensitivity (lattice units)", f"{report.sigma:.8g}, {report.sensitivity:.8g}"),
        ("lattice step, stored step", f"2^-{ledger.lattice_exponent}, 2^{ledger.coarsening_exponent} lattice units"),
        ("features", f"{report.dimension:,} ({feature_map.preset}) of {feature_map.encoder}"),
        ("layers and their positions", ", ".join(f"{name} {side} x {side}" for name, side in positions)),
        ("moments, normalisation", f"{' and '.join(map(str, feature_map.moments))}, {feature_map.normalisation}"),
        ("encoder weights (SHA-256)", feature_map.weights_sha256),
        ("images", f"{feature_map.resolution} x {feature_map.resolution}, {feature_map.channels} channel(s)"),
        ("classes", f"{len(classes)}: {names}"),
        ("inferred, treated as public", inferred or "nothing: the schema was declared"),
        ("library versions", "below" if isinstance(ledger, MergedLedger) else _library_versions(ledger)),
    ):
        table.add_row(Text(name), Text(value))
    return table


def _merged_table(ledger: MergedLedger) -> Table:
    table = plain_table("Each release", "", "claim", "sigma", "release id, data set, library versions")
    for number, release in enumerate(ledger.releases, 1):
        inferred = f"; inferred: {', '.join(release.inferred_schema)}" if release.inferred_schema else ""
        table.add_row(
            f"{number}",
            Text(f"epsilon {release.epsilon:g}, delta {release.delta:g}"),
            Text(f"{release.sigma:.8g}"),
            Text(f"{release.release_id}, {release.dataset_name}{inferred}; {_library_versions(release)}"),
        )
    return table


def _library_versions(ledger: Ledger) -> str:
    return ", ".join(f"{name} {version}" for name, version in ledger.library_versions.items())


def _claims_table(report: AuditReport) -> Table:
    table = plain_table("Claims, recomputed", "claim", "", "found")
    for check in report.checks:
        verdict = Text("holds", style="green") if check.holds else Text("FAILS", style="bold red")
        table.add_row(Text(check.name), verdict, Text(check.detail))
    return table


def _epsilon_table(report: AuditReport) -> Table:
    table = plain_table(f"epsilon at delta = {report.delta:g}", "accountant", "relation", "epsilon", "note")
    for estimate in report.estimates:
        epsilon = "" if estimate.epsilon is None else rounded_up(estimate.epsilon)
        table.add_row(Text(estimate.accountant), Text(estimate.relation.value), Text(epsilon), Text(estimate.note))
    return table


def _curve_table(report: AuditReport) -> Table:
    relation = report.ledger.relation.value
    table = plain_table(f"delta(epsilon), {relation}, lattice surcharge included", "epsilon", "delta")
    for epsilon, delta in report.curve[::_CURVE_STRIDE]:
        table.add_row(f"{epsilon:g}", rounded_up(delta))
    return table


if __name__ == "__main__":
    main()
