"""`dpmepf-audit REGISTER` and `dpmepf-audit register init`: the custodian's book of releases, shown and begun."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from dpmepf.artifacts.accounts import Account, Budget
from dpmepf.artifacts.ledger import ONE_IMAGE, UNITS
from dpmepf.artifacts.register import SQLITE_MAGIC, Register, default_register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.tables import plain_table, rounded_up
from dpmepf.shared.console import NamedPath, console, reports_errors
from dpmepf.shared.errors import UsageError

HASH = re.compile("[0-9a-f]{64}")


@click.group("register")
def register_group() -> None:
    """Keep the custodian's book of releases."""


@register_group.command("init")
@click.argument("file", type=NamedPath(), required=False)
@click.option("--dataset", required=True, metavar="NAME", help="Public name of the data, as dpmepf-embed will have it.")
@click.option(
    "--budget-eps",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    metavar="NATS",
    help="epsilon that all releases of the data set may spend together.",
)
@click.option(
    "--budget-delta",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    required=True,
    metavar="PROBABILITY",
    help="delta of that budget.",
)
@click.option(
    "--relation",
    type=click.Choice([relation.value for relation in NeighbouringRelation]),
    default=NeighbouringRelation.ADD_OR_REMOVE_ONE.value,
    show_default=True,
    help="What the budget's guarantee hides.",
)
@click.option(
    "--unit", type=click.Choice(UNITS), default=ONE_IMAGE, show_default=True, help="Whom the guarantee is for."
)
@reports_errors()
def init(file: Path | None, dataset: str, budget_eps: float, budget_delta: float, relation: str, unit: str) -> None:
    """Set the budget of a data set, once, in the register FILE (by default the one in the user's state folder)."""
    register = Register(file or default_register())
    kept = NeighbouringRelation(relation)
    budget = Budget(epsilon=budget_eps, delta=budget_delta, relation=kept, unit_of_privacy=unit)
    register.set_budget(dataset, budget)
    console.print(
        Text(
            f"{register.path}: {dataset} may spend epsilon {budget.epsilon:g} at delta {budget.delta:g}, {relation}, "
            f"for {unit}"
        ),
        soft_wrap=True,
    )


def is_sqlite(file: Path) -> bool:
    """Whether `file` is an SQLite file, as a register is."""
    try:
        if not file.is_file():  # a named pipe would not end
            return False
        with file.open("rb") as opened:
            return opened.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError:
        return False


def show_register(register: Register, *, delta: float | None, noted: str | None, as_json: bool) -> bool:
    """Print every account; return whether all are within budget and the entries are those that were noted.

    Args:
        delta: at which to report ε; None: each budget's.
        noted: a last hash of earlier, whose entries have to be as they were; None: none was noted.
    """
    if noted is not None and not HASH.fullmatch(noted := noted.strip().lower()):
        raise UsageError("--noted is no hash: give the last hash that an earlier audit showed, all 64 digits of it")
    book = register.read()
    as_noted = None if noted is None else book.holds_hash(noted)
    summaries = [_summary(account, delta) for account in book.accounts.values()]
    within = all(summary["within_budget"] for summary in summaries)
    valid = within and as_noted is not False
    if as_json:
        report = {"valid": valid, "head": book.head, "as_noted": as_noted, "datasets": summaries}
        click.echo(json.dumps(report, allow_nan=False, indent=2))
        return valid
    shown = Console()
    for account, summary in zip(book.accounts.values(), summaries, strict=True):
        _render(account, summary, shown)
    shown.print(f"Every entry follows from the one before. Last hash: {book.head}", soft_wrap=True)
    if as_noted is None:
        shown.print("A register written anew shows only against a hash noted earlier: --noted HASH.", soft_wrap=True)
    elif as_noted:
        shown.print("The noted hash is there: all entries up to it are as they were.")
    else:
        shown.print(Text("NOT AS NOTED: no entry has that hash; entries were changed or removed.", style="bold red"))
    shown.print("Every data set is within its budget." if within else Text("OVER BUDGET.", style="bold red"))
    return valid


def _summary(account: Account, delta: float | None) -> dict[str, Any]:
    budget = account.budget
    delta_spent = account.delta_spent()
    return {
        "dataset": account.dataset,
        "relation": budget.relation.value,
        "unit_of_privacy": budget.unit_of_privacy,
        "budget_epsilon": budget.epsilon,
        "budget_delta": budget.delta,
        "epsilon": account.epsilon_spent(delta),
        "delta": budget.delta if delta is None else delta,
        "delta_at_budget_epsilon": delta_spent,
        "within_budget": delta_spent <= budget.delta,
        "releases": [
            {
                "number": release.number,
                "time": release.time,
                "release_id": release.ledger.release_id,
                "epsilon": release.ledger.epsilon,
                "delta": release.ledger.delta,
                "relation": release.ledger.relation.value,
                "sigma": release.ledger.sigma,
                "sensitivity": release.ledger.sensitivity,
            }
            for release in account.releases
        ],
    }


def _render(account: Account, summary: dict[str, Any], shown: Console) -> None:
    title = Text(account.dataset)
    history = plain_table(title, "entry", "charged (UTC)", "release id", "epsilon", "delta", "relation")
    for release in account.releases:
        ledger = release.ledger
        history.add_row(
            Text(str(release.number)),
            Text(release.time),
            Text(ledger.release_id),
            f"{ledger.epsilon:g}",
            f"{ledger.delta:g}",
            ledger.relation.value,
        )
    shown.print(history)
    shown.print(
        f"together epsilon {rounded_up(summary['epsilon'])} at delta {summary['delta']:g}, of a budget of "
        f"{summary['budget_epsilon']:g} at {summary['budget_delta']:g} ({summary['relation']}, "
        f"for {summary['unit_of_privacy']})\n",
        soft_wrap=True,
    )
