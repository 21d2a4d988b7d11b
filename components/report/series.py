"""The numbers behind the pictures, taken from a trace before anything is left out of it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..schedule import Schedule
from .page import RunPage

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Group = Literal["trouble", "new rates", "run"]
BAD_KINDS = (
    *("non_finite", "exploding", "sync", "off_plan", "failed", "diverged"),
    *("rolled_back", "update_skipped", "checkpoint_damaged"),
)
RATE_KINDS = ("restart", "reduce")
SMOOTHING_FRACTION = 0.02
RUN_LENGTH = 3
"""Steps are part of one stretch of trouble when they are at most this far apart."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An event on the pictures, by its number in the table of events."""

    number: int
    step: int
    kind: str
    detail: str

    @property
    def bad(self) -> bool:
        """Whether it is trouble, rather than something worth knowing."""
        return self.group == "trouble"

    @property
    def group(self) -> Group:
        """What it is to a reader: trouble, a change of the schedule, or the run's own course."""
        if any(part in self.kind for part in BAD_KINDS):
            return "trouble"
        return "new rates" if self.kind in RATE_KINDS else "run"


@dataclass(frozen=True, slots=True)
class Deviation:
    """Where the applied rate was not the planned one; the worst record stands for all."""

    num_records: int
    num_all: int
    ranks: list[int]
    first_step: int
    last_step: int
    worst_rank: int
    worst_step: int
    worst_applied: float
    worst_planned: float

    @property
    def line(self) -> str:
        """In words."""
        ranks = ", ".join(map(str, self.ranks[:8])) + (", …" if len(self.ranks) > 8 else "")  # noqa: PLR2004
        return (
            f"Off plan in {self.num_records:,} of {self.num_all:,} records"
            f" (rank{'s' * (len(self.ranks) > 1)} {ranks}, steps {self.first_step:,} to {self.last_step:,});"
            f" at worst rank {self.worst_rank} applied {self.worst_applied:.6g} instead of"
            f" {self.worst_planned:.6g} at step {self.worst_step:,}"
        )


def thin(steps: Floats, values: Floats, limit: int) -> tuple[Floats, Floats]:
    """About `limit` points of a series: of each bucket its smallest, its largest and, as a gap, a NaN.

    Args:
        steps: ascending, [points].
        values: [points]; what is not finite becomes NaN.
        limit: points to keep.

    Returns:
        Steps and values of what is kept, in order; first and last are always kept.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) <= limit:
        return steps, values
    kept = {0, len(values) - 1}
    for bucket in np.array_split(np.arange(len(values)), max(1, limit // 3)):
        part = values[bucket]
        gaps = np.isnan(part)
        if gaps.any():
            kept.add(int(bucket[gaps.argmax()]))
        if not gaps.all():
            kept |= {int(bucket[np.nanargmin(part)]), int(bucket[np.nanargmax(part)])}
    chosen = np.array(sorted(kept))
    return steps[chosen], values[chosen]


def smoothed(values: Floats) -> tuple[Floats, int]:
    """The centred rolling median, which a spike does not smear, and its window; gaps stay gaps."""
    import pandas as pd

    window = max(3, round(len(values) * SMOOTHING_FRACTION)) | 1
    finite = pd.Series(np.where(np.isfinite(values), values, np.nan))
    rolled = finite.rolling(window, center=True, min_periods=1).median()
    return rolled.where(finite.notna()).to_numpy(dtype=np.float64), window


def by_rank(trace: "pd.DataFrame", column: str) -> dict[int, tuple[Floats, Floats]]:
    """Steps and values of a column for each rank."""
    return {
        int(str(rank)): (rows["step"].to_numpy(dtype=np.float64), rows[column].to_numpy(dtype=np.float64))
        for rank, rows in trace.groupby("rank")
    }


def deviation(trace: "pd.DataFrame") -> Deviation | None:
    """Where applied and planned rate differ; None where they are equal in every record."""
    off = trace[trace["lr"] != trace["lr_planned"]]
    if off.empty:
        return None
    distance = (off["lr"] - off["lr_planned"]).abs().fillna(math.inf).to_numpy(dtype=np.float64)
    worst = off.iloc[int(distance.argmax())]
    return Deviation(
        num_records=len(off),
        num_all=len(trace),
        ranks=sorted(int(rank) for rank in off["rank"].unique()),
        first_step=int(off["step"].min()),
        last_step=int(off["step"].max()),
        worst_rank=int(worst["rank"]),
        worst_step=int(worst["step"]),
        worst_applied=float(worst["lr"]),
        worst_planned=float(worst["lr_planned"]),
    )


def planned(trace: "pd.DataFrame") -> tuple[Floats, Floats]:
    """Steps and planned rates of the trace: what the schedule was, with its events, at each step."""
    first = trace[trace["rank"] == trace["rank"].min()]
    return first["step"].to_numpy(dtype=np.float64), first["lr_planned"].to_numpy(dtype=np.float64)


def follows(trace: "pd.DataFrame", schedule: Schedule) -> bool:
    """Whether the trace's plan is the schedule's own to its end: no event changed it."""
    step, rate = (values[-1] for values in planned(trace))
    return bool(schedule.lr(int(step)) == rate)


def non_finite_steps(trace: "pd.DataFrame") -> Floats:
    """The steps at which a rank's loss or gradient norm is NaN or infinite, ascending; fp16's overflows left out."""
    finite = np.isfinite(trace[["loss", "grad_norm"]].to_numpy(dtype=np.float64))
    overflow = finite[:, 0] & ~trace["applied"].to_numpy(dtype=bool)
    return np.unique(trace["step"].to_numpy(dtype=np.float64)[~(finite.all(axis=1) | overflow)])


def marks(page: RunPage) -> list[Mark]:
    """The training's events, and each stretch of non-finite records that none of them tells of, by step."""
    events = [(event.step, event.kind, event.detail) for event in page.training.events] if page.training else []
    told = {step for step, kind, _ in events if "non_finite" in kind}
    if page.trace is not None and not page.trace.empty:
        events += [found for found in _stretches(page.trace) if not told & {found[0], found[0] + 1}]
    ordered = sorted(events, key=lambda event: event[0])
    return [Mark(number, step, kind, detail) for number, (step, kind, detail) in enumerate(ordered, 1)]


def _stretches(trace: "pd.DataFrame") -> list[tuple[int, str, str]]:
    steps = non_finite_steps(trace)
    if not len(steps):
        return []
    found = []
    for stretch in np.split(steps, np.flatnonzero(np.diff(steps) > RUN_LENGTH) + 1):
        first, last = int(stretch[0]), int(stretch[-1])
        row = trace[trace["step"] == first].iloc[0]
        until = "" if first == last else f", until step {last:,}"
        detail = f"loss {row['loss']:.4g}, gradient norm {row['grad_norm']:.4g} at lr {row['lr']:.4g}{until}"
        found.append((first, "non_finite_loss", detail))
    return found
