"""What can be said about a run before anything is paid for.

Facts that only higher floors know (the dataset's length, what a step costs) are handed in, and a check whose
facts are missing is left out.
"""

import math
from dataclasses import dataclass

from .models import MIN_DRILL_STEPS, RunConfig
from .problems import Problem
from .schedule_checks import checks_over_the_run, schedule_checks


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """The checkpoint that `training.init_from` means, or why there is none."""

    uri: str = ""
    digest: str = ""
    """SHA-256 of its manifest, 64 hex digits."""
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the task, past runs and S3 know; None where nobody has asked yet."""

    num_train_samples: int | None = None
    seconds_per_step: float | None = None
    initial: InitialWeights | None = None


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
    checks = [*_nodes(config), *schedule_checks(config), canary_batch(config)]
    if config.checkpoint.keep_every is not None:
        checks.append(_kept_for_good(config.checkpoint.keep_every, config.checkpoint.every_steps))
    if facts.initial is not None:
        checks.append(facts.initial.problem)
    total_steps = config.schedule.total_steps
    if facts.num_train_samples is not None:
        checks.append(_full_batch(config, facts.num_train_samples))
        total_steps = config.total_steps(facts.num_train_samples)
    if total_steps:
        checks += checks_over_the_run(config, total_steps)
        checks += [_evaluations(config, total_steps), _drill(config, total_steps)]
        if facts.seconds_per_step is not None:
            checks.append(_cost(config, total_steps, facts.seconds_per_step))
    return Preflight([check for check in checks if check is not None], len(checks))


def _nodes(config: RunConfig) -> list[Problem | None]:
    """Whether there is a launcher for the nodes, as this machine is one; and whether the canary crosses them too."""
    local, nodes, canary_nodes = config.distributed.launcher == "local", config.distributed.nodes, config.canary.nodes
    unseen = Problem(
        "canary.nodes",
        f"the run goes over {nodes} nodes: what the network between them breaks, no canary of one node finds",
        value=str(canary_nodes),
        fix="2",
        level="warning",
    )
    return [
        _one_node("distributed.nodes", nodes) if local and nodes > 1 else None,
        _one_node("canary.nodes", canary_nodes) if local and canary_nodes > 1 else None,
        unseen if not local and nodes > 1 and canary_nodes == 1 else None,
    ]


def _one_node(path: str, nodes: int) -> Problem:
    return Problem(path, "this machine is one node", value=str(nodes), fix="distributed.launcher: trainjob")


def canary_batch(config: RunConfig) -> Problem | None:
    """Whether the global batch divides over the canary's processes, as it has to."""
    canary, batch = config.canary, config.training.batch_size
    if batch % canary.world_size == 0:
        return None
    if canary.nodes == 1:
        path, size, what = "canary.procs_per_node", canary.procs_per_node, "them"
    else:
        path, size, what = "canary.nodes", canary.nodes, f"{canary.nodes} × {canary.procs_per_node} processes"
    other = canary.world_size // size
    fitting = next((fewer for fewer in range(size - 1, 0, -1) if batch % (fewer * other) == 0), None)
    return Problem(
        path,
        f"training.batch_size = {batch} does not divide over {what}",
        value=str(size),
        fix=f"at most {fitting}" if fitting else f"nodes × procs_per_node that {batch} divides by",
    )


def _kept_for_good(keep_every: int, every_steps: int) -> Problem | None:
    if keep_every % every_steps == 0:
        return None
    return Problem(
        "checkpoint.keep_every",
        f"no multiple of every_steps = {every_steps}: only one checkpoint in {math.lcm(keep_every, every_steps)} steps"
        " is of such a step",
        value=str(keep_every),
        fix=f"{math.ceil(keep_every / every_steps) * every_steps}",
        level="warning",
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


def _full_batch(config: RunConfig, num_train_samples: int) -> Problem | None:
    if num_train_samples >= config.training.batch_size:
        return None
    return Problem(
        "training.batch_size",
        f"the training split has {num_train_samples} samples: not one full batch",
        value=str(config.training.batch_size),
        fix=f"at most {num_train_samples}" if num_train_samples else "",
    )


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
