"""Start a run's worker processes where its config says: on this machine, or on the nodes of a TrainJob."""

import os
from collections.abc import Callable
from time import perf_counter

from ..access import LAUNCHER_VARIABLE
from ..config import RunConfig
from ..config.identity import cluster_labels
from ..errors import UserError
from .job import Job, Phase
from .launch import launch


def start(
    config: RunConfig,
    config_text: str,
    jobs: list[Job],
    phase: Phase,
    *,
    max_restarts: int,
    on_line: Callable[[str], None] = print,
    grace_seconds: float | None = None,
    on_usage: Callable[[float], None] = lambda _: None,
) -> None:
    """Run the jobs, one after the other, on all nodes and processes that the config gives the phase.

    Args:
        config: the run's config.
        config_text: its YAML; a TrainJob's pods get it mounted.
        jobs: what the processes do.
        phase: takes its nodes and processes from `canary` or from `distributed`.
        max_restarts: of all processes, after one was lost.
        on_line: gets each line that the processes print.
        grace_seconds: what a pod has to be given to save after SIGTERM; None where no save was measured yet.
        on_usage: is told at the end, whatever it was, how long the processes ran, in device-seconds: not the time that
            a job waited in a queue.

    Raises:
        LaunchError: when the processes failed more often than they are started again.
        InterruptedRunError: when this process or a worker was told to stop; the workers had time to save.
        UserError: for several nodes without a launcher for them, or a cluster's runtime that does not fit.
        OutsideError: when the cluster refuses.
    """
    place = config.canary if phase == "canary" else config.distributed
    if config.distributed.launcher == "local":
        if place.nodes > 1:
            key = "canary.nodes" if phase == "canary" else "distributed.nodes"
            raise UserError(f"{key} = {place.nodes}: this machine is one node → distributed.launcher: trainjob")
        started = perf_counter()
        try:
            launch(jobs, place.procs_per_node, max_restarts, on_line)
        finally:
            on_usage((perf_counter() - started) * place.procs_per_node)
        return
    from .trainjob import deadline_seconds, launch_trainjob

    launch_trainjob(
        jobs,
        config_text,
        run_id=jobs[0].run_id,
        phase=phase,
        nodes=place.nodes,
        procs_per_node=place.procs_per_node,
        max_restarts=max_restarts,
        deadline_seconds=deadline_seconds(config.budget.max_gpu_hours, place.world_size),
        labels=cluster_labels(config, os.environ.get("CONVERGATE_COMMIT")),
        grace_seconds=grace_seconds,
        on_line=on_line,
        on_usage=lambda node_seconds: on_usage(node_seconds * place.procs_per_node),
    )


def require_launcher(config: RunConfig) -> None:
    """Refuse a config that asks for another launcher than the step was compiled for.

    Raises:
        UserError: when they differ.
    """
    compiled, wanted = os.environ.get(LAUNCHER_VARIABLE), config.distributed.launcher
    if compiled and compiled != wanted:
        raise UserError(
            f"distributed.launcher = {wanted}: this pipeline was compiled for {compiled}"
            f" → convergate compile --launcher {wanted}"
        )
