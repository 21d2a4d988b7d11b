"""What can be said about a run before anything is paid for.

Facts that only higher floors know (the dataset's length, what a step costs) are handed in, and a check whose
facts are missing is left out.
"""

import math
from dataclasses import dataclass

from ..schedule.build import IMPLEMENTED_KINDS, peak_lr
from .models import MIN_DRILL_STEPS, RunConfig
from .problems import Problem

STALL_FRACTION = 0.5
"""A rate that is above this fraction of the peak at the end of the run has not annealed."""
UNCLIPPED_SGD_LR = 1.0
UNCLIPPED_ADAMW_LR = 0.01
"""Peaks above which training without gradient clipping usually diverges."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the task and past runs know; None where nobody has asked yet."""

    num_train_samples: int | None = None
    seconds_per_step: float | None = None


@dataclass(frozen=True, slots=True)
class Preflight:
    """The problems found, and how many checks looked."""

    problems: list[Problem]
    num_checks: int

    @property
    def errors(self) -> list[Problem]:
        """Those that stop the run."""
        return [problem for problem in self.problems if problem.level == "error"]


def preflight(config: RunConfig, facts: Facts | None = None) -> Preflight:
    """Run every check whose facts are known."""
    facts = facts or Facts()
    checks = [*_availability(config), *_schedule_checks(config), canary_batch(config)]
    total_steps = config.schedule.total_steps
    if facts.num_train_samples is not None:
        checks.append(_full_batch(config, facts.num_train_samples))
        total_steps = config.total_steps(facts.num_train_samples)
    if total_steps:
        checks += [*_warmups(config, total_steps), _period(config, total_steps)]
        checks += [_evaluations(config, total_steps), _drill(config, total_steps)]
        if facts.seconds_per_step is not None:
            checks.append(_cost(config, total_steps, facts.seconds_per_step))
    return Preflight([check for check in checks if check is not None], len(checks))


def _availability(config: RunConfig) -> list[Problem | None]:
    """Keys of the schema that this version has no code for: refused, never ignored."""
    unavailable = {
        "schedule.kind": (config.schedule.kind, config.schedule.kind not in IMPLEMENTED_KINDS),
        "schedule.restarts.on_plateau": (
            "set",
            config.schedule.restarts is not None and config.schedule.restarts.on_plateau is not None,
        ),
        "training.precision": (config.training.precision, config.training.precision == "fp16"),
        "training.init_from": (config.training.init_from, config.training.init_from is not None),
        "training.early_stopping": ("set", config.training.early_stopping is not None),
        "distributed.launcher": (config.distributed.launcher, config.distributed.launcher != "local"),
        "distributed.nodes": (config.distributed.nodes, config.distributed.nodes > 1),
        "canary.nodes": (config.canary.nodes, config.canary.nodes > 1),
        "distributed.strategy": (config.distributed.strategy, config.distributed.strategy != "ddp"),
    }
    return [
        Problem(path, "not available in this version", value=str(value), fix="leave it out") if bad else None
        for path, (value, bad) in unavailable.items()
    ]


def _schedule_checks(config: RunConfig) -> list[Problem | None]:
    return [
        _scaled_peak(config),
        _peak(config),
        _annealing(config),
        _batch_scaling(config),
        _one_cycle(config),
        _momentum(config),
        _momentum_start(config),
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


def canary_batch(config: RunConfig) -> Problem | None:
    """Whether the global batch divides over the canary's processes, as it has to."""
    world_size, batch = config.canary.procs_per_node, config.training.batch_size
    if batch % world_size == 0:
        return None
    fitting = max(size for size in range(1, world_size) if batch % size == 0)
    return Problem(
        "canary.procs_per_node",
        f"training.batch_size = {batch} does not divide over them",
        value=str(world_size),
        fix=f"at most {fitting}",
    )


def _drill(config: RunConfig, total_steps: int) -> Problem | None:
    steps = config.canary.num_steps(total_steps)
    if steps >= MIN_DRILL_STEPS:
        return None
    return Problem(
        "canary.min_steps",
        f"the canary runs {steps} of {total_steps} steps: too few for its kill and restore, so it is INCONCLUSIVE",
        value=str(config.canary.min_steps),
        fix=f"{MIN_DRILL_STEPS} or more, in a run that has as many",
        level="warning",
    )


def _period(config: RunConfig, total_steps: int) -> Problem | None:
    """Cycles and drops that the run is too short for."""
    schedule = config.schedule
    room = total_steps - schedule.warmup.steps
    if schedule.restarts is not None and schedule.restarts.cycle_steps > room:
        path, steps, most = "restarts.cycle_steps", schedule.restarts.cycle_steps, room
        reason = f"longer than the {room} steps after warmup: no restart, and the rate never reaches lr_min"
    elif schedule.step is not None and schedule.step.every_steps >= room:
        path, steps, most = "step.every_steps", schedule.step.every_steps, room - 1
        reason = f"not shorter than the {room} steps after warmup: the rate never drops"
    else:
        return None
    fix = f"at most {most}" if most > 0 else ""
    return Problem(f"schedule.{path}", reason, value=str(steps), fix=fix, level="warning")


def _full_batch(config: RunConfig, num_train_samples: int) -> Problem | None:
    if num_train_samples >= config.training.batch_size:
        return None
    return Problem(
        "training.batch_size",
        f"the training split has {num_train_samples} samples: not one full batch",
        value=str(config.training.batch_size),
        fix=f"at most {num_train_samples}" if num_train_samples else "",
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


def _evaluations(config: RunConfig, total_steps: int) -> Problem | None:
    if config.training.eval_every_steps <= total_steps:
        return None
    return Problem(
        "training.eval_every_steps",
        f"never reached in {total_steps} steps: the run is validated at its end only",
        value=str(config.training.eval_every_steps),
        fix=f"at most {total_steps}",
        level="warning",
    )


def _cost(config: RunConfig, total_steps: int, seconds_per_step: float) -> Problem | None:
    hours = total_steps * seconds_per_step * config.distributed.world_size / 3600
    if hours <= config.budget.max_gpu_hours:
        return None
    return Problem(
        "budget.max_gpu_hours",
        f"the run is projected at {hours:.2f} GPU-hours",
        value=f"{config.budget.max_gpu_hours:g}",
        fix="fewer steps, or a larger budget",
    )
