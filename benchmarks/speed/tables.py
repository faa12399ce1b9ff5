"""What a benchmark found: rows with the least, middle and largest figure, the target, and whether it was met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the median has to reach: `at_least` or `at_most`."""

    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a target is a least or a largest figure")

    def __str__(self) -> str:
        return f"≥ {self.at_least:,.3g}" if self.at_least is not None else f"≤ {self.at_most:,.4g}"

    def verdict(self, figure: float) -> str:
        """PASS, or by how much of the target the figure misses it; of NaN, that it was not measured."""
        if math.isnan(figure):
            return "not measured"
        miss = 1 - figure / self.at_least if self.at_least is not None else figure / (self.at_most or 1.0) - 1
        if miss <= 0:
            return "PASS"
        return f"misses by {100 * miss:.0f} %" if miss >= 0.01 else "misses by less than 1 %"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure over the repeats. `unit` is part of the name: "images/s", "MiB", "ratio"."""

    name: str
    unit: str
    figures: Sequence[float]
    target: Target | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    def to_dict(self) -> dict[str, Any]:
        verdict = None if self.target is None else self.target.verdict(self.median)
        return {
            "name": self.name,
            "unit": self.unit,
            "figures": list(self.figures),
            "target": None if self.target is None else str(self.target),
            "verdict": verdict,
        }


@dataclass(kw_only=True)
class Part:
    """One part of the benchmark: a table, and sentences below it (what was not measured, and why)."""

    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, unit: str, figures: Sequence[float] | float, target: Target | None = None) -> None:
        found = [figures] if isinstance(figures, int | float) else list(figures)
        self.rows.append(Row(name=name, unit=unit, figures=found, target=target))

    def table(self, caption: str) -> Table:
        table = Table(title=self.title, caption="\n".join([caption, *self.notes]), caption_justify="left")
        table.add_column("")
        table.add_column("unit")
        for heading in ("min", "median", "max", "target"):
            table.add_column(heading, justify="right")
        table.add_column("verdict")
        for row in self.rows:
            spread = [_short(figure) for figure in (min(row.figures), row.median, max(row.figures))]
            if len(row.figures) == 1:
                spread[0] = spread[2] = ""
            target = "" if row.target is None else str(row.target)
            table.add_row(row.name, row.unit, *spread, target, row.to_dict()["verdict"] or "")
        return table

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, "rows": [row.to_dict() for row in self.rows], "notes": self.notes}


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 1_000 else f"{figure:,.3g}"
