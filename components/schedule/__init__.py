"""Learning-rate schedules as pure functions of the step, and their torch adapter.

- `config`: `ScheduleConfig`, what a run config says of its schedule.
- `curve`: the curves in closed form; **here the learning rate is computed**.
- `torch_adapter`: `ScheduleLR`, an `LRScheduler` for anybody's training loop (imports torch).
"""

from .config import ScheduleConfig
from .curve import CosineSchedule, Schedule, build_schedule

__all__ = ["CosineSchedule", "Schedule", "ScheduleConfig", "build_schedule"]
