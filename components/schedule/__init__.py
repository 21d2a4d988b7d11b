"""Learning-rate schedules as pure functions of the step, and their torch adapter.

- `config`: `ScheduleConfig`, what a run config says of its schedule.
- `curve`: the curves in closed form; **here the learning rate is computed**.
- `momentum`: the momentum beside it, where it moves.
- `events`: what happens to a schedule during a run, `ScheduleEvent`, and the schedule that results.
- `plateau`: when a metric has stopped improving, and what the schedule makes of it.
- `build`: from the config to the curves.
- `torch_adapter`: `ScheduleLR`, an `LRScheduler` for anybody's training loop (imports torch).
"""

from .build import build_momentum, build_schedule
from .config import ScheduleConfig
from .curve import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    Schedule,
    StepSchedule,
)
from .events import EventfulSchedule, ScheduleEvent, with_events
from .momentum import MomentumCycle, MomentumSchedule, MomentumWarmup
from .plateau import Plateau, PlateauWatch, build_watch, metric_name

__all__ = [
    "CosineSchedule",
    "EventfulSchedule",
    "ExponentialSchedule",
    "LinearSchedule",
    "MomentumCycle",
    "MomentumSchedule",
    "MomentumWarmup",
    "OneCycleSchedule",
    "Plateau",
    "PlateauSchedule",
    "PlateauWatch",
    "Schedule",
    "ScheduleConfig",
    "ScheduleEvent",
    "StepSchedule",
    "build_momentum",
    "build_schedule",
    "build_watch",
    "metric_name",
    "with_events",
]
