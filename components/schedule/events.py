"""What happens to a schedule during a run, and the schedule that results.

Three things are decided while a run goes on: a cosine restarts early, a plateau reduces the rate, a rollback scales
it down. Each is an event with the first step that it holds for. The rate stays a pure function of (config, step,
events): each event ends one curve and begins the next, each of them in closed form.
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

from .curve import Annealing, CosineSchedule, PlateauSchedule

EventKind = Literal["restart", "reduce", "rollback"]


@dataclass(frozen=True, slots=True)
class ScheduleEvent:
    """A change of the schedule from update number `step` on.

    `restart`: the next cosine cycle begins. `reduce`: the rate of kind plateau is multiplied by `factor`.
    `rollback`: the rate of any kind is, and only `clip.floor` bounds it.
    """

    step: int
    kind: EventKind
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.step < 0 or not 0 < self.factor <= 1:
            raise ValueError(f"step ≥ 0 and 0 < factor ≤ 1: they are {self.step} and {self.factor}")
        if self.kind == "restart" and self.factor != 1:
            raise ValueError(f"factor = {self.factor}: a restart has none")

    def to_json(self) -> dict[str, Any]:
        """The event as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The event that `to_json` gave."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class EventfulSchedule:
    """A schedule and the events of its run; made by `with_events`."""

    base: Annealing
    events: tuple[ScheduleEvent, ...]
    _begins: tuple[int, ...]
    _curves: tuple[Annealing, ...]
    _factors: tuple[float, ...]

    @property
    def total_steps(self) -> int:
        """Updates of the run."""
        return self.base.total_steps

    def at(self, step: int) -> Annealing:
        """The curve that holds at `step`, before rollbacks."""
        return self._curves[bisect_right(self._begins, step)]

    def lr(self, step: int) -> float:
        """The learning rate of update number `step`.

        Raises:
            ValueError: when `step` is negative.
        """
        number = bisect_right(self._begins, step)
        return max(self._curves[number].lr(step) * self._factors[number], self.base.floor)


def with_events(schedule: Annealing, events: Iterable[ScheduleEvent]) -> Annealing | EventfulSchedule:
    """The schedule as `events` have changed it, whatever order they come in; itself where there are none.

    Raises:
        ValueError: when a restart or a reduction does not fit the schedule, or is in its warmup.
    """
    ordered = tuple(sorted(events, key=lambda event: event.step))
    curves, factors = [schedule], [1.0]
    for event in ordered:
        rolled_back = event.kind == "rollback"
        curves.append(curves[-1] if rolled_back else _after(curves[-1], event))
        factors.append(factors[-1] * event.factor if rolled_back else factors[-1])
    if not ordered:
        return schedule
    begins = tuple(event.step for event in ordered)
    return EventfulSchedule(schedule, ordered, begins, tuple(curves), tuple(factors))


@dataclass(frozen=True, slots=True)
class _RestartedCosine(CosineSchedule):
    """A cosine that restarts have brought forward by the `skipped` steps that were left of the cycles they ended."""

    skipped: int = 0

    def cycle(self, step: int) -> tuple[int, int, int]:
        return CosineSchedule.cycle(self, step + self.skipped)


def _after(curve: Annealing, event: ScheduleEvent) -> Annealing:
    """The curve that follows `curve` from a restart or a reduction on."""
    if event.step <= curve.warmup_steps:
        raise ValueError(f"{event.kind} at step {event.step}: in warmup → from step {curve.warmup_steps + 1} on")
    if event.kind == "reduce" and isinstance(curve, PlateauSchedule):
        return dataclasses.replace(curve, reduction=curve.reduction * event.factor)
    if event.kind == "restart" and isinstance(curve, CosineSchedule) and curve.cycle_steps is not None:
        return _restarted(curve, event.step)
    raise ValueError(
        f"{event.kind} at step {event.step}: a restart needs a cosine with cycle_steps, a reduction kind plateau;"
        f" this is a {type(curve).__name__}"
    )


def _restarted(curve: CosineSchedule, step: int) -> CosineSchedule:
    """The cycle of the update before `step` ends with it; where it does so anyway, nothing changes."""
    _, position, length = curve.cycle(step - 1)
    fields = {field.name: getattr(curve, field.name) for field in dataclasses.fields(curve)}
    return _RestartedCosine(**fields | {"skipped": fields.get("skipped", 0) + length - position - 1})
