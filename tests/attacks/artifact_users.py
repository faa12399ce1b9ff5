"""What people do with an artifact that they were sent: the modeller reads it, the auditor audits it."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner, Result

from dpmepf.artifacts.audit_command import main
from dpmepf.artifacts.hdf5_file import read_verified_artifact
from dpmepf.shared.errors import DpmepfError
from dpmepf.synthesize.targets import class_targets

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # all but the newline


class DisagreementError(Exception):
    """Two readers of one file, or a message and its terminal, do not agree."""


def read_and_audit(path: Path) -> str:
    """Read `path` as `dpmepf-synth` does and give it to `dpmepf-audit`; return what the auditor sees.

    Raises:
        DpmepfError: both refuse the file, or reject a claim.
        DisagreementError: they do not agree, or print what no terminal should get.
        Exception: a defect.
    """
    refusal = None
    try:
        artifact = read_verified_artifact(path)
    except DpmepfError as error:
        refusal = error
    else:
        class_targets(artifact)
    table = audit(path)
    if table.exit_code != (0 if refusal is None else refusal.exit_code):
        raise DisagreementError(f"dpmepf-synth: {refusal}; dpmepf-audit ends with {table.exit_code}")
    if refusal is not None and not table.stdout and table.stderr != f"Error: {refusal}\n":
        raise DisagreementError(f"dpmepf-synth: {refusal}; dpmepf-audit: {table.stderr!a}")
    if refusal is not None:
        raise refusal
    return table.stdout


def audit(path: Path, *options: str) -> Result:
    """`dpmepf-audit path options`, whose own exceptions are let through."""
    result = CliRunner().invoke(main, [str(path), *options])
    if isinstance(result.exception, Exception):
        raise result.exception
    if _CONTROL.search(result.output):
        raise DisagreementError(f"control characters are printed: {result.output!a}")
    return result
