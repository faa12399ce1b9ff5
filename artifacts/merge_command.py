"""`dpmepf-merge`: one artifact out of several custodians', over disjoint records."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.atomic_file import check_writable_target
from dpmepf.artifacts.hdf5_file import read_verified_artifact, write_artifact
from dpmepf.artifacts.merged_ledger import MergedLedger
from dpmepf.artifacts.merging import merge_artifacts
from dpmepf.artifacts.signature import remove_old_signature
from dpmepf.shared.console import NamedPath, console, reports_errors, with_version
from dpmepf.shared.errors import UsageError
from dpmepf.shared.output_file import ARTIFACT, require_kind


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@with_version
@click.argument("artifacts", type=NamedPath(), metavar="ARTIFACT...", nargs=-1, required=True)
@click.option("-o", "--output", type=NamedPath(), required=True, help="The merged artifact to write.")
@click.option(
    "--disjoint",
    is_flag=True,
    help="State that no record, or person, is in two of the artifacts. Required: nobody can see it in the files.",
)
@click.option("--force", is_flag=True, help="Replace an existing output, and remove its signature.")
@reports_errors()
def main(artifacts: tuple[Path, ...], output: Path, disjoint: bool, force: bool) -> None:
    """Add up two or more ARTIFACTs of the same schema and feature map, made by several custodians of other records.

    Each is audited first. The result is one artifact, for dpmepf-audit and dpmepf-synth: it keeps the ledger of every
    release, and claims the largest epsilon and delta among them, as each record is in one of them only. Nothing private
    is read. Merged artifacts can be merged again.
    """
    if not disjoint:
        raise UsageError(
            "--disjoint is missing: state with it that no record, or person, is in two of the artifacts. Of one that "
            "is, the epsilons would add up, and the merged claim would be false"
        )
    check_writable_target(output, force=force)
    require_kind(output, ARTIFACT)
    if output.exists():
        for path in artifacts:
            if path.exists() and output.samefile(path):
                raise UsageError(f"{output} is one of the artifacts to merge: choose another --output")
    merged = merge_artifacts((str(path), read_verified_artifact(path)) for path in artifacts)
    write_artifact(output, merged, force=force)
    if force:
        remove_old_signature(output)
    _show(merged, output)


def _show(merged: Artifact, output: Path) -> None:
    ledger = merged.ledger
    assumption = ledger.assumption if isinstance(ledger, MergedLedger) else ""
    relation = ledger.relation.value.replace("-", " ")
    console.print(
        Text(
            f"{output}: {len(ledger.releases)} releases, together ({ledger.epsilon:g}, {ledger.delta:g})-"
            f"differentially private, {relation}, for {ledger.unit_of_privacy}. {assumption}"
        ),
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
