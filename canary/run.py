"""Run the canary: the compressed schedule, then the first steps of the real one with a kill -9 and a restore in it.

Both run on the real data, through the real launcher, with the global batch kept by accumulation where the canary has
fewer processes. The first steps are judged on loss and gradients; the compressed schedule on mechanics only, since a
warmup compressed to a few steps proves nothing about loss. The seed is fixed: `config.seed`.

The first steps begin with the run's own weights, also where `training.init_from` names them. The compressed schedule
begins with random ones, and so tells what the loss of an untrained model is.
"""

from collections.abc import Callable
from textwrap import shorten
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..components.config import Check, RunConfig
from ..components.config.document import overall
from ..components.config.models import MIN_DRILL_STEPS
from ..components.config.plan import RunPlan
from ..components.config.preflight import canary_batch
from ..components.errors import ExitCode, UserError
from ..components.storage import RunStore, S3Location
from ..components.task import load_task
from ..components.telemetry import read_trace
from ..components.training.job import Job
from ..components.training.launch import InterruptedRunError, LaunchError
from ..components.training.result import TrainingResult
from ..components.training.start import start
from . import checks
from .report import CanaryReport

if TYPE_CHECKING:
    import pandas as pd

COMPRESSED_STEPS = 40
MESSAGE_CHARACTERS = 300
OPEN = "open.json"
"""Marks the place of a try that has no end yet."""
MAX_RESTARTS = 1
"""The one restart that the kill asks for."""


def run_canary(
    config: RunConfig, config_text: str, plan: RunPlan, on_line: Callable[[str], None] = print
) -> CanaryReport:
    """Run the canary and judge it; stores and returns the report.

    Workers that fail make the verdict FAIL with their error as the reason, or INCONCLUSIVE where something outside
    failed (S3).

    Raises:
        InterruptedRunError: when a worker was told to stop.
        S3Error: when S3 cannot be reached from here, where the report is written.
        UserError: when the global batch does not divide over the canary's processes.
    """
    started = perf_counter()
    store = RunStore(config.storage.uri, plan.run_id)
    store.store.ensure_bucket(store.prefix)
    root = _place(store, config)
    store.store.ensure_bucket(S3Location.parse(config.checkpoint.uri))
    num_steps = config.canary.num_steps(plan.total_steps or _total_steps(config))
    real = _job(config, config_text, plan, root / "first-steps", num_steps)
    compressed = _job(config, config_text, plan, root / "compressed", None)
    spent: list[float] = []
    try:
        start(
            config,
            config_text,
            [compressed, real],
            "canary",
            max_restarts=MAX_RESTARTS,
            on_line=on_line,
            on_usage=spent.append,
        )
        _refuse_interrupted(store, compressed, real)
        report = _judge(config, plan, store, real, compressed, num_steps)
    except LaunchError as error:
        report = _failed(config, plan, error, num_steps, real.trace_uri)
    except InterruptedRunError:
        store.store.delete(root / OPEN)
        raise
    report = report.model_copy(update={"seconds": perf_counter() - started, "gpu_hours": sum(spent) / 3600})
    store.put("canary", report)
    for location in list(store.store.list(store.prefix / "canary")):
        of_earlier_try = not str(location).startswith(f"{root}/")
        done_with = (real.checkpoint_uri, compressed.checkpoint_uri, str(root / OPEN))
        if of_earlier_try or str(location).startswith(done_with):
            store.store.delete(location)
    return report


def _place(store: RunStore, config: RunConfig) -> S3Location:
    """Where this try writes: a fresh place, for it neither resumes nor reads what a try before it left.

    But where the step before was lost, its TrainJob may run on, and is followed in the place that it was given: one
    that is still marked as open.
    """
    root = store.prefix / "canary"
    if config.distributed.launcher == "local":
        return root / uuid4().hex[:8]
    opened = [location for location in store.store.list(root) if location.name == OPEN]
    if opened:
        return S3Location(root.bucket, opened[-1].key.removesuffix(f"/{OPEN}"))
    place = root / uuid4().hex[:8]
    store.store.write(place / OPEN, b"{}", "application/json")
    return place


def _refuse_interrupted(store: RunStore, *jobs: Job) -> None:
    for job in jobs:
        result = TrainingResult.from_json(store.store.read(S3Location.parse(job.result_uri)))
        if result.status == "interrupted":
            raise InterruptedRunError


def _total_steps(config: RunConfig) -> int:
    """Updates of a run that counts in epochs, from the length of its training split."""
    task = load_task(config.task)
    try:
        dataset: Any = task.dataset("train")
        return config.total_steps(len(dataset))
    except Exception as error:
        cause = shorten(f"{type(error).__name__}: {error}", MESSAGE_CHARACTERS, placeholder=" …")
        raise UserError(f"task.factory = {config.task.factory}: dataset('train') failed: {cause}") from error


def accumulation(config: RunConfig) -> int:
    """Accumulation steps that keep the global batch and at most the full run's micro-batch.

    Raises:
        UserError: when the global batch does not divide over the canary's processes.
    """
    problem = canary_batch(config)
    if problem is not None:
        raise UserError(problem.line)
    world_size, batch = config.canary.world_size, config.training.batch_size
    wanted = -(-config.distributed.world_size * config.training.grad_accumulation // world_size)
    while batch % (world_size * wanted):
        wanted += 1
    return wanted


def _job(config: RunConfig, config_text: str, plan: RunPlan, root: S3Location, num_steps: int | None) -> Job:
    """The first `num_steps` of the real schedule with the restart drill, or the compressed schedule without one.

    The drill needs exactly one checkpoint before the kill, with a step between them.
    """
    drill = num_steps is not None and num_steps >= MIN_DRILL_STEPS
    return Job(
        run_id=plan.run_id,
        config_text=config_text,
        seed=config.seed,
        init_uri=plan.init_uri if num_steps else "",
        init_digest=plan.init_digest if num_steps else "",
        checkpoint_uri=str(root / "checkpoints"),
        trace_uri=str(root / "trace"),
        result_uri=str(root / "result.json"),
        stop_at_step=num_steps,
        total_steps=None if num_steps else COMPRESSED_STEPS,
        checkpoint_every=(num_steps + 1) // 2 if num_steps else COMPRESSED_STEPS,
        accumulation=accumulation(config),
        kill_at_step=num_steps - 1 if num_steps and drill else None,
    )


def _judge(
    config: RunConfig, plan: RunPlan, store: RunStore, real: Job, compressed: Job, num_steps: int
) -> CanaryReport:
    trace, mechanics = read_trace(real.trace_uri), read_trace(compressed.trace_uri)
    if config.training.precision != "fp16":
        trace = trace.assign(applied=True)  # only fp16 leaves updates out to find its loss scale
    untrained = mechanics[mechanics["step"] == 0] if plan.init_uri else None
    result = TrainingResult.from_json(store.store.read(S3Location.parse(real.result_uri)))
    world_size = config.canary.world_size
    seconds_per_step = _seconds_per_step(trace)
    total_steps = result.total_steps
    hours = seconds_per_step * total_steps * world_size / 3600
    projected_seconds = hours * 3600 / config.distributed.world_size
    judged = [
        checks.finite(trace, "first steps"),
        checks.falling_loss(trace, untrained),
        checks.bounded_gradient(trace, untrained),
        checks.on_plan(trace, "first steps"),
        checks.on_plan(mechanics, "compressed schedule"),
        checks.whole_schedule(mechanics, COMPRESSED_STEPS),
        checks.ranks_agree(trace, world_size),
        _restore_check(read_trace(real.trace_uri, every_attempt=True), result, real),
        checks.within_budget(hours, config.budget.max_gpu_hours),
    ]
    verdict = overall(judged)
    reason = next((check.reason for check in judged if check.verdict == verdict and check.reason), "")
    projection = f"projected: {_duration(projected_seconds)}, {hours:.2g} GPU-h"
    return CanaryReport(
        run_id=plan.run_id,
        summary=f"{verdict}   {projection if verdict == 'PASS' else reason}",
        verdict=verdict,
        checks=judged,
        steps=num_steps,
        world_size=world_size,
        device=result.device,
        seconds_per_step=seconds_per_step,
        projected_seconds=projected_seconds,
        projected_gpu_hours=hours,
        trace_uri=real.trace_uri,
        save_seconds=result.save_seconds,
    )


def _restore_check(trace: "pd.DataFrame", result: TrainingResult, real: Job) -> Check:
    resumed = next((event.step for event in result.events if event.kind == "resumed"), None)
    if real.kill_at_step is None:
        fix = f"canary.min_steps: {MIN_DRILL_STEPS} or more"
        return _undecided("not run", f"{real.stop_at_step} steps are too few for it → {fix}")
    if resumed is None and result.status != "completed":
        return _undecided("not reached", f"the run ended before the kill: {result.reason}")
    first, again = trace[trace["attempt"] == 1], trace[trace["attempt"] > 1]
    return checks.restored(first, again, resumed, real.kill_at_step)


def _undecided(figure: str, reason: str) -> Check:
    return Check(
        name=checks.RESTORE_CHECK,
        verdict="INCONCLUSIVE",
        figure=figure,
        threshold=checks.RESTORE_THRESHOLD,
        reason=reason,
    )


def _failed(config: RunConfig, plan: RunPlan, error: LaunchError, num_steps: int, trace_uri: str) -> CanaryReport:
    outside = error.exit_code == ExitCode.OUTSIDE
    failed = Check(
        name="workers run",
        verdict="INCONCLUSIVE" if outside else "FAIL",
        figure="failed",
        threshold="end well",
        reason=str(error),
    )
    return CanaryReport(
        run_id=plan.run_id,
        summary=f"{failed.verdict}   {failed.reason}",
        verdict=failed.verdict,
        checks=[failed],
        steps=num_steps,
        world_size=config.canary.world_size,
        device="unknown",
        seconds_per_step=0.0,
        projected_seconds=0.0,
        projected_gpu_hours=0.0,
        trace_uri=trace_uri,
    )


def _seconds_per_step(trace: "pd.DataFrame") -> float:
    """The slowest rank's median, without the first tenth of the steps, which warm caches up; 0 without a step."""
    if trace.empty:
        return 0.0
    steady = trace[trace["step"] >= trace["step"].max() // 10]
    return float(steady.groupby("rank")["step_seconds"].median().max())


def _duration(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004
