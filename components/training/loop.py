"""The loop: one optimizer update a step, the same steps on every rank."""

import math
import os
import signal
from collections.abc import Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Subset

from ..errors import UserError
from ..telemetry import StepRecord
from .batches import batch_size, loader, to_device
from .progress import Progress
from .session import Session
from .sync_guard import Stop

EVAL_BATCH_SIZE = 256


def train(session: Session, progress: Progress) -> None:
    """Run updates from the session's step to its end, with validations and checkpoints on the way.

    Raises:
        Stop: on every rank alike, before the update that it names, which is not applied.
        SyncError: when replicas differ.
    """
    batches = session.batches()
    while session.step < session.end_step:
        _drill(session)
        record = _update(session, batches)
        session.step += 1
        session.trace.append(record)
        progress.observe(record)
        _periodic(session, progress)
        _check_budget(session, record.step_seconds)


def _update(session: Session, batches: Iterator[Any]) -> StepRecord:
    """One update: forward and backward over the micro-batches, clip, step; returns its record.

    Raises:
        Stop: when the gradient norm is not finite on the ranks, whatever made it so.
    """
    started = perf_counter()
    step, accumulation = session.step, session.order.accumulation
    go_back = session.before_update()
    planned = session.guard.check_rate(step, session.optimizer)
    session.optimizer.zero_grad(set_to_none=True)
    total, samples = 0.0, 0
    for number, batch in enumerate(islice(batches, accumulation)):
        session.model.require_backward_grad_sync = number == accumulation - 1
        with session.autocast():
            loss = _scalar(session.task.loss(session.model, batch))
        (session.guard.poisoned(loss) / accumulation).backward()  # type: ignore[no-untyped-call]
        total += loss.item() / accumulation
        samples += batch_size(batch)
    limit = session.config.optimizer.grad_clip_norm
    norm = torch.nn.utils.clip_grad_norm_(session.module.parameters(), math.inf if limit is None else limit).item()
    rate = _rate(session)
    if not math.isfinite(norm):
        go_back()
        stop = session.guard.agreed_stop(step, total, norm)
        if stop.kind in ("diverged", "lr_sync_error"):
            session.trace.append(StepRecord(step, rate, planned, total, norm, perf_counter() - started, samples))
        raise stop
    session.optimizer.step()
    session.scheduler.step()
    return StepRecord(step, rate, planned, total, norm, perf_counter() - started, samples)


def _scalar(loss: object) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.ndim != 0 or not loss.requires_grad:
        kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UserError(f"the task's loss() gave {kind}, which is not a scalar with a gradient → return a mean loss")
    return loss


def _rate(session: Session) -> float:
    return float(session.optimizer.param_groups[0]["lr"])


def _periodic(session: Session, progress: Progress) -> None:
    """Validate, compare replicas and save where it is due, and always at the end."""
    done = session.step
    last = done == session.end_step
    if last or done % session.config.training.eval_every_steps == 0:
        session.guard.compare_replicas(done, session.module)
        session.metrics = validate(session)
        if session.rank == 0:
            session.trace.validation(done, session.metrics)
            print(_progress_line(session, progress), flush=True)  # noqa: T201 - the step's log
    every = session.job.checkpoint_every or session.config.checkpoint.every_steps
    if last or done % every == 0:
        session.trace.flush()
        save(session, progress)


def save(session: Session, progress: Progress) -> None:
    """Write a checkpoint, unless this step has one; apply retention on rank 0, and note how long the save took."""
    if session.last_checkpoint is not None and session.last_checkpoint.step == session.step:
        return
    started = perf_counter()
    session.save(progress)
    progress.save_seconds = max(progress.save_seconds, perf_counter() - started)
    if session.rank == 0:
        keep, evaluation = session.config.checkpoint, session.config.evaluation
        session.checkpoints.retain(keep.keep_last, keep.keep_best, evaluation.metric, evaluation.mode)


def validate(session: Session) -> dict[str, float]:
    """Each score's mean over the validation split, over all ranks; the same on every rank."""
    session.share_buffers()
    mine = Subset(session.val_set, range(session.rank, len(session.val_set), session.world_size))
    sums: dict[str, float] = {}
    session.module.eval()
    with torch.inference_mode():
        for batch in loader(mine, batch_size=EVAL_BATCH_SIZE):
            scores = session.task.scores(session.module, to_device(batch, session.device))
            for name, values in scores.items():
                sums[name] = sums.get(name, 0.0) + values.double().sum().item()
    session.module.train()
    # As objects: a rank without samples knows no names.
    everyone: list[dict[str, float]] = [sums] * session.world_size
    dist.all_gather_object(everyone, sums)
    names = sorted({name for rank_sums in everyone for name in rank_sums})
    return {name: sum(each.get(name, 0.0) for each in everyone) / len(session.val_set) for name in names}


def _check_budget(session: Session, step_seconds: float) -> None:
    session.device_seconds += step_seconds * session.world_size
    limit = session.config.budget.max_gpu_hours
    if session.device_seconds > limit * 3600:
        session.guard.ask_to_stop("budget", f"budget.max_gpu_hours = {limit:g} is spent at step {session.step}")


def _drill(session: Session) -> None:
    """The canary's restart drill: a real SIGKILL, once."""
    job = session.job
    if job.kill_at_step == session.step and session.attempt == 1 and session.rank == session.world_size - 1:
        session.trace.close()
        os.kill(os.getpid(), signal.SIGKILL)


def _progress_line(session: Session, progress: Progress) -> str:
    metrics = " ".join(f"val_{name}={value:.4f}" for name, value in session.metrics.items())
    figures = f"lr={_rate(session):.6g} loss={progress.recent_loss():.4f} {metrics}"
    return f"step {session.step}/{session.total_steps} {figures}"


__all__ = ["Stop", "save", "train", "validate"]
