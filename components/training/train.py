"""The training of a run, as the step and the command line call it."""

from collections.abc import Callable
from time import perf_counter

from ..config import RunConfig
from ..config.plan import RunPlan
from ..errors import UserError
from ..storage import RunStore, S3Location, S3NotFoundError, S3Store
from .job import Job
from .launch import InterruptedRunError, LaunchError, launch
from .result import Event, TrainingResult

MAX_RESTARTS = 2
"""Restarts of all workers after one was lost, each from the newest checkpoint."""


def run_training(
    config: RunConfig,
    config_text: str,
    plan: RunPlan,
    *,
    resume: str = "auto",
    on_line: Callable[[str], None] = print,
) -> TrainingResult:
    """Train to the end of the schedule, or to where the ranks agreed to stop; stores and returns the result.

    Args:
        config: the run's config.
        config_text: its YAML, for the workers.
        plan: of validate_config; its seed and run are used.
        resume: `auto` continues from the newest checkpoint of this run that verifies, `never` starts anew, a URI
            names a checkpoint.
        on_line: gets each line that the workers print.

    Raises:
        UserError: for a launcher that this version has not.
        InterruptedRunError: after SIGTERM or SIGINT, once the workers have saved.
    """
    if config.distributed.launcher != "local":
        raise UserError(f"distributed.launcher = {config.distributed.launcher}: not available in this version → local")
    run_store = RunStore(config.storage.uri, plan.run_id)
    run_store.store.ensure_bucket(S3Location.parse(config.checkpoint.uri))
    job = Job(
        run_id=plan.run_id,
        config_text=config_text,
        seed=int(plan.seed),
        checkpoint_uri=config.checkpoint.uri,
        trace_uri=str(run_store.prefix / "trace"),
        result_uri=str(run_store.prefix / "training.json"),
        resume=resume,
    )
    earlier = run_store.find("training", TrainingResult)
    if resume == "auto" and earlier is not None and earlier.status == "completed":
        return earlier
    started = perf_counter()
    try:
        launch([job], config.distributed.procs_per_node, MAX_RESTARTS, on_line)
        result = run_store.get("training", TrainingResult)
    except (LaunchError, S3NotFoundError) as error:
        result = _failed(job, config, plan, str(error))
    except InterruptedRunError:
        saved = run_store.find("training", TrainingResult)
        if saved is not None:
            _account(run_store, saved, earlier, started, config)
        raise
    return _account(run_store, result, earlier, started, config)


def _account(
    run_store: RunStore,
    result: TrainingResult,
    earlier: TrainingResult | None,
    started: float,
    config: RunConfig,
) -> TrainingResult:
    """Put the cost of every attempt into the result: this launch's wall time, and what earlier launches reported."""
    seconds = perf_counter() - started
    hours = seconds * config.distributed.world_size / 3600 + (earlier.gpu_hours if earlier else 0.0)
    accounted = result.model_copy(update={"seconds": seconds, "gpu_hours": hours})
    run_store.put("training", accounted)
    return accounted


def _failed(job: Job, config: RunConfig, plan: RunPlan, reason: str) -> TrainingResult:
    attempts = sum(1 for _ in S3Store().list(S3Location.parse(job.result_uri + ".attempts")))
    return TrainingResult(
        run_id=plan.run_id,
        summary=f"failed: {reason}",
        verdict="FAIL",
        reason=reason,
        status="failed",
        attempts=max(1, attempts),
        final_step=0,
        total_steps=plan.total_steps or 0,
        train_loss=float("nan"),
        val_metrics={},
        max_lr_deviation=0.0,
        lr_sync_errors=0,
        anomalous=False,
        checkpoint_uri="",
        checkpoint_digest="",
        trace_uri=job.trace_uri,
        world_size=config.distributed.world_size,
        device="unknown",
        train_seconds=0.0,
        gpu_hours=0.0,
        events=[Event(step=0, kind="failed", detail=reason)],
    )
