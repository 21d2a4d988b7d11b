"""`ScheduleLR`: a schedule as torch's `LRScheduler`, for anybody's training loop."""

import dataclasses
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import UserError
from .curve import Schedule


class ScheduleLR(LRScheduler):
    """Sets `lr(step) · group["lr_scale"]` in every parameter group; `lr_scale` is 1 where a group has none.

    Call `step()` after `optimizer.step()`, as with every torch scheduler. The rate depends on the step alone, so a
    restored state is the same run, and loading one that was made under another schedule is refused.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.schedule = schedule
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each group at the current step."""
        rate = self.schedule.lr(self.last_epoch)
        return [rate * group.get("lr_scale", 1.0) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next step, or to a given one, and set its rates."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # a captured graph holds this very tensor
            else:
                group["lr"] = rate

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The rates that are set now."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The step and the schedule's fields, all of them JSON values: a float is its shortest exact text."""
        return {"step": self.last_epoch, "schedule": _fields(self.schedule)}

    def load_state_dict(self, state_dict: dict[str, Any], *, allow_changed_schedule: bool = False) -> None:
        """Go to a saved step and set its rates.

        Raises:
            UserError: when the state is another scheduler's, or was saved under another schedule; it names the
                fields that differ.
        """
        if not {"step", "schedule"} <= state_dict.keys():
            raise UserError(f"not a state of ScheduleLR: it has {', '.join(map(str, state_dict)) or 'nothing'}")
        mine, saved = _fields(self.schedule), state_dict["schedule"]
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
        self.step(state_dict["step"])


def _fields(schedule: Schedule) -> dict[str, Any]:
    fields = dataclasses.asdict(schedule)  # type: ignore[call-overload]
    return {"kind": type(schedule).__name__} | {
        name: repr(value) if isinstance(value, float) else value for name, value in fields.items()
    }
