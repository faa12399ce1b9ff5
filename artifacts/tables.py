"""How the auditor's commands show tables and numbers."""

from __future__ import annotations

import decimal

from rich.table import Table
from rich.text import Text


def plain_table(title: str | Text, *columns: str) -> Table:
    """A table that folds what does not fit; a title from elsewhere has to be a `Text`, whose brackets mean nothing."""
    table = Table(*columns, title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for column in table.columns:
        column.overflow = "fold"  # nothing of a claim is cut off
    table.columns[0].no_wrap = True
    return table


def rounded_up(value: float) -> str:
    """Six significant digits, never below the value."""
    return f"{float(decimal.Context(prec=6, rounding=decimal.ROUND_CEILING).create_decimal(value)):.6g}"
