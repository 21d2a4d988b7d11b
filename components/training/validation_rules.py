"""What a validation decides: a restart or a reduction on a plateau, and an early end.

Rank 0 decides for all, so that no rounding makes ranks part.
"""

from typing import Any, NamedTuple

import torch.distributed as dist

from ..config.training import TrainingConfig
from ..errors import UserError
from ..schedule import Plateau, ScheduleConfig, ScheduleEvent, build_watch, metric_name


class Decision(NamedTuple):
    """What follows from a validation."""

    event: ScheduleEvent | None = None
    """What becomes of the schedule."""
    reason: str = ""
    """Of the event, in words."""
    early_end: str = ""
    """Why the training ends here, where it does."""


class ValidationRules:
    """The rules of one run; their counters are part of every checkpoint."""

    def __init__(self, schedule: ScheduleConfig, training: TrainingConfig) -> None:
        self._watch = build_watch(schedule, batch_size=training.batch_size)
        self._stopping = training.early_stopping
        self._patience: Plateau | None = None
        if self._stopping is not None:
            options = self._stopping.model_dump(exclude={"metric", "min_delta"})
            self._patience = Plateau(**options, threshold=self._stopping.min_delta)

    def decide(self, step: int, metrics: dict[str, float]) -> Decision:
        """Rank 0's decision after a validation at `step` updates; every rank calls it.

        Raises:
            UserError: when the task's scores lack a metric that a rule asks for.
        """
        if self._watch is None and self._patience is None:
            return Decision()
        decision = [self._decision(step, metrics)]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(decision)
        return decision[0]

    def _decision(self, step: int, metrics: dict[str, float]) -> Decision:
        event, reason, early_end = None, "", ""
        if self._watch is not None:
            event = self._watch.observe(step, _metric(metrics, self._watch.metric))
            reason = self._watch.reason
        if self._patience is not None and self._stopping is not None:
            name = metric_name(self._stopping.metric)
            if self._patience.observe(_metric(metrics, name)):
                early_end = f"val_{name} has not improved in {self._stopping.patience} validations"
        return Decision(event, reason, early_end)

    def to_state(self) -> dict[str, Any]:
        """The counters as JSON values."""
        return {
            "watch": None if self._watch is None else self._watch.to_state(),
            "early_stopping": None if self._patience is None else self._patience.to_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from counters that were saved."""
        if self._watch is not None and state["watch"] is not None:
            self._watch.load_state(state["watch"])
        if self._patience is not None and state["early_stopping"] is not None:
            self._patience.load_state(state["early_stopping"])


def _metric(metrics: dict[str, float], name: str) -> float:
    if name not in metrics:
        known = ", ".join(f"val_{known}" for known in metrics)
        raise UserError(f"the task's scores() give no {name!r}, which the config asks for → one of {known}")
    return metrics[name]
