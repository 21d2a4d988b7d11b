"""The loop: one optimizer update a step, the same steps on every rank."""

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Subset

from ..errors import UserError
from ..telemetry import Detection, StepRecord
from ..telemetry.detectors import detectors
from .batches import batch_size, loader, to_device
from .session import Session
from .sync_guard import Stop

LOSS_WINDOW_FRACTION = 0.1
EVAL_BATCH_SIZE = 256


@dataclass
class Progress:
    """What the loop saw on this rank."""

    losses: list[float] = field(default_factory=list)
    max_lr_deviation: float = 0.0
    detections: list[Detection] = field(default_factory=list)
    save_seconds: float = 0.0

    def recent_loss(self) -> float:
        """Mean over the last tenth of the steps; NaN where there were none."""
        window = self.losses[-max(1, round(len(self.losses) * LOSS_WINDOW_FRACTION)) :]
        return sum(window) / len(window) if window else math.nan


def train(session: Session, progress: Progress) -> None:
    """Run updates from the session's step to its end, with validations and checkpoints on the way.

    Raises:
        Stop: on every rank alike, before the update that it names, which is not applied.
        SyncError: when replicas differ.
    """
    rules = detectors()
    batches = session.batches()
    while session.step < session.end_step:
        step = session.step
        _drill(session)
        record = _update(session, batches)
        session.step += 1
        session.trace.append(record)
        progress.losses.append(record.loss)
        deviation = abs(record.lr - record.lr_planned) / max(record.lr_planned, 1e-300)
        progress.max_lr_deviation = max(progress.max_lr_deviation, deviation if record.lr != record.lr_planned else 0.0)
        for rule in rules:
            detection = rule.observe(record)
            if detection is not None:
                progress.detections.append(detection)
        _periodic(session, step + 1, progress)
        _check_budget(session, record.step_seconds)


def _update(session: Session, batches: Iterator[Any]) -> StepRecord:
    """One update: forward and backward over the micro-batches, clip, step; returns its record.

    Raises:
        Stop: when the gradient norm is not finite on the ranks, whatever made it so.
    """
    started = perf_counter()
    step, accumulation = session.step, session.order.accumulation
    rng = torch.get_rng_state()
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
    if not math.isfinite(norm):
        torch.set_rng_state(rng)
        session.trace.append(StepRecord(step, _rate(session), planned, total, norm, perf_counter() - started, samples))
        raise session.guard.agreed_stop(step, total, norm)
    rate = _rate(session)
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


def _periodic(session: Session, done: int, progress: Progress) -> None:
    """After `done` updates: validate, compare replicas and save where it is due, and always at the end."""
    last = done == session.end_step
    if last or done % session.config.training.eval_every_steps == 0:
        session.guard.compare_replicas(done, session.module)
        session.metrics = validate(session)
        if session.rank == 0:
            session.trace.validation(done, session.metrics)
            print(_progress_line(session, done, progress), flush=True)  # noqa: T201 - the step's log
    every = session.job.checkpoint_every or session.config.checkpoint.every_steps
    if last or done % every == 0:
        session.trace.flush()
        save(session, progress)


def save(session: Session, progress: Progress) -> None:
    """Write a checkpoint, unless this step has one; apply retention on rank 0, and note how long the save took."""
    if session.last_checkpoint is not None and session.last_checkpoint.step == session.step:
        return
    started = perf_counter()
    session.save()
    progress.save_seconds = max(progress.save_seconds, perf_counter() - started)
    if session.rank == 0:
        keep, evaluation = session.config.checkpoint, session.config.evaluation
        session.checkpoints.retain(keep.keep_last, keep.keep_best, evaluation.metric, evaluation.mode)


def validate(session: Session) -> dict[str, float]:
    """Each score's mean over the validation split, over all ranks; the same on every rank."""
    dataset: Any = session.task.dataset("val")
    mine = Subset(dataset, range(session.rank, len(dataset), session.world_size))
    sums: dict[str, float] = {}
    session.module.eval()
    with torch.inference_mode():
        for batch in loader(mine, batch_size=EVAL_BATCH_SIZE):
            scores = session.task.scores(session.module, to_device(batch, session.device))
            for name, values in scores.items():
                sums[name] = sums.get(name, 0.0) + values.double().sum().item()
    session.module.train()
    names = sorted(sums)
    totals = torch.tensor([sums[name] for name in names], dtype=torch.float64, device=session.device)
    dist.all_reduce(totals)
    return {name: value / len(dataset) for name, value in zip(names, totals.tolist(), strict=True)}


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


def _progress_line(session: Session, done: int, progress: Progress) -> str:
    metrics = " ".join(f"val_{name}={value:.4f}" for name, value in session.metrics.items())
    lr = _rate(session)
    return f"step {done}/{session.total_steps} lr={lr:.6g} loss={progress.recent_loss():.4f} {metrics}"


__all__ = ["Progress", "Stop", "save", "train", "validate"]
