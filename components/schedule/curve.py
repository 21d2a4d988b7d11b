"""The curves in closed form: the learning rate of update number `step`, from the config and the step alone.

No curve has history, so a resumed run is the same run. Conventions: steps count from 0; warmup of W steps is
linear with `lr(W) = lr0`; what follows runs over the T - W steps that remain; from step T on the rate stays at
`lr_min`. The cosine is evaluated as `sin²(π(n-p)/2n)`, the half-angle form of `½(1 + cos(πp/n))`, which does
not cancel near the end of a cycle.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ..errors import UserError
from .config import BatchScaling, RestartsConfig, ScheduleConfig


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
class CosineSchedule:
    """Cosine annealing with warmup, warm restarts and clipping (arXiv:1608.03983, eq. 5).

    `LR(p) = lr_min + ½(peak - lr_min)(1 + cos(πp/n))` over a cycle of n steps. Without `cycle_steps` there is
    one cycle, as long as what remains after warmup.
    """

    lr0: float
    total_steps: int
    lr_min: float = 0.0
    warmup_steps: int = 0
    start_lr: float = 0.0
    cycle_steps: int | None = None
    cycle_mult: int = 1
    scale: float = 1.0
    ramp_steps: int = 0
    floor: float = 0.0
    ceiling: float = math.inf

    def __post_init__(self) -> None:
        if self.total_steps < 1 or not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} must be in [0, total_steps), total_steps ="
                f" {self.total_steps} at least 1"
            )

    def lr(self, step: int) -> float:
        """The learning rate of update number `step`.

        Raises:
            ValueError: when `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative; steps count from 0")
        return min(max(self._unclipped(step), self.floor), self.ceiling)

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

    def _unclipped(self, step: int) -> float:
        if step >= self.total_steps:
            return self.lr_min
        if step < self.warmup_steps:
            return self.start_lr + (self.lr0 - self.start_lr) * step / self.warmup_steps
        index, position, length = self.cycle(step)
        amplitude = (self.lr0 - self.lr_min) * self.scale**index
        if index > 0 and self.ramp_steps:
            if position < self.ramp_steps:
                return self.lr_min + amplitude * position / self.ramp_steps
            position -= self.ramp_steps
            length -= self.ramp_steps
        return self.lr_min + amplitude * math.sin(math.pi * (length - position) / (2 * length)) ** 2


@dataclass(frozen=True, slots=True)
class LinearSchedule:
    """Warmup, then a straight line from `lr0` at step W to `lr_min` at step T; `lr_min = lr0` is constant."""

    lr0: float
    total_steps: int
    lr_min: float = 0.0
    warmup_steps: int = 0
    start_lr: float = 0.0
    floor: float = 0.0
    ceiling: float = math.inf

    def lr(self, step: int) -> float:
        """The learning rate of update number `step`.

        Raises:
            ValueError: when `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative; steps count from 0")
        if step < self.warmup_steps:
            rate = self.start_lr + (self.lr0 - self.start_lr) * step / self.warmup_steps
        else:
            remaining = max(0, self.total_steps - step) / (self.total_steps - self.warmup_steps)
            rate = self.lr_min + (self.lr0 - self.lr_min) * remaining
        return min(max(rate, self.floor), self.ceiling)


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
        UserError: for a kind that is in the schema and has no curve yet.
    """
    if config.kind not in IMPLEMENTED_KINDS:
        raise UserError(
            f"schedule.kind = {config.kind}: not available in this version → one of {', '.join(IMPLEMENTED_KINDS)}"
        )
    lr0 = peak_lr(config, batch_size)
    warmup_steps, start_lr = config.warmup.steps, config.warmup.start_lr
    floor, ceiling = config.clip.floor, math.inf if config.clip.ceiling is None else config.clip.ceiling
    if config.kind in ("linear", "constant"):
        lr_min = lr0 if config.kind == "constant" else config.lr_min
        return LinearSchedule(lr0, total_steps, lr_min, warmup_steps, start_lr, floor, ceiling)
    restarts = config.restarts or RestartsConfig(cycle_steps=total_steps - warmup_steps)
    return CosineSchedule(
        lr0=lr0,
        total_steps=total_steps,
        lr_min=config.lr_min,
        warmup_steps=warmup_steps,
        start_lr=start_lr,
        cycle_steps=restarts.cycle_steps,
        cycle_mult=restarts.cycle_mult,
        scale=restarts.scale,
        ramp_steps=restarts.ramp_steps,
        floor=floor,
        ceiling=ceiling,
    )


def rates(schedule: Schedule, steps: Iterable[int]) -> list[float]:
    """The rates of many steps, for a plot or a table."""
    return [schedule.lr(step) for step in steps]
