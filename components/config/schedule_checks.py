"""What preflight says of the schedule, and of the rules that watch a metric."""

import math
from typing import NamedTuple

from ..schedule import metric_name
from ..schedule.build import peak_lr
from ..schedule.config import PlateauRule
from .models import RunConfig
from .problems import Problem
from .training import EarlyStopping

STALL_FRACTION = 0.5
"""A rate that is above this fraction of the peak at the end of the run has not annealed."""
UNCLIPPED_SGD_LR = 1.0
UNCLIPPED_ADAMW_LR = 0.01
"""Peaks above which training without gradient clipping usually diverges."""


def schedule_checks(config: RunConfig) -> list[Problem | None]:
    """The checks that need to know no length."""
    return [
        _scaled_peak(config),
        _peak(config),
        _annealing(config),
        _batch_scaling(config),
        _one_cycle(config),
        _momentum(config),
        _momentum_start(config),
        *(_mode(config, watched) for watched in _watched(config)),
    ]


def checks_over_the_run(config: RunConfig, total_steps: int) -> list[Problem | None]:
    """The checks of what has to fit into the run's `total_steps` updates."""
    return [
        *_warmups(config, total_steps),
        _period(config, total_steps),
        *(_patience(config, watched, total_steps) for watched in _watched(config)),
    ]


def _scaled_peak(config: RunConfig) -> Problem | None:
    schedule, peak = config.schedule, peak_lr(config.schedule, config.training.batch_size)
    if schedule.lr_min <= peak < math.inf:
        return None
    assert schedule.scale_with_batch is not None  # the schema holds lr_min ≤ lr0 < inf where nothing scales
    return Problem(
        "schedule.scale_with_batch.base_batch_size",
        f"scales lr0 = {schedule.lr0:g} to {peak:g} at a batch of {config.training.batch_size}: below lr_min ="
        f" {schedule.lr_min:g}, or not finite",
        value=str(schedule.scale_with_batch.base_batch_size),
        fix="the batch size that lr0 was tuned at",
    )


def _peak(config: RunConfig) -> Problem | None:
    peak = peak_lr(config.schedule, config.training.batch_size)
    ceiling = config.schedule.clip.ceiling
    applied = peak if ceiling is None else min(peak, ceiling)
    usual = UNCLIPPED_SGD_LR if config.optimizer.kind == "sgd" else UNCLIPPED_ADAMW_LR
    if config.optimizer.grad_clip_norm is not None or applied <= usual:
        return None
    return Problem(
        "schedule.lr0",
        f"a peak of {applied:g} without gradient clipping usually diverges with {config.optimizer.kind}",
        value=f"{config.schedule.lr0:g}",
        fix=f"optimizer.grad_clip_norm: 1.0, or lr0 ≤ {usual:g}",
        level="warning",
    )


def _annealing(config: RunConfig) -> Problem | None:
    schedule, peak = config.schedule, peak_lr(config.schedule, config.training.batch_size)
    if schedule.kind == "constant" or schedule.lr_min <= STALL_FRACTION * peak:
        return None
    return Problem(
        "schedule.lr_min",
        f"the rate hardly anneals: from {peak:g} to {schedule.lr_min:g}",
        value=f"{schedule.lr_min:g}",
        fix=f"a hundredth of the peak, {peak / 100:g}, is usual",
        level="warning",
    )


def _batch_scaling(config: RunConfig) -> Problem | None:
    scaling = config.schedule.scale_with_batch
    if scaling is None or scaling.rule != "linear":
        return None
    ratio = config.training.batch_size / scaling.base_batch_size
    if ratio <= 8:  # noqa: PLR2004 - arXiv:1706.02677, table 1: linear scaling held from 256 to 8,192 with warmup
        return None
    if config.schedule.warmup.steps > 0:
        return None
    return Problem(
        "schedule.scale_with_batch",
        f"lr0 is scaled {ratio:g}-fold and there is no warmup",
        fix="schedule.warmup.steps: 5 % of the run",
        level="warning",
    )


def _one_cycle(config: RunConfig) -> Problem | None:
    if config.schedule.kind != "one_cycle" or config.schedule.warmup.steps > 0:
        return None
    return Problem(
        "schedule.warmup.steps",
        "the cycle has no climb: the rate only falls, as under kind cosine",
        value="0",
        fix="30 % of the run is usual",
        level="warning",
    )


def _momentum(config: RunConfig) -> Problem | None:
    if config.optimizer.kind == "sgd" or "momentum" not in config.optimizer.model_fields_set:
        return None
    return Problem("optimizer.momentum", f"has no effect under {config.optimizer.kind}", fix="betas", level="warning")


def _momentum_start(config: RunConfig) -> Problem | None:
    momentum, own = config.schedule.momentum, config.optimizer.own_momentum
    if momentum.start <= own or not (momentum.cycle or momentum.warmup_steps):
        return None
    key = "momentum" if config.optimizer.kind == "sgd" else "betas"
    return Problem(
        "schedule.momentum.start",
        f"above the {own:g} that it is to rise to, of optimizer.{key}",
        value=f"{momentum.start:g}",
        fix=f"at most {own:g}",
    )


def _warmups(config: RunConfig, total_steps: int) -> list[Problem | None]:
    lengths = {
        "schedule.warmup.steps": config.schedule.warmup.steps,
        "schedule.momentum.warmup_steps": config.schedule.momentum.warmup_steps,
    }
    reason = f"not shorter than the run: total_epochs = {config.schedule.total_epochs} is {total_steps} steps"
    return [
        Problem(path, reason, value=str(steps), fix=f"at most {total_steps - 1}") if steps >= total_steps else None
        for path, steps in lengths.items()
    ]


def _period(config: RunConfig, total_steps: int) -> Problem | None:
    """Cycles and drops that the run is too short for."""
    schedule = config.schedule
    room = total_steps - schedule.warmup.steps
    if schedule.restarts is not None and schedule.restarts.cycle_steps > room:
        path, steps, most = "restarts.cycle_steps", schedule.restarts.cycle_steps, room
        comes = "no restart" if schedule.restarts.on_plateau is None else "no restart but on a plateau"
        reason = f"longer than the {room} steps after warmup: {comes}, and the rate never reaches lr_min"
    elif schedule.step is not None and schedule.step.every_steps >= room:
        path, steps, most = "step.every_steps", schedule.step.every_steps, room - 1
        reason = f"not shorter than the {room} steps after warmup: the rate never drops"
    else:
        return None
    fix = f"at most {most}" if most > 0 else ""
    return Problem(f"schedule.{path}", reason, value=str(steps), fix=fix, level="warning")


class _Watched(NamedTuple):
    """A rule that watches a validation metric."""

    path: str
    rule: PlateauRule | EarlyStopping
    first_step: int
    """The first validation that counts is after so many updates, or later."""


def _watched(config: RunConfig) -> list[_Watched]:
    schedule, stopping = config.schedule, config.training.early_stopping
    on_plateau = schedule.restarts.on_plateau if schedule.restarts is not None else None
    rules = [
        ("schedule.plateau", schedule.plateau, schedule.warmup.steps + 1),
        ("schedule.restarts.on_plateau", on_plateau, schedule.warmup.steps + 1),
        ("training.early_stopping", stopping, 1),
    ]
    return [_Watched(path, rule, first_step) for path, rule, first_step in rules if rule is not None]


def _mode(config: RunConfig, watched: _Watched) -> Problem | None:
    metric, mode = metric_name(watched.rule.metric), config.evaluation.mode
    if metric != config.evaluation.metric or watched.rule.mode == mode:
        return None
    return Problem(
        f"{watched.path}.mode", f"evaluation.mode of the same {metric} is {mode}", value=watched.rule.mode, fix=mode
    )


def _patience(config: RunConfig, watched: _Watched, total_steps: int) -> Problem | None:
    """A rule that no validation before the run's last can set off."""
    every, patience = config.training.eval_every_steps, watched.rule.patience
    count = max(0, (total_steps - 1) // every - (watched.first_step - 1) // every)
    if patience < count:  # the first sets the mark that the others have to beat
        return None
    return Problem(
        f"{watched.path}.patience",
        f"never runs out: {count} validation{'s' * (count != 1)} count{'s' * (count == 1)} before the run's last",
        value=str(patience),
        fix=f"{f'at most {count - 1}, or ' if count > 1 else ''}a smaller training.eval_every_steps",
        level="warning",
    )
