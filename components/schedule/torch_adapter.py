"""`ScheduleLR`: a schedule as torch's `LRScheduler`, for anybody's training loop."""

import dataclasses
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import UserError
from .curve import Annealing, Schedule
from .events import ScheduleEvent, with_events
from .momentum import MomentumCycle, MomentumSchedule


class ScheduleLR(LRScheduler):
    """Sets `lr(step) · group["lr_scale"]` in every parameter group; `lr_scale` is 1 where a group has none.

    With a `momentum` it sets that too, as `momentum` or as the first of `betas`. Call `step()` after
    `optimizer.step()`, as with every torch scheduler. What is set depends on the step and the events alone, so a
    restored state is the same run, and loading one that was made under another schedule is refused.

    Raises:
        UserError: when momentum is to be set in an optimizer without any.
    """

    schedule: Schedule
    """The schedule in effect, as the events have changed it."""
    events: tuple[ScheduleEvent, ...]
    """What has happened to the schedule, in the order of its steps."""

    def __init__(self, optimizer: Optimizer, schedule: Annealing, momentum: MomentumSchedule | None = None) -> None:
        self._base, self.momentum = schedule, momentum
        self._follow(())
        if momentum is not None and not optimizer.defaults.keys() & {"momentum", "betas"}:
            raise UserError(f"{type(optimizer).__name__} has no momentum to schedule → SGD, or one with betas")
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each group at the current step."""
        rate = self.schedule.lr(self.last_epoch)
        return [rate * group.get("lr_scale", 1.0) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next step, or to a given one, and set its rates and momentum."""
        self.last_epoch = step = self.last_epoch + 1 if epoch is None else epoch
        rate = self.schedule.lr(step)
        for group in self.optimizer.param_groups:
            scaled = rate * group.get("lr_scale", 1.0)
            # The type first: isinstance() with a class of torch is four times as slow.
            if type(group["lr"]) is not float and isinstance(group["lr"], Tensor):
                group["lr"].fill_(scaled)  # a captured graph holds this very tensor
            else:
                group["lr"] = scaled
        if self.momentum is not None:
            self._set_momentum(self.momentum.momentum(step))

    def add(self, event: ScheduleEvent) -> None:
        """Change the schedule from the event's step on; the rates of the current step are set anew.

        Raises:
            ValueError: when the event does not fit the schedule, which stays as it was.
        """
        self._follow((*self.events, event))
        self.step(self.last_epoch)

    def _follow(self, events: tuple[ScheduleEvent, ...]) -> None:
        effective = with_events(self._base, events)
        self.schedule, self.events = effective, tuple(sorted(events, key=lambda event: event.step))
        if isinstance(self.momentum, MomentumCycle):
            self.momentum = dataclasses.replace(self.momentum, schedule=effective)

    def _set_momentum(self, momentum: float) -> None:
        for group in self.optimizer.param_groups:
            if "momentum" in group:
                group["momentum"] = momentum
            else:
                group["betas"] = (momentum, *group["betas"][1:])

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The rates that are set now."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The step, the schedule's fields and the events, all of them JSON values."""
        events = [event.to_json() for event in self.events]
        return {"step": self.last_epoch, "schedule": self._fields(), "events": events}

    def load_state_dict(self, state_dict: dict[str, Any], *, allow_changed_schedule: bool = False) -> None:
        """Go to a saved step, with the events until then, and set its rates.

        Raises:
            UserError: when the state is another scheduler's, or was saved under another schedule; it names the
                fields that differ. When the schedule was to be another, and the events do not fit it.
        """
        if not {"step", "schedule"} <= state_dict.keys():
            raise UserError(f"not a state of ScheduleLR: it has {', '.join(map(str, state_dict)) or 'nothing'}")
        mine, saved = self._fields(), state_dict["schedule"]
        different = [
            f"{name}: saved {saved.get(name)!r}, now {mine.get(name)!r}"
            for name in sorted(mine.keys() | saved.keys())
            if mine.get(name) != saved.get(name)
        ]
        if different and not allow_changed_schedule:
            raise UserError(
                f"the saved schedule is another one ({'; '.join(different)})"
                " → resume with the config that made it, or load with allow_changed_schedule=True"
            )
        try:
            self._follow(tuple(ScheduleEvent.from_json(event) for event in state_dict.get("events", ())))
        except ValueError as error:
            raise UserError(f"the saved events do not fit the schedule: {error}") from error
        self.step(state_dict["step"])

    def _fields(self) -> dict[str, Any]:
        fields = _fields(self._base)
        if self.momentum is not None:
            fields |= {f"momentum.{name}": value for name, value in _fields(self.momentum).items()}
        return fields


def _fields(curve: Annealing | MomentumSchedule) -> dict[str, Any]:
    """What makes a curve what it is, a float as its shortest exact text; a momentum's is without the schedule."""
    fields = dataclasses.asdict(curve)  # type: ignore[arg-type]
    return {"kind": type(curve).__name__} | {
        name: repr(value) if isinstance(value, float) else value for name, value in fields.items() if name != "schedule"
    }
