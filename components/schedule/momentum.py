"""The momentum beside the rate, in closed form: SGD's `momentum`, AdamW's first beta; a pure function of the step."""

from dataclasses import dataclass
from typing import Protocol

from .curve import Annealing
from .events import EventfulSchedule


class MomentumSchedule(Protocol):
    """The momentum over a run."""

    def momentum(self, step: int) -> float:
        """The momentum of update number `step` (from 0)."""
        ...


@dataclass(frozen=True, slots=True)
class MomentumWarmup:
    """A straight line from `low` at step 0 to `high` at step `warmup_steps`, and `high` from then on."""

    low: float
    high: float
    warmup_steps: int

    def __post_init__(self) -> None:
        _refuse_disorder(self.low, self.high)

    def momentum(self, step: int) -> float:
        """The momentum of update number `step`."""
        if step >= self.warmup_steps:
            return self.high
        return self.low + (self.high - self.low) * (step / self.warmup_steps)


@dataclass(frozen=True, slots=True)
class MomentumCycle:
    """Against the rate (arXiv:1708.07120, section 4.3): `low` where it is `lr0`, `high` where it is lowest.

    The lowest rate is `start_lr` before the end of warmup and `lr_min` after it; between them the momentum follows
    the rate, floor and ceiling included. It is torch's `OneCycleLR(cycle_momentum=True)`, for every kind.
    """

    schedule: Annealing | EventfulSchedule
    low: float
    high: float

    def __post_init__(self) -> None:
        _refuse_disorder(self.low, self.high)

    def momentum(self, step: int) -> float:
        """The momentum of update number `step`."""
        schedule = self.schedule.at(step)
        lowest = schedule.start_lr if step < schedule.warmup_steps else schedule.lr_min
        span = schedule.lr0 - lowest
        height = (schedule.lr(step) - lowest) / span if span else 1.0
        return self.high - (self.high - self.low) * min(max(height, 0.0), 1.0)


def _refuse_disorder(low: float, high: float) -> None:
    if not 0 <= low <= high < 1:
        raise ValueError(f"0 ≤ low ≤ high < 1: they are {low} and {high}")
