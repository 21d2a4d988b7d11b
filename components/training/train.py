"""The training of a run, as the step and the command line call it."""

from collections.abc import Callable
from time import perf_counter
from typing import Literal

from ..checkpoint import CheckpointError, CheckpointStore
from ..checkpoint.reading import read_manifest
from ..config import RunConfig
from ..config.document import Document
from ..config.plan import RunPlan
from ..errors import ExitCode, UserError
from ..storage import RunStore, S3Location, S3NotFoundError
from .attempts import last_attempt
from .job import Job
from .launch import InterruptedRunError, LaunchError
from .result import Event, TrainingResult, grace_seconds
from .start import start

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
            names a checkpoint. Workers that are started again by a lost one continue from what this call saved.
        on_line: gets each line that the workers print.

    Raises:
        UserError: for a run that was trained under another config or seed, a checkpoint to resume from that is none,
            or nodes that the launcher has not.
        InterruptedRunError: after SIGTERM or SIGINT here or on any rank, once the workers have saved.
        S3Error: when S3 cannot be reached from here.
    """
    run_store = RunStore(config.storage.uri, plan.run_id)
    run_store.store.ensure_bucket(run_store.prefix)
    run_store.store.ensure_bucket(S3Location.parse(config.checkpoint.uri))
    earlier = run_store.find("training", TrainingResult)
    _refuse_another_run(earlier, plan)
    if resume == "auto" and earlier is not None and earlier.status == "completed":
        return earlier
    if resume not in ("auto", "never"):
        _require_checkpoint(resume)
    job = _job(config, config_text, plan, run_store, resume)
    started, spent = perf_counter(), list[float]()
    try:
        start(
            config,
            config_text,
            [job],
            "train",
            max_restarts=MAX_RESTARTS,
            on_line=on_line,
            grace_seconds=_grace_seconds(run_store, earlier),
            on_usage=spent.append,
        )
        result = run_store.get("training", TrainingResult)
    except LaunchError as error:
        result = _failed(job, config, plan, error)
    except InterruptedRunError:
        saved = run_store.find("training", TrainingResult)
        if saved is not None and (earlier is None or saved.created != earlier.created):
            _account(run_store, saved, earlier, started, sum(spent))
        raise
    accounted = _account(run_store, result, earlier, started, sum(spent))
    if accounted.status == "interrupted":
        raise InterruptedRunError
    return accounted


class _Measured(Document, extra="ignore"):
    """What the training reads of the canary's report: that room is above this one."""

    save_seconds: float = 0.0


def _grace_seconds(run_store: RunStore, earlier: TrainingResult | None) -> int | None:
    """What a SIGTERM has to leave time for, from the longest save of the canary and of earlier launches."""
    measured = [one.save_seconds for one in (earlier, run_store.find("canary", _Measured)) if one is not None]
    return grace_seconds(max(measured)) if measured else None


def _require_checkpoint(uri: str) -> None:
    """Find out before any process starts that there is nothing to go on from."""
    try:
        read_manifest(uri)
    except (S3NotFoundError, CheckpointError) as error:
        raise UserError(f"--resume {uri}: {error} → convergate checkpoints list URI shows what there is") from error


def _refuse_another_run(earlier: TrainingResult | None, plan: RunPlan) -> None:
    if earlier is None:
        return
    mine, other = (plan.training_digest, plan.seed), (earlier.training_digest, earlier.seed)
    if mine != other:
        raise UserError(
            f"run {plan.run_id} was trained under config {other[0][:12]}… and seed {other[1]}, this is"
            f" {mine[0][:12]}… and {mine[1]} → another name: --run NAME"
        )


def _job(config: RunConfig, config_text: str, plan: RunPlan, run_store: RunStore, resume: str) -> Job:
    result_uri = str(run_store.prefix / "training.json")
    checkpoints = CheckpointStore(config.checkpoint.uri, plan.run_id)
    return Job(
        run_id=plan.run_id,
        config_text=config_text,
        seed=int(plan.seed),
        checkpoint_uri=config.checkpoint.uri,
        trace_uri=str(run_store.prefix / "trace"),
        result_uri=result_uri,
        oldest_attempt=1 if resume == "auto" else last_attempt(result_uri, checkpoints) + 1,
        resume_from=None if resume in ("auto", "never") else resume,
        init_uri=plan.init_uri,
        init_digest=plan.init_digest,
    )


def _account(
    run_store: RunStore, result: TrainingResult, earlier: TrainingResult | None, started: float, device_seconds: float
) -> TrainingResult:
    """Put the cost of every attempt into the result: this launch's, and what earlier launches reported."""
    hours = device_seconds / 3600 + (earlier.gpu_hours if earlier else 0.0)
    accounted = result.model_copy(update={"seconds": perf_counter() - started, "gpu_hours": hours})
    run_store.put("training", accounted)
    return accounted


def _failed(job: Job, config: RunConfig, plan: RunPlan, error: LaunchError) -> TrainingResult:
    """The result of workers that could not agree on one."""
    reason = str(error)
    failures: dict[ExitCode, Literal["user", "outside"]] = {ExitCode.USAGE: "user", ExitCode.OUTSIDE: "outside"}
    return TrainingResult(
        run_id=plan.run_id,
        summary=reason,
        verdict="FAIL",
        reason=reason,
        status="failed",
        failure=failures.get(error.exit_code, ""),
        training_digest=plan.training_digest,
        seed=plan.seed,
        attempts=max(1, last_attempt(job.result_uri, CheckpointStore(job.checkpoint_uri, job.run_id))),
        final_step=0,
        total_steps=plan.total_steps or 0,
        train_loss=float("nan"),
        val_metrics={},
        max_lr_deviation=0.0,
        lr_sync_errors=0,
        anomalous=False,
        untreated=[],
        checkpoint_uri="",
        checkpoint_digest="",
        init_uri=plan.init_uri,
        init_digest=plan.init_digest,
        trace_uri=job.trace_uri,
        world_size=config.distributed.world_size,
        device="unknown",
        train_seconds=0.0,
        gpu_hours=0.0,
        events=[Event(step=0, kind="failed", detail=reason)],
    )
