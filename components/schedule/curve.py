"""The curves in closed form: the learning rate of update number `step`, from the fields and the step alone.

No curve has history, so a resumed run is the same run. Conventions: steps count from 0; warmup of W steps goes from
`start_lr` to `lr(W) = lr0`, in a straight line but for one-cycle; what follows runs over the T - W steps that remain;
from step T on the rate stays at `lr_min`. Floor and ceiling are applied last.

Every rate is right to 12 digits, however many steps the run has: the cosine is evaluated as `sin²(π(n-p)/2n)`, the
half-angle form of `½(1 + cos(πp/n))`, and two rates are mixed from the lower one up, so that nothing cancels.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """A learning-rate schedule: a pure function of the step."""

    @property
    def total_steps(self) -> int:
        """Updates of the run."""
        ...

    def lr(self, step: int) -> float:
        """The learning rate of update number `step` (from 0)."""
        ...


@dataclass(frozen=True, slots=True)
class Annealing(ABC):
    """Warmup before, the end after, and the bounds around a curve that falls from `lr0` to `lr_min`."""

    lr0: float
    total_steps: int
    lr_min: float = 0.0
    warmup_steps: int = 0
    start_lr: float = 0.0
    floor: float = 0.0
    ceiling: float = math.inf

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps = {self.total_steps}: a run has at least one step")
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} is not shorter than the run: total_steps is {self.total_steps}"
                f" → 0 to {self.total_steps - 1}"
            )
        if not (0 <= self.lr_min <= self.lr0 < math.inf and 0 <= self.start_lr < math.inf):
            raise ValueError(
                f"rates are finite and 0 ≤ lr_min ≤ lr0: lr0 = {self.lr0}, lr_min = {self.lr_min},"
                f" start_lr = {self.start_lr}"
            )
        if not self.floor <= self.ceiling:
            raise ValueError(f"floor = {self.floor} is above ceiling = {self.ceiling}")

    def lr(self, step: int) -> float:
        """The learning rate of update number `step`.

        Raises:
            ValueError: when `step` is negative.
        """
        if self.warmup_steps <= step < self.total_steps:
            rate = self._annealed(step)
        elif step >= self.total_steps:
            rate = self.lr_min
        elif step >= 0:
            rate = self._warming(step)
        else:
            raise ValueError(f"step {step} is negative; steps count from 0")
        if self.floor <= rate <= self.ceiling:  # asked first: min() and max() take a quarter of the whole step
            return rate
        return min(max(rate, self.floor), self.ceiling)

    def at(self, step: int) -> "Annealing":
        """The curve that holds at `step`: this one, as long as nothing happens (see `events`)."""
        return self

    @abstractmethod
    def _annealed(self, step: int) -> float:
        """The rate from the end of warmup to the end of the run."""

    def _warming(self, step: int) -> float:
        if self.start_lr <= self.lr0:
            return _mix(self.start_lr, self.lr0, self._climbed(step, self.warmup_steps))
        return _mix(self.lr0, self.start_lr, self._climbed(self.warmup_steps - step, self.warmup_steps))

    @staticmethod
    def _climbed(position: int, length: int) -> float:
        """The share of a climb that is done at `position`, 0 at 0 and 1 at `length`."""
        return position / length


def _mix(low: float, high: float, fraction: float) -> float:
    """`low` at 0, `high` at 1, both exactly; for `low ≤ high` nothing cancels."""
    return high if fraction == 1 else low + (high - low) * fraction


def _half_cosine(position: int, length: int) -> float:
    """`½(1 - cos(πp/n))`: 0 at 0, 1 at `length`, level at both ends."""
    root = math.sin(math.pi * position / (2 * length))
    return root * root


@dataclass(frozen=True, slots=True)
class CosineSchedule(Annealing):
    """Cosine annealing with warmup, warm restarts and clipping (arXiv:1608.03983, eq. 5).

    `LR(p) = lr_min + ½(peak - lr_min)(1 + cos(πp/n))` over a cycle of n steps. Without `cycle_steps` there is
    one cycle, as long as what remains after warmup; the last cycle ends with the run, wherever it is.
    """

    cycle_steps: int | None = None
    cycle_mult: int = 1
    scale: float = 1.0
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        Annealing.__post_init__(self)  # a class with slots cannot say super() here
        if self.cycle_steps is not None and self.cycle_steps < 1:
            raise ValueError(f"cycle_steps = {self.cycle_steps}: a cycle has at least one step")
        if self.cycle_mult < 1 or not 0 < self.scale <= 1:
            raise ValueError(f"cycle_mult ≥ 1 and 0 < scale ≤ 1: they are {self.cycle_mult} and {self.scale}")
        if not 0 <= self.ramp_steps < (self.cycle_steps or self.total_steps):
            raise ValueError(f"ramp_steps = {self.ramp_steps} does not fit into a cycle")

    def cycle(self, step: int) -> tuple[int, int, int]:
        """The cycle that `step` falls in, the position in it, and its length; integer arithmetic only.

        Only for steps after warmup and before the end.
        """
        position = step - self.warmup_steps
        length = self.cycle_steps or self.total_steps - self.warmup_steps
        if self.cycle_mult == 1:
            return position // length, position % length, length
        index = 0
        while position >= length:
            position -= length
            length *= self.cycle_mult
            index += 1
        return index, position, length

    def _annealed(self, step: int) -> float:
        index, position, length = self.cycle(step)
        if index == 0:
            return _mix(self.lr_min, self.lr0, _half_cosine(length - position, length))
        peak = _mix(self.lr_min, self.lr0, self.scale**index)
        if position < self.ramp_steps:
            return _mix(self.lr_min, peak, position / self.ramp_steps)
        length -= self.ramp_steps
        return _mix(self.lr_min, peak, _half_cosine(length - (position - self.ramp_steps), length))


@dataclass(frozen=True, slots=True)
class OneCycleSchedule(Annealing):
    """One cycle (arXiv:1708.07120): a half cosine up from `start_lr` to `lr0` over warmup, one down to `lr_min`.

    It is torch's `OneCycleLR` with `anneal_strategy="cos"`, whose T + 1 steps count the last as its trough:
    `total_steps = T + 1`, `pct_start = (W + 1)/(T + 1)`, `max_lr = lr0`. With a straight climb it would be
    `CosineSchedule`.
    """

    _climbed = staticmethod(_half_cosine)

    def _annealed(self, step: int) -> float:
        remaining = _half_cosine(self.total_steps - step, self.total_steps - self.warmup_steps)
        return _mix(self.lr_min, self.lr0, remaining)


@dataclass(frozen=True, slots=True)
class LinearSchedule(Annealing):
    """Warmup, then a straight line from `lr0` at step W to `lr_min` at step T; `lr_min = lr0` is constant."""

    def _annealed(self, step: int) -> float:
        remaining = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        return _mix(self.lr_min, self.lr0, remaining)


@dataclass(frozen=True, slots=True)
class ExponentialSchedule(Annealing):
    """Warmup, then the same factor every step, from `lr0` at step W to `lr_min` at step T; `lr_min` is above 0.

    `LR = lr0^(1-p) · lr_min^p` at the share p of the way: a straight line on a logarithmic axis.
    """

    def __post_init__(self) -> None:
        Annealing.__post_init__(self)
        if self.lr_min == 0:
            raise ValueError("lr_min = 0: an exponential never reaches it → a rate above 0")

    def _annealed(self, step: int) -> float:
        length = self.total_steps - self.warmup_steps
        remaining, done = (self.total_steps - step) / length, (step - self.warmup_steps) / length
        rate: float = self.lr0**remaining * self.lr_min**done
        return min(max(rate, self.lr_min), self.lr0)  # rounding would leave the two by a unit in the last place


@dataclass(frozen=True, slots=True)
class StepSchedule(Annealing):
    """Warmup, then `lr0` times `factor` after every `every_steps` steps, and never below `lr_min`."""

    every_steps: int = 1
    factor: float = 0.1

    def __post_init__(self) -> None:
        Annealing.__post_init__(self)
        if self.every_steps < 1 or not 0 < self.factor < 1:
            raise ValueError(f"every_steps ≥ 1 and 0 < factor < 1: they are {self.every_steps} and {self.factor}")

    def _annealed(self, step: int) -> float:
        drops = (step - self.warmup_steps) // self.every_steps
        return max(self.lr0 * self.factor**drops, self.lr_min)


@dataclass(frozen=True, slots=True)
class PlateauSchedule(Annealing):
    """Warmup, then `lr0` until the run reduces it (see `events`), and never below `lr_min`.

    `reduction` is the product of the reductions until now.
    """

    reduction: float = 1.0

    def _annealed(self, step: int) -> float:
        return max(self.lr0 * self.reduction, self.lr_min)
