"""How the auditor's commands show tables and numbers."""

from __future__ import annotations

import decimal

from rich.table import Table
from rich.text import Text

LARGEST_EPSILON = 10.0  # beyond these a claim is called weak
LARGEST_DELTA = 1e-4


def plain_table(title: str | Text, *columns: str) -> Table:
    """A table that folds what does not fit; a title from elsewhere has to be a `Text`, whose brackets mean nothing."""
    table = Table(*columns, title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for column in table.columns:
        column.overflow = "fold"  # nothing of a claim is cut off
    table.columns[0].no_wrap = True
    return table


def weakness(epsilon: float, delta: float) -> str:
    """A sentence on a claim that promises next to nothing to somebody whose record was among the data, else ""."""
    if delta > LARGEST_DELTA:
        return (
            f"delta {delta:g} is the probability with which a record may be given away altogether: it should be well "
            "below one over the number of records"
        )
    if epsilon > LARGEST_EPSILON:
        return (
            f"epsilon {epsilon:g} lets the odds that a record was among the data change by a factor of e^{epsilon:g}, "
            "which is hardly a promise"
        )
    return ""


def rounded_up(value: float) -> str:
    """Six significant digits, never below the value."""
    return f"{float(decimal.Context(prec=6, rounding=decimal.ROUND_CEILING).create_decimal(value)):.6g}"
