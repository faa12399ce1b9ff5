"""`dpmepf-audit REGISTER` and `dpmepf-audit register init`: the custodian's book of releases, shown and begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from dpmepf.artifacts.register import Account, Budget, Register, default_register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.tables import plain_table, rounded_up
from dpmepf.shared.console import console, reports_errors

_SQLITE_MAGIC = b"SQLite format 3\0"


@click.group("register")
def register_group() -> None:
    """Keep the custodian's book of releases."""


@register_group.command("init")
@click.argument("file", type=click.Path(path_type=Path), required=False)
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
@reports_errors()
def init(file: Path | None, dataset: str, budget_eps: float, budget_delta: float, relation: str) -> None:
    """Set the budget of a data set, once, in the register FILE (by default the one in the user's state folder)."""
    register = Register(file or default_register())
    budget = Budget(epsilon=budget_eps, delta=budget_delta, relation=NeighbouringRelation(relation))
    register.set_budget(dataset, budget)
    console.print(
        Text(f"{register.path}: {dataset} may spend epsilon {budget.epsilon:g} at delta {budget.delta:g}, {relation}"),
        soft_wrap=True,
    )


def is_sqlite(file: Path) -> bool:
    """Whether `file` is an SQLite file, as a register is."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError:
        return False


def show_register(register: Register, *, delta: float | None, as_json: bool) -> bool:
    """Print every account, with ε at `delta` (each budget's by default); return whether all are within budget."""
    accounts, head = register.accounts(), register.head()
    summaries = [_summary(account, delta) for account in accounts.values()]
    valid = all(summary["within_budget"] for summary in summaries)
    if as_json:
        click.echo(json.dumps({"valid": valid, "head": head, "datasets": summaries}, allow_nan=False, indent=2))
        return valid
    shown = Console()
    for account, summary in zip(accounts.values(), summaries, strict=True):
        _render(account, summary, shown)
    shown.print(f"Every entry follows from the one before. Last hash: {head}", soft_wrap=True)
    shown.print("Entries removed from the end show only if that hash was noted. ", end="")
    shown.print("Every data set is within its budget." if valid else Text("OVER BUDGET.", style="bold red"))
    return valid


def _summary(account: Account, delta: float | None) -> dict[str, Any]:
    budget = account.budget
    delta_spent = account.delta_spent()
    return {
        "dataset": account.dataset,
        "relation": budget.relation.value,
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
        f"{summary['budget_epsilon']:g} at {summary['budget_delta']:g} ({summary['relation']})\n",
        soft_wrap=True,
    )
