"""What is written on the pictures: events, values that are not finite, legends, last values."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .drawing import COLOURS
from .series import Floats, Group, Mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLUSTER_FRACTION = 0.035
"""Marks closer than this part of the axis share one label."""
MAX_LINES = 20
"""Lines of one such cluster."""
GROUPS: dict[Group, tuple[str, tuple[float, ...]]] = {
    "trouble": ("bad", (2, 2)),
    "new rates": ("series3", (5, 2)),
    "run": ("muted", (1, 2)),
}
"""Colour and dashes of each group of events, the worst first."""


def draw_non_finite(axes: "Axes", steps: Floats) -> None:
    """Crosses on the lower edge where there is no value to draw."""
    if not len(steps):
        return
    shown = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 200)).round().astype(int))]
    axes.plot(
        shown, np.full(len(shown), 0.03), transform=axes.get_xaxis_transform(), color=COLOURS["bad"],
        linestyle="none", marker="x", markersize=5, markeredgewidth=1.4, label="not finite", clip_on=False,
    )  # fmt: skip


def draw_marks(axes: "Axes", marks: list[Mark]) -> None:
    """A vertical line an event, in the style of its group, with its number on top; close ones share a label."""
    low, high = axes.get_xlim()
    clusters: list[list[Mark]] = []
    for mark in marks:
        if clusters and mark.step - clusters[-1][0].step <= CLUSTER_FRACTION * (high - low):
            clusters[-1].append(mark)
        else:
            clusters.append([mark])
    for cluster in clusters:
        for step, group in {mark.step: mark.group for mark in reversed(cluster[:MAX_LINES])}.items():
            axes.axvline(step, zorder=1.5, **_line(group))
        worst = min((mark.group for mark in cluster), key=list(GROUPS).index)
        colour = COLOURS[GROUPS[worst][0]]
        numbers = f"{cluster[0].number}" if len(cluster) == 1 else f"{cluster[0].number}–{cluster[-1].number}"
        axes.annotate(
            numbers, (cluster[0].step, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", color=colour, fontsize=9, fontweight="bold",
        )  # fmt: skip

    for group in GROUPS:
        if any(mark.group == group for mark in marks):
            axes.plot([], [], label=group, **_line(group))


def legend(axes: "Axes") -> None:
    """In rows of its own above the marks, where no curve can run into it; none where there is nothing to tell."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.11), ncols=5, borderaxespad=0, borderpad=0)


def _line(group: Group) -> dict[str, Any]:
    colour, dashes = GROUPS[group]
    return {"color": COLOURS[colour], "linewidth": 1.0, "linestyle": (0, dashes)}


def label_last(axes: "Axes", steps: Floats, values: Floats) -> None:
    """The last value in figures, at its point."""
    if len(values) and math.isfinite(values[-1]):
        axes.annotate(
            f"{values[-1]:.4g}", (steps[-1], values[-1]), xytext=(0, 5), textcoords="offset points",
            ha="right", va="bottom", fontsize=9, fontweight="bold",
        )  # fmt: skip
