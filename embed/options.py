"""What the options of `dpmepf-embed` ask for: refused in a sentence, or made what the release takes."""

from __future__ import annotations

from pathlib import Path

from dpmepf.artifacts.accounts import Budget
from dpmepf.artifacts.atomic_file import check_writable_target
from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON
from dpmepf.artifacts.register import Register, default_register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.signature import signature_file
from dpmepf.shared.class_names import check_class_names, parse_classes
from dpmepf.shared.errors import UsageError
from dpmepf.shared.output_file import ARTIFACT, require_kind, require_writable_folder


def register_of(dataset: str | None, file: Path | None, budget_eps: float | None) -> Register | None:
    """The book that the options ask for: any of them wants one, and a data set's name is enough."""
    if dataset is None and file is None and budget_eps is None:
        return None
    return Register(file or default_register())


def unit_of_privacy(unit_list: Path | None, unit_from_folder: bool) -> str:
    """Whom the release is to protect: an image, or a person with all of theirs."""
    if unit_list is not None and unit_from_folder:
        raise UsageError("--unit and --unit-from-folder both say whose image each image is: choose one")
    return ONE_IMAGE if unit_list is None and not unit_from_folder else ONE_PERSON


def budget_of(
    epsilon: float | None, budget_delta: float | None, delta: float, relation: str, unit: str
) -> Budget | None:
    """The budget that the options set for a data set, if any; δ is that of the release unless they name one."""
    if epsilon is None:
        if budget_delta is not None:
            raise UsageError("--budget-delta belongs to --budget-eps: give both, or neither if the budget is set")
        return None
    relation_kept = NeighbouringRelation(relation)
    return Budget(
        epsilon=epsilon,
        delta=delta if budget_delta is None else budget_delta,
        relation=relation_kept,
        unit_of_privacy=unit,
    )


def declared_classes(text: str) -> tuple[str, ...]:
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


def check_usage(output: Path, register: Register | None, *, force: bool, dry_run: bool, records: int | None) -> None:
    """Refuse what can be without looking at data or encoder."""
    if dry_run != (records is not None):
        raise UsageError(
            "--dry-run and --records belong together: --dry-run --records 60000 --classes 10 shows the noise to expect"
        )
    if dry_run:
        return
    written = {output.resolve(), signature_file(output).resolve()}
    if register is not None and register.path.resolve() in written:
        raise UsageError(f"--register {register.path} is the file that --output {output} or its signature would be")
    check_writable_target(output, force=force)
    require_kind(output, ARTIFACT)
    require_writable_folder(output)
