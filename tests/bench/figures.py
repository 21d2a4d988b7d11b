"""Measured figures beside their targets: shown as a table, kept as JSON."""

import json
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]


class Figure(NamedTuple):
    """One measured figure beside its target."""

    name: str
    value: float
    unit: str
    target: str
    met: bool
    spread: tuple[float, float] | None = None
    """The quartiles of what `value` is the median of."""

    def __str__(self) -> str:
        between = "" if self.spread is None else "[{:.3g}, {:.3g}] ".format(*self.spread)
        return f"{self.value:.4g} {between}{self.unit}"


def report(figures: list[Figure], name: str) -> int:
    """Show figures and keep them as `.bench/<name>.json`; returns the exit code, 1 when a target is missed."""
    table = Table("figure", "measured", "target", "met")
    for figure in figures:
        table.add_row(figure.name, str(figure), figure.target, "yes" if figure.met else "NO")
    Console().print(table)
    kept = ROOT / ".bench" / f"{name}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps([figure._asdict() for figure in figures], indent=2) + "\n")
    return 0 if all(figure.met for figure in figures) else 1
