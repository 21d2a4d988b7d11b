"""Saving: a copy of the state while the training waits, its upload while it goes on, and retention after the commit."""

from time import perf_counter
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..checkpoint import CheckpointRef
from ..checkpoint.reading import MODEL_PREFIX
from ..checkpoint.retention import Retention, retain
from ..telemetry import Detection
from .optimizer import optimizer_state
from .parallel import share_buffers
from .progress import Progress
from .random_state import RandomState
from .session import Session

TOLD_SECONDS = 2.0
"""A save that holds the training up for longer, because the one before is still on its way, says so."""
OPTIMIZER_PREFIX = "optim."
RNG_PREFIX = "rng."


def save(session: Session, progress: Progress, *, may_skip: bool = False, sealed: bool = False) -> None:
    """Begin to write a checkpoint, unless this step has one; every rank calls it.

    Each rank reports its part once the trace until here is written, too.

    Args:
        session: of this rank.
        progress: what this rank saw.
        may_skip: leave it out, which is an event, where the one before is not written yet and the config says so.
        sealed: with a SHA-256 of each part, for a checkpoint that others will refer to.

    Raises:
        CheckpointError: when the save before failed.
    """
    if session.saved_step == session.step:
        return
    session.phase = "saving"
    share_buffers(session.module)
    progress.save_seconds = max(progress.save_seconds, session.saver.longest_seconds)
    everyone: list[Progress] = [progress] * session.world_size
    dist.all_gather_object(everyone, progress)
    skip_if_busy = may_skip and session.config.checkpoint.when_busy == "skip"
    if not skip_if_busy:
        session.throttle.lift()
    started = perf_counter()
    begun = session.saver.begin(
        _tensors(session),
        attempt=session.attempt,
        step=session.step,
        training_digest=session.digests.training,
        state=_state(session, Progress.merged(everyone)),
        metrics=session.metrics,
        previous=session.newest_uri or None,
        sealed=sealed,
        skip_if_busy=skip_if_busy,
        before_report=session.trace.hand_over(),
        after_commit=lambda _: _retain(session),
    )
    waited = perf_counter() - started
    if session.rank == 0 and waited > TOLD_SECONDS:
        print(f"step {session.step} waited {waited:.0f} s for the checkpoint before", flush=True)  # noqa: T201 - the log
    if not begun:
        detail = "no checkpoint of this step: the one before was not written yet"
        session.note(progress, Detection(session.step, "save_skipped", detail))
        return
    session.saved_step = session.step
    session.newest_uri = CheckpointRef(session.attempt, session.step, session.checkpoints.root).uri
    session.throttle.start(session.saver.staged_bytes, session.save_every)


def wait_until_saved(session: Session) -> None:
    """Wait for the save in flight, and retention after it, on all ranks; every rank calls it.

    Raises:
        CheckpointError: when it failed.
    """
    session.phase = "saving"
    session.throttle.lift()
    session.saver.drain()


def _tensors(session: Session) -> dict[str, Tensor]:
    tensors = {f"{MODEL_PREFIX}{name}": tensor for name, tensor in session.module.state_dict().items()}
    for name, tensor in optimizer_state(session.optimizer, session.module).items():
        tensors[f"{OPTIMIZER_PREFIX}{name}"] = tensor
    states = RandomState.now(session.device).to_tensors()
    return tensors | {f"{RNG_PREFIX}{session.rank}.{name}": tensor for name, tensor in states.items()}


def _state(session: Session, progress: Progress) -> dict[str, Any]:
    """What is no tensor."""
    return {
        "scheduler": session.scheduler.state_dict(),
        "seed": session.job.seed,
        "scaler": session.scaler.state_dict(),
        "rules": session.rules.to_state(),
        "skipped_updates": session.skipped_updates,
        "ended_early": session.ended_early,
        "init_uri": session.init_uri,
        "init_digest": session.init_digest,
        "device_seconds": session.device_seconds,
        "progress": progress.to_state(),
    }


def _retain(session: Session) -> None:
    keep, evaluation = session.config.checkpoint, session.config.evaluation
    policy = Retention(
        keep_last=keep.keep_last,
        keep_best=keep.keep_best,
        keep_every=keep.keep_every,
        every_steps=session.save_every,
        metric=evaluation.metric,
        mode=evaluation.mode,
    )
    retain(session.checkpoints, policy)
