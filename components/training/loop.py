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
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import Subset

from ..errors import UserError
from ..telemetry import Detection, StepRecord
from .batches import loader, to_device
from .parallel import NOT_GATHERED, evaluating
from .progress import Progress
from .saving import save, wait_until_saved
from .session import Session
from .sync_guard import Stop

EVAL_BATCH_SIZE = 256
SMALLEST_LOSS_SCALE = 1.0
"""Where fp16's gradients overflow at this scale too, they are not small numbers that need one."""


def train(session: Session, progress: Progress) -> None:
    """Run updates from the session's step to its end, with validations and checkpoints on the way.

    Raises:
        Stop: on every rank alike. Of a divergence or an LR sync error the update is not applied; else all are that
            came before the step that it names.
        SyncError: when replicas differ.
        CheckpointError: when a save failed that was begun before.
    """
    batches = session.batches()
    while session.step < session.end_step:
        session.saver.check()
        _drill(session)
        skipped_before = session.skipped_updates
        record, stop = _update(session, batches)
        session.trace.append(record)
        if stop is not None and stop.kind in ("lr_sync_error", "diverged"):
            progress.observe(record)
            raise stop
        session.step += 1
        progress.observe(record)
        session.throttle.observe(record.step_seconds, uploading=session.saver.busy)
        if session.skipped_updates > skipped_before:
            detail = f"loss {record.loss:g}, gradient norm {record.grad_norm:g} on rank {session.rank}"
            session.note(progress, Detection(record.step, "update_skipped", detail))
        _periodic(session, progress)
        if stop is not None and session.step < session.end_step:
            raise Stop(stop.kind, session.step, stop.detail)
        _check_budget(session, record.step_seconds)


def _update(session: Session, batches: Iterator[Any]) -> tuple[StepRecord, Stop | None]:
    """One update: forward and backward over the micro-batches, clip, step; and why all ranks stop, if they do."""
    started = perf_counter()
    step = session.step
    planned = session.guard.check_rates(step, session.schedule, session.optimizer)
    rate = float(session.optimizer.param_groups[0]["lr"])
    session.optimizer.zero_grad(set_to_none=True)
    seen = _forward_backward(session, batches)
    session.scaler.unscale_(session.optimizer)
    norm, carried = session.parallel.clip(_limit(session))
    total = seen.item()
    heard = session.guard.hear(total, carried)
    finite = heard.finite and math.isfinite(norm)
    if not finite and not _may_skip(session, heard.finite):
        figures = f"loss {total:g}, gradient norm {norm:g} at step {step} on rank {session.rank}"
        session.guard.ask_to_stop("diverged", figures)
        heard = heard._replace(stop=True)
    stop = session.guard.agreed_stop(step, finite=math.isfinite(total)) if heard.stop else None
    applied = finite and not (stop is not None and stop.kind in ("lr_sync_error", "diverged"))
    if applied:
        session.scaler.step(session.optimizer)
    session.scaler.update()
    session.scheduler.step()
    samples = session.order.samples_per_step
    return StepRecord(step, rate, planned, total, norm, perf_counter() - started, samples, applied), stop


def _forward_backward(session: Session, batches: Iterator[Any]) -> Tensor:
    """The gradients of a step, over its micro-batches; returns its mean loss, a scalar without gradient."""
    session.phase = "loss"
    accumulation = session.order.accumulation
    total: Tensor | None = None
    for number, batch in enumerate(islice(batches, accumulation), 1):
        last = number == accumulation
        session.parallel.before_forward(reduces=last)
        with session.autocast():
            loss = _scalar(session.task.loss(session.parallel.model, batch))
        if accumulation > 1:
            loss = loss / accumulation
        total = loss.detach() if total is None else total + loss.detach()
        carried = session.guard.numbers(total) if last else None
        session.phase = "update"
        session.parallel.backward(session.scaler.scale(loss), carried)
    assert total is not None
    return total


def _limit(session: Session) -> float:
    limit = session.config.optimizer.grad_clip_norm
    return math.inf if limit is None else limit


def _may_skip(session: Session, finite_loss: bool) -> bool:
    """Whether an update without finite gradients is left out: an overflow of fp16, or one that the config allows.

    Every rank decides alike, from what the reduction brought to all.
    """
    if finite_loss and session.scaler.is_enabled():
        return session.scaler.get_scale() > SMALLEST_LOSS_SCALE
    session.skipped_updates += 1
    return session.skipped_updates <= session.config.training.max_skipped_updates


def _scalar(loss: object) -> torch.Tensor:
    if isinstance(loss, DTensor):
        raise UserError(NOT_GATHERED)
    if not isinstance(loss, torch.Tensor) or loss.ndim != 0 or not loss.requires_grad:
        kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UserError(f"the task's loss() gave {kind}, which is not a scalar with a gradient → return a mean loss")
    return loss


def _periodic(session: Session, progress: Progress) -> None:
    """Validate, compare replicas and begin to save where it is due, and always at the end."""
    done = session.step
    if done == session.end_step or done % session.config.training.eval_every_steps == 0:
        session.phase = "validation"
        session.guard.compare_replicas(done, session.module)
        session.metrics = validate(session)
        if session.rank == 0:
            session.trace.validation(done, session.metrics)
            print(_progress_line(session, progress), flush=True)  # noqa: T201 - the step's log
        if done < session.end_step:
            _decide(session, progress)
    at_end = done == session.end_step
    if at_end or done % session.save_every == 0:
        # What is evaluated and promoted is the checkpoint at the end.
        save(session, progress, may_skip=not at_end, sealed=at_end)


def _decide(session: Session, progress: Progress) -> None:
    """What the validation asks for: a restart or a reduction of the rate, or the end."""
    event, reason, early_end = session.rules.decide(session.step, session.metrics)
    if event is not None:
        session.scheduler.add(event)
        detail = f"{reason}: the rate is {session.schedule.lr(session.step):g} from here"
        session.note(progress, Detection(event.step, event.kind, detail))
    if early_end:
        session.end_step, session.ended_early = session.step, True
        session.note(progress, Detection(session.step, "early_stopped", early_end))


def validate(session: Session) -> dict[str, float]:
    """Each score's mean over the validation split, over all ranks; the same on every rank."""
    mine = range(session.rank, len(session.val_set), session.world_size)
    # Every rank takes as many samples, those beyond its own for nothing: under FSDP2 a forward pass is a collective.
    taken = [*mine, *[0] * (math.ceil(len(session.val_set) / session.world_size) - len(mine))]
    sums: dict[str, float] = {}
    with evaluating(session.module):
        for number, batch in enumerate(loader(Subset(session.val_set, taken), batch_size=EVAL_BATCH_SIZE)):
            with session.autocast():
                scores = session.task.scores(session.module, to_device(batch, session.device))
            counted = max(0, len(mine) - number * EVAL_BATCH_SIZE)
            for name, values in scores.items():
                sums[name] = sums.get(name, 0.0) + values[:counted].double().sum().item()
    # As objects, by name: a task may give its scores in any order.
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
    """The canary's restart drill: a real SIGKILL, once, when the checkpoint before it is committed."""
    if session.job.kill_at_step != session.step or session.attempt != 1:
        return
    wait_until_saved(session)
    if session.rank == session.world_size - 1:
        session.trace.close()
        os.kill(os.getpid(), signal.SIGKILL)


def _progress_line(session: Session, progress: Progress) -> str:
    metrics = " ".join(f"val_{name}={value:.4f}" for name, value in session.metrics.items())
    rate = float(session.optimizer.param_groups[0]["lr"])
    figures = f"lr={rate:.6g} loss={progress.recent_loss():.4f} {metrics}"
    return f"step {session.step}/{session.total_steps} {figures}"


__all__ = ["Stop", "train", "validate"]
