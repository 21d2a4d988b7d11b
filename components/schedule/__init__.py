"""Learning-rate schedules as pure functions of the step, and their torch adapter.

- `config`: `ScheduleConfig`, what a run config says of its schedule.
- `curve`: the curves in closed form; **here the learning rate is computed**.
- `momentum`: the momentum beside it, where it moves.
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
    Schedule,
    StepSchedule,
)
from .momentum import MomentumCycle, MomentumSchedule, MomentumWarmup

__all__ = [
    "CosineSchedule",
    "ExponentialSchedule",
    "LinearSchedule",
    "MomentumCycle",
    "MomentumSchedule",
    "MomentumWarmup",
    "OneCycleSchedule",
    "Schedule",
    "ScheduleConfig",
    "StepSchedule",
    "build_momentum",
    "build_schedule",
]
