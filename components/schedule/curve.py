"""The curves in closed form: the learning rate of update number `step`, from the config and the step alone.

No curve has history, so a resumed run is the same run. Conventions: steps count from 0; warmup of W steps is
linear with `lr(W) = lr0`; what follows runs over the T - W steps that remain; from step T on the rate stays at
`lr_min`. Floor and ceiling are applied last.

Every rate is right to 12 digits, however many steps the run has: the cosine is evaluated as `sin²(π(n-p)/2n)`, the
half-angle form of `½(1 + cos(πp/n))`, and two rates are mixed from the lower one up, so that nothing cancels.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import UserError
from .config import BatchScaling, ScheduleConfig


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
class _Annealing(ABC):
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
        if step < 0:
            raise ValueError(f"step {step} is negative; steps count from 0")
        if step >= self.total_steps:
            rate = self.lr_min
        elif step >= self.warmup_steps:
            rate = self._annealed(step)
        elif self.start_lr <= self.lr0:
            rate = _mix(self.start_lr, self.lr0, step / self.warmup_steps)
        else:
            rate = _mix(self.lr0, self.start_lr, (self.warmup_steps - step) / self.warmup_steps)
        return min(max(rate, self.floor), self.ceiling)

    @abstractmethod
    def _annealed(self, step: int) -> float:
        """The rate from the end of warmup to the end of the run."""


def _mix(low: float, high: float, fraction: float) -> float:
    """`low` at 0, `high` at 1, both exactly; for `low ≤ high` nothing cancels."""
    return high if fraction == 1 else low + (high - low) * fraction


@dataclass(frozen=True, slots=True)
class CosineSchedule(_Annealing):
    """Cosine annealing with warmup, warm restarts and clipping (arXiv:1608.03983, eq. 5).

    `LR(p) = lr_min + ½(peak - lr_min)(1 + cos(πp/n))` over a cycle of n steps. Without `cycle_steps` there is
    one cycle, as long as what remains after warmup; the last cycle ends with the run, wherever it is.
    """

    cycle_steps: int | None = None
    cycle_mult: int = 1
    scale: float = 1.0
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        _Annealing.__post_init__(self)  # a class with slots cannot say super() here
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
        peak = _mix(self.lr_min, self.lr0, self.scale**index)
        if index > 0 and self.ramp_steps:
            if position < self.ramp_steps:
                return _mix(self.lr_min, peak, position / self.ramp_steps)
            position -= self.ramp_steps
            length -= self.ramp_steps
        return _mix(self.lr_min, peak, math.sin(math.pi * (length - position) / (2 * length)) ** 2)


@dataclass(frozen=True, slots=True)
class LinearSchedule(_Annealing):
    """Warmup, then a straight line from `lr0` at step W to `lr_min` at step T; `lr_min = lr0` is constant."""

    def _annealed(self, step: int) -> float:
        remaining = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        return _mix(self.lr_min, self.lr0, remaining)


IMPLEMENTED_KINDS = ("cosine", "cosine_restarts", "linear", "constant")


def peak_lr(config: ScheduleConfig, batch_size: int) -> float:
    """The peak rate for a global batch of `batch_size` samples, after `scale_with_batch`."""
    scaling = config.scale_with_batch
    return config.lr0 if scaling is None else config.lr0 * batch_factor(scaling, batch_size)


def batch_factor(scaling: BatchScaling, batch_size: int) -> float:
    """The factor on `lr0`: linear (arXiv:1706.02677) or square root (arXiv:1404.5997)."""
    ratio = batch_size / scaling.base_batch_size
    return ratio if scaling.rule == "linear" else math.sqrt(ratio)


def build_schedule(config: ScheduleConfig, *, total_steps: int, batch_size: int) -> Schedule:
    """The schedule of a run of `total_steps` updates with a global batch of `batch_size` samples.

    Raises:
        UserError: for a kind that is in the schema and has no curve yet, and for lengths and rates that do not fit
            once the run's length and batch are known.
    """
    if config.kind not in IMPLEMENTED_KINDS:
        raise UserError(
            f"schedule.kind = {config.kind}: not available in this version → one of {', '.join(IMPLEMENTED_KINDS)}"
        )
    lr0 = peak_lr(config, batch_size)
    shared: dict[str, Any] = {
        "lr0": lr0,
        "total_steps": total_steps,
        "lr_min": lr0 if config.kind == "constant" else config.lr_min,
        "warmup_steps": config.warmup.steps,
        "start_lr": config.warmup.start_lr,
        "floor": config.clip.floor,
        "ceiling": math.inf if config.clip.ceiling is None else config.clip.ceiling,
    }
    try:
        if config.kind in ("linear", "constant"):
            return LinearSchedule(**shared)
        if config.restarts is None:
            return CosineSchedule(**shared)
        return CosineSchedule(**shared, **config.restarts.model_dump(exclude={"on_plateau"}))
    except ValueError as error:
        raise UserError(f"schedule: {error}") from error
