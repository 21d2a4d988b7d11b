"""Figures beside their peers' and their targets: shown as a table, kept as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple, Self

from rich.console import Console
from rich.table import Table

WIDTH = 128
"""Characters; a narrower terminal would fold every cell."""


class Measured(NamedTuple):
    """The median of some samples, and their quartiles."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
        return cls(median(samples), low, high, len(samples))

    def __str__(self) -> str:
        spread = f" [{self.low:.3g}, {self.high:.3g}]" if self.samples > 1 else ""
        return f"{self.median:.3g}{spread}"


class Comparison(NamedTuple):
    """One figure of ours."""

    name: str
    unit: str
    ours: Measured
    peers: dict[str, Measured]
    ratio: Measured | None
    """Of ours and a peer's in each round; the target is one for it where there is one, else for our figure."""
    target: str
    met: bool | None
    """None where there is no target."""

    @classmethod
    def of(
        cls,
        name: str,
        unit: str,
        ours: Sequence[float],
        *,
        peers: Mapping[str, Sequence[float]] | None = None,
        ratios: Sequence[float] | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Self:
        """A figure by its samples."""
        mine, ratio = Measured.of(ours), Measured.of(ratios) if ratios else None
        judged, target, met = (ratio or mine).median, "shown", None
        times = " ×" if ratio else f" {unit}"
        if at_least is not None:
            target, met = f"≥ {at_least:.4g}{times}", judged >= at_least
        if at_most is not None:
            target, met = f"≤ {at_most:.4g}{times}", judged <= at_most
        others = {peer: Measured.of(samples) for peer, samples in (peers or {}).items()}
        return cls(name, unit, mine, others, ratio, target, met)

    @property
    def verdict(self) -> str:
        """In words."""
        missed = "above target" if self.target.startswith("≤") else "below target"
        return {None: "", True: "yes", False: missed}[self.met]


def report(comparisons: Sequence[Comparison], kept: Path) -> None:
    """Show comparisons, and keep them as JSON."""
    table = Table("figure", "ours", "peers", "ratio", "target", "met")
    for one in comparisons:
        peers = "\n".join(f"{name} {measured}" for name, measured in one.peers.items())
        ratio = str(one.ratio) if one.ratio else ""
        table.add_row(one.name, f"{one.ours} {one.unit}", peers, ratio, one.target, one.verdict)
    Console(width=max(Console().width, WIDTH)).print(table)
    judged = [one for one in comparisons if one.met is not None]
    missed = [f"{one.name}: {one.verdict}" for one in judged if not one.met]
    print("\n".join([f"{len(judged) - len(missed)} of {len(judged)} targets met", *missed]))
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps([_document(one) for one in comparisons], indent=2) + "\n")


def _document(one: Comparison) -> dict[str, object]:
    return {
        **one._asdict(),
        "ours": one.ours._asdict(),
        "peers": {name: measured._asdict() for name, measured in one.peers.items()},
        "ratio": one.ratio._asdict() if one.ratio else None,
    }
