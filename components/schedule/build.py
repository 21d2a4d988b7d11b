"""From a run's config to its curves: the rate's, and the momentum's where it moves."""

import math
from typing import Any

from ..errors import UserError
from .config import BatchScaling, ScheduleConfig
from .curve import (
    Annealing,
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    StepSchedule,
)
from .momentum import MomentumCycle, MomentumSchedule, MomentumWarmup

_CURVES: dict[str, type[Annealing]] = {
    "cosine": CosineSchedule,
    "cosine_restarts": CosineSchedule,
    "linear": LinearSchedule,
    "exponential": ExponentialSchedule,
    "step": StepSchedule,
    "one_cycle": OneCycleSchedule,
    "plateau": PlateauSchedule,
    "constant": LinearSchedule,
}


def peak_lr(config: ScheduleConfig, batch_size: int) -> float:
    """The peak rate for a global batch of `batch_size` samples, after `scale_with_batch`."""
    scaling = config.scale_with_batch
    return config.lr0 if scaling is None else config.lr0 * batch_factor(scaling, batch_size)


def batch_factor(scaling: BatchScaling, batch_size: int) -> float:
    """The factor on `lr0`: linear (arXiv:1706.02677) or square root (arXiv:1404.5997)."""
    ratio = batch_size / scaling.base_batch_size
    return ratio if scaling.rule == "linear" else math.sqrt(ratio)


def build_schedule(config: ScheduleConfig, *, total_steps: int, batch_size: int) -> Annealing:
    """The schedule of a run of `total_steps` updates with a global batch of `batch_size` samples.

    Raises:
        UserError: for lengths and rates that do not fit once the run's length and batch are known.
    """
    lr0 = peak_lr(config, batch_size)
    fields: dict[str, Any] = {
        "lr0": lr0,
        "total_steps": total_steps,
        "lr_min": lr0 if config.kind == "constant" else config.lr_min,
        "warmup_steps": config.warmup.steps,
        "start_lr": config.warmup.start_lr,
        "floor": config.clip.floor,
        "ceiling": math.inf if config.clip.ceiling is None else config.clip.ceiling,
    }
    for own in (config.restarts, config.step):
        fields |= own.model_dump(exclude={"on_plateau"}) if own is not None else {}
    try:
        return _CURVES[config.kind](**fields)
    except ValueError as error:
        raise UserError(f"schedule: {error}") from error


def build_momentum(config: ScheduleConfig, schedule: Annealing, momentum: float) -> MomentumSchedule | None:
    """How the optimizer's own `momentum` moves over a run with this schedule; None where it stays.

    Raises:
        UserError: when it would start above the optimizer's own.
    """
    start, warmup_steps = config.momentum.start, config.momentum.warmup_steps
    if not (config.momentum.cycle or warmup_steps):
        return None
    if start > momentum:
        raise UserError(f"schedule.momentum.start = {start} is above the optimizer's momentum → at most {momentum}")
    if config.momentum.cycle:
        return MomentumCycle(schedule, low=start, high=momentum)
    return MomentumWarmup(low=start, high=momentum, warmup_steps=warmup_steps)
