"""One function a picture; each gives an inline SVG. Matplotlib is imported when something is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..schedule import Schedule
from ..slo.standing import Sli, Standing
from .annotations import draw_marks, draw_non_finite, label_last, legend
from .drawing import COLOURS, NUM_SERIES, new_figure, picture, step_axis, style, value_axis
from .series import Floats, Mark, by_rank, follows, non_finite_steps, planned, smoothed, thin

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 1200
"""Points of one line; more than a wide screen has pixels for in half a page."""
SAMPLED_STEPS = 20_000
"""Steps at which a schedule longer than that is evaluated for its picture."""
MAX_METRICS = 4
LOG_SPAN = 30.0
"""Values that span more than this factor stand on a logarithmic axis."""
HEIGHT = 2.5


def planned_rates(schedule: Schedule) -> tuple[Floats, Floats]:
    """Steps and rates of a whole schedule at `SAMPLED_STEPS` steps at most, its first and last among them."""
    count = min(schedule.total_steps, SAMPLED_STEPS)
    steps = np.unique(np.linspace(0, schedule.total_steps - 1, count).round())
    return steps, np.array([schedule.lr(int(step)) for step in steps])


def learning_rate(trace: "pd.DataFrame | None", schedule: Schedule | None, marks: list[Mark]) -> str:
    """The planned rate, thick and pale, under the applied one, thin and dark; red is what is off plan.

    Where restarts, reductions or a rollback changed the schedule, the plan is the trace's, and a thin line shows what
    was planned at first.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        if trace is None or (schedule is not None and follows(trace, schedule)):
            if schedule is not None:
                _planned(axes, *planned_rates(schedule))
        else:
            _planned(axes, *planned(trace))
            if schedule is not None:
                at_first = thin(*planned_rates(schedule), POINTS)
                axes.plot(*at_first, color=COLOURS["muted"], linewidth=0.9, linestyle=":", label="planned at first")
        if trace is not None:
            first = trace[trace["rank"] == trace["rank"].min()]
            steps = first["step"].to_numpy(dtype=np.float64)
            applied = thin(steps, first["lr"].to_numpy(dtype=np.float64), POINTS)
            axes.plot(*applied, color=COLOURS["applied"], linewidth=1.2, label="applied")
            _off_plan(axes, trace)
        axes.set_ylim(bottom=0)
        step_axis(axes)
        value_axis(axes)
        draw_marks(axes, marks)
        legend(axes)

    return picture("lr", "Learning rate, planned and applied, over the updates", HEIGHT, paint)


def training_loss(trace: "pd.DataFrame", marks: list[Mark]) -> str:
    """Each rank's loss, raw and pale with its median on top; many ranks as one band. Gaps are not finite."""

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        ranks = by_rank(trace, "loss")
        if len(ranks) <= NUM_SERIES:
            for index, (rank, (steps, values)) in enumerate(sorted(ranks.items())):
                colour = COLOURS[f"series{index}"]
                axes.plot(*thin(steps, values, POINTS // 2), color=colour, linewidth=0.7, alpha=0.3)
                smooth, _ = smoothed(values)
                axes.plot(*thin(steps, smooth, POINTS // 2), color=colour, linewidth=1.5, label=f"rank {rank}")
        else:
            _ranks_as_band(axes, trace, len(ranks))
        step_axis(axes)
        value_axis(axes, logarithmic=_spans_decades(trace["loss"].to_numpy(dtype=np.float64)))
        draw_non_finite(axes, non_finite_steps(trace))
        draw_marks(axes, marks)
        legend(axes)

    return picture("loss", "Training loss of each rank over the updates", HEIGHT, paint)


def validation_metrics(validations: "pd.DataFrame", metric: str = "", target: float | None = None) -> str:
    """One small panel a metric; the target that the test split is held to is drawn where it has one."""
    names = sorted(validations["metric"].unique(), key=lambda name: (name != metric, name))[:MAX_METRICS]

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
            rows = validations[validations["metric"] == name].sort_values("step")
            steps, values = rows["step"].to_numpy(dtype=np.float64), rows["value"].to_numpy(dtype=np.float64)
            marker = {"marker": "o", "markersize": 3.5} if len(rows) <= 60 else {}  # noqa: PLR2004 - dots then touch
            axes.plot(*thin(steps, values, POINTS // 2), color=COLOURS[f"series{index}"], linewidth=1.5, **marker)
            draw_non_finite(axes, steps[~np.isfinite(values)])
            if name == metric and target is not None:
                axes.axhline(target, color=COLOURS["good"], linewidth=1.1, linestyle=(0, (5, 3)))
                axes.annotate(
                    f"target {target:g}", (1, target), xycoords=("axes fraction", "data"), xytext=(0, -3),
                    textcoords="offset points", ha="right", va="top", color=COLOURS["good"], fontsize=9,
                )  # fmt: skip
            label_last(axes, steps, values)
            axes.margins(y=0.14)
            value_axis(axes)
            axes.set_title(name, loc="left", fontsize=9.5, color=COLOURS["ink"])
            step_axis(axes, "update" if index == len(names) - 1 else "")

    return picture("validation", f"Validation: {', '.join(names)}", max(HEIGHT, 0.4 + 1.35 * len(names)), paint)


def gradient_norm(trace: "pd.DataFrame", clip: float | None, marks: list[Mark]) -> str:
    """The global gradient norm before clipping, with the threshold that it is clipped at, and the events."""

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        ranks = by_rank(trace, "grad_norm")
        steps, values = ranks[min(ranks)]
        axes.plot(*thin(steps, values, POINTS), color=COLOURS["series0"], linewidth=0.7, alpha=0.35)
        smooth, _ = smoothed(values)
        axes.plot(*thin(steps, smooth, POINTS // 2), color=COLOURS["series0"], linewidth=1.5)
        step_axis(axes)
        logarithmic = _spans_decades(values)
        if clip is not None:
            axes.axhline(clip, color=COLOURS["ink"], linewidth=1.1, linestyle=(0, (5, 3)))
            axes.annotate(
                f"clipped above {clip:g}", (1, clip), xycoords=("axes fraction", "data"), xytext=(0, 3),
                textcoords="offset points", ha="right", va="bottom", fontsize=9,
            )  # fmt: skip
        if not logarithmic:
            axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.05)
        value_axis(axes, logarithmic=logarithmic)
        draw_non_finite(axes, non_finite_steps(trace))
        draw_marks(axes, marks)
        legend(axes)

    return picture("gradient", "Gradient norm over the updates", HEIGHT, paint)


def slo_intervals(standing: Standing) -> str:
    """Each SLI between its one-sided 95 % bounds, against its target; the good side is shaded."""
    rates = [sli for sli in standing.slis if sli.high is not None]
    costs = [sli for sli in standing.slis if sli.high is None]
    rows = [len(rates)] * bool(rates) + [1] * len(costs)

    def paint(figure: "Figure") -> None:
        panels = list(figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0])
        if rates:
            _rate_panel(panels.pop(0), rates)
        for axes, sli in zip(panels, costs, strict=True):
            _cost_panel(axes, sli)

    return picture("slo", "The SLO: each indicator's interval against its target", 0.6 + 0.62 * sum(rows), paint)


def plot_schedule(schedule: Schedule, path: Path) -> None:
    """Write a picture of a schedule as SVG, PNG or PDF; the file's suffix decides.

    Raises:
        UserError: for another suffix, or a path that cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png", ".pdf"):
        cause = f"the suffix {suffix} says no known picture" if suffix else "there is no suffix"
        raise UserError(f"{path}: {cause} → FILE.svg, FILE.png or FILE.pdf")
    with style():
        figure = new_figure(HEIGHT + 0.3)
        axes = figure.add_subplot()
        axes.plot(*planned_rates(schedule), color=COLOURS["applied"], linewidth=1.6)
        axes.set_ylim(bottom=0)
        step_axis(axes)
        value_axis(axes)
        axes.set_title("learning rate, planned", loc="left", fontsize=10)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
        try:
            figure.savefig(path, dpi=160, facecolor=COLOURS["paper"], metadata=metadata)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror} → another FILE") from error


def _planned(axes: "Axes", steps: Floats, rates: Floats) -> None:
    axes.plot(*thin(steps, rates, POINTS), color=COLOURS["planned"], linewidth=5.5, label="planned")


def _off_plan(axes: "Axes", trace: "pd.DataFrame") -> None:
    off = trace[trace["lr"] != trace["lr_planned"]].sort_values("step")
    if off.empty:
        return
    points = thin(off["step"].to_numpy(dtype=np.float64), off["lr"].to_numpy(dtype=np.float64), POINTS // 4)
    axes.plot(*points, color=COLOURS["bad"], linestyle="none", marker="o", markersize=3.2, label="off plan")


def _ranks_as_band(axes: "Axes", trace: "pd.DataFrame", num_ranks: int) -> None:
    finite = trace[np.isfinite(trace["loss"].to_numpy(dtype=np.float64))].groupby("step")["loss"]
    steps = np.array(sorted(finite.groups), dtype=np.float64)
    low, high = (thin(steps, edge.to_numpy(dtype=np.float64), POINTS // 2) for edge in (finite.min(), finite.max()))
    for edge in (low, high):
        axes.plot(*edge, color=COLOURS["series0"], linewidth=0.6, alpha=0.35)
    smooth, _ = smoothed(finite.median().to_numpy(dtype=np.float64))
    label = f"median of {num_ranks} ranks, with smallest and largest"
    axes.plot(*thin(steps, smooth, POINTS // 2), color=COLOURS["series0"], linewidth=1.5, label=label)


def _spans_decades(values: Floats) -> bool:
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() / finite.min() > LOG_SPAN)


def _rate_panel(axes: "Axes", slis: list[Sli]) -> None:
    for row, sli in enumerate(reversed(slis)):
        colour = COLOURS[{"PASS": "good", "FAIL": "bad"}.get(sli.verdict, "muted")]
        low, high = sli.low or 0.0, 1.0 if sli.high is None else sli.high
        good = (sli.target, 1.0) if sli.name == "convergence_rate" else (0.0, min(sli.target, 1.0))
        axes.plot(good, (row, row), color=COLOURS["zone"], linewidth=15, solid_capstyle="butt")
        axes.plot((low, high), (row, row), color=colour, linewidth=3)
        if sli.total:
            axes.plot(min(sli.count / sli.total, 1.0), row, color=colour, marker="o", markersize=7)
        axes.plot((sli.target,) * 2, (row - 0.3, row + 0.3), color=COLOURS["ink"], linewidth=2)
    axes.set_yticks(range(len(slis)), [_readable(sli.name) for sli in reversed(slis)])
    axes.set_ylim(-0.6, len(slis) - 0.4)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0", "20 %", "40 %", "60 %", "80 %", "100 %"])
    axes.set_xlabel("share of the runs that are counted")
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axes.grid(visible=False)


def _cost_panel(axes: "Axes", sli: Sli) -> None:
    colour = COLOURS[{"PASS": "good", "FAIL": "bad"}.get(sli.verdict, "muted")]
    value = sli.count / sli.total if sli.total else None
    right = 1.3 * max(sli.target, value or 0.0)
    axes.plot((0, sli.target), (0, 0), color=COLOURS["zone"], linewidth=15, solid_capstyle="butt")
    axes.plot((sli.target,) * 2, (-0.3, 0.3), color=COLOURS["ink"], linewidth=2)
    if value is not None:
        axes.plot(value, 0, color=colour, marker="o", markersize=7)
    axes.set_yticks([0], ["cost"])
    axes.set_ylim(-0.6, 0.6)
    axes.set_xlim(-0.02 * right, right)
    axes.set_xlabel("GPU-hours a converged run" + ("" if sli.total else ": unbounded, none converged"))
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axes.grid(visible=False)


def _readable(name: str) -> str:
    return {
        "convergence_rate": "converged",
        "anomalous_rate": "anomalous",
        "lr_sync_errors": "LR sync errors",
    }.get(name, name.replace("_", " "))
