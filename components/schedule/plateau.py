"""When a metric has stopped improving: the monitor behind early stopping, `plateau` and `restarts.on_plateau`."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from .build import peak_lr
from .config import PlateauRule, ScheduleConfig
from .events import ScheduleEvent

_SEEN = ("best", "num_bad", "num_cooling", "recent")
_SAME_RATE = 1e-9
"""A share of the rate; a reduction by less is none."""


@dataclass(slots=True)
class Plateau:
    """Says when a metric has not improved for `patience` observations.

    An observation improves on the best when the mean of the last `smoothing` values is better than it by more than
    `threshold`, which is in the metric's unit. A value that is not finite is no improvement and stays out of the mean.
    After each plateau the count begins anew, `cooldown` observations later; the best stays. With `smoothing = 1` it
    decides as torch's `ReduceLROnPlateau(patience=patience - 1, threshold_mode="abs")`, whose patience is the number
    of observations that it lets pass.
    """

    patience: int
    mode: Literal["min", "max"] = "min"
    smoothing: int = 1
    cooldown: int = 0
    threshold: float = 0.0
    best: float | None = None
    num_bad: int = 0
    """Observations without improvement in a row."""
    num_cooling: int = 0
    """Observations of the cooldown that are left."""
    recent: list[float] = field(default_factory=list)
    """The last `smoothing` finite values."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.smoothing < 1 or self.cooldown < 0 or not 0 <= self.threshold < math.inf:
            raise ValueError(
                "patience ≥ 1, smoothing ≥ 1, cooldown ≥ 0, threshold ≥ 0: they are"
                f" {self.patience}, {self.smoothing}, {self.cooldown}, {self.threshold}"
            )

    def observe(self, value: float) -> bool:
        """Take in the metric's newest value; True when this makes it a plateau."""
        self.num_bad = 0 if self._improves(value) else self.num_bad + 1
        if self.num_cooling:
            self.num_cooling -= 1
            self.num_bad = 0
        if self.num_bad < self.patience:
            return False
        self.num_bad, self.num_cooling = 0, self.cooldown
        return True

    def _improves(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        self.recent = [*self.recent, value][-self.smoothing :]
        mean = math.fsum(self.recent) / len(self.recent)
        if self.best is not None:
            gain = self.best - mean if self.mode == "min" else mean - self.best
            if gain <= self.threshold:
                return False
        self.best = mean
        return True

    def to_state(self) -> dict[str, Any]:
        """What has been seen, as JSON values."""
        return {name: getattr(self, name) for name in _SEEN}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where a monitor of the same settings gave `state`."""
        for name in _SEEN:
            setattr(self, name, state[name])


@dataclass(slots=True)
class PlateauWatch:
    """Watches a validation metric for the schedule, on one rank; its events are for all.

    What is observed before the end of warmup tells nothing of the rate, and is passed over.
    """

    metric: str
    """As the loop calls it: `loss`, not `val_loss`."""
    monitor: Plateau
    event: ScheduleEvent
    """What a plateau leads to; its step is the first that may have one."""
    max_events: float
    """After so many the watch is over."""
    num_events: int = 0

    def observe(self, step: int, value: float) -> ScheduleEvent | None:
        """Take in the metric after `step` updates; the event that holds from update number `step` on, if there is one.

        Raises:
            ValueError: when `step` is negative.
        """
        if step < self.event.step or self.num_events >= self.max_events or not self.monitor.observe(value):
            return None
        self.num_events += 1
        return dataclasses.replace(self.event, step=step)

    @property
    def reason(self) -> str:
        """Why the last event came, for people."""
        best = "nothing finite" if self.monitor.best is None else f"{self.monitor.best:.6g}"
        return f"val_{self.metric} did not improve on {best} in {self.monitor.patience} evaluations"

    def to_state(self) -> dict[str, Any]:
        """What has been seen, and the number of events, as JSON values."""
        return {"monitor": self.monitor.to_state(), "num_events": self.num_events}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where a watch of the same config gave `state`."""
        self.monitor.load_state(state["monitor"])
        self.num_events = state["num_events"]


def build_watch(config: ScheduleConfig, *, batch_size: int) -> PlateauWatch | None:
    """The watch that a schedule with a global batch of `batch_size` samples asks for; None where it asks for none."""
    first_step = config.warmup.steps + 1
    if config.plateau is not None:
        lowest = max(config.lr_min, config.clip.floor)
        reduce = ScheduleEvent(first_step, "reduce", config.plateau.factor)
        return _watch(config.plateau, reduce, _num_reductions(peak_lr(config, batch_size), lowest, reduce.factor))
    if config.restarts is not None and config.restarts.on_plateau is not None:
        rule = config.restarts.on_plateau
        return _watch(rule, ScheduleEvent(first_step, "restart"), rule.max)
    return None


def _watch(rule: PlateauRule, event: ScheduleEvent, max_events: float) -> PlateauWatch:
    monitor = Plateau(rule.patience, rule.mode, rule.smoothing, rule.cooldown, rule.threshold)
    return PlateauWatch(metric_name(rule.metric), monitor, event, max_events)


def _num_reductions(peak: float, lowest: float, factor: float) -> float:
    """How often the rate can be multiplied by `factor` before it stands at `lowest`."""
    if lowest == 0:
        return math.inf
    return max(0, math.ceil((math.log(lowest) - math.log(peak)) / math.log(factor) - _SAME_RATE))


def metric_name(written: str) -> str:
    """The loop's name of a validation metric that people write with or without `val_` in front."""
    return written.removeprefix("val_")
