"""Rollback: after a divergence, back to the last stable checkpoint with lower rates.

Once a loss is not finite, what led there began earlier; a lower rate from before it is the usual cure (PaLM,
arXiv:2204.02311, section 5.1, restarts some 100 steps earlier). The branch that is left stays in the trace under its
attempt. The new attempt commits its first checkpoint at once, so that no restart finds the old branch again.
"""

import torch.distributed as dist

from ..checkpoint import CheckpointRef
from ..checkpoint.manifest import CheckpointError
from ..checkpoint.store import verify
from ..schedule import ScheduleEvent
from ..telemetry import Detection
from ..telemetry.detectors import WINDOW
from .attempts import claim_attempt
from .loop import note
from .progress import Progress
from .session import Session
from .sync_guard import Stop


def roll_back(session: Session, progress: Progress, stop: Stop) -> Progress | None:
    """Go back, if the config has a policy for it that is not used up and there is where to go; every rank calls it.

    Returns what was seen until then, with the rollback and what led to it among its events; None where the stop
    stands.
    """
    policy = session.training.rollback
    if stop.kind != "diverged" or policy is None:
        return None
    num_before = sum(event.kind == "rolled_back" for event in progress.events)
    if num_before >= policy.max:
        return None
    seen = _everyones(session, progress)
    stable = _last_stable(session, seen.anomalies(), stop.step)
    if stable is None:
        return None
    device_seconds = session.device_seconds
    session.begin_attempt(claim_attempt(session.job))
    restored = session.restore(stable)
    session.device_seconds = device_seconds
    restored.events = [*seen.events, *(one for one in seen.anomalies() if one.step >= session.step)]
    restored.save_seconds = seen.save_seconds
    # A checkpoint from before an earlier rollback does not know of it.
    num_known = sum(event.kind == "rollback" for event in session.scheduler.events)
    factor = policy.lr_scale ** (1 + num_before - num_known)
    session.scheduler.add(ScheduleEvent(session.step, "rollback", factor))
    session.guard.answered("diverged")
    detail = f"from step {stop.step}, {stop.detail}; the rates are {factor:g} of what they were"
    note(session, restored, Detection(session.step, "rolled_back", detail))
    session.save(restored)
    return restored


def _everyones(session: Session, progress: Progress) -> Progress:
    everyone = [progress] * session.world_size
    dist.all_gather_object(everyone, progress)
    return Progress.merged(everyone)


def _last_stable(session: Session, anomalies: list[Detection], diverged_at: int) -> CheckpointRef | None:
    """The newest whole checkpoint from before the anomalies that led to the divergence, the same on every rank.

    One of that very step would not do: its weights are those that the anomaly was seen with. One that an interruption
    saved between the regular ones does not count, so that interruptions change nothing.
    """
    first = min((one.step for one in anomalies if one.step > diverged_at - WINDOW), default=diverged_at)
    chosen: list[CheckpointRef | None] = [None]
    if session.rank == 0:
        refs = session.checkpoints.committed()
        refs = [ref for ref in refs if ref.attempt >= session.job.oldest_attempt and ref.step < first]
        refs = [ref for ref in refs if ref.step % session.save_every == 0 and not _given_up(ref, refs)]
        chosen = [next((ref for ref in refs if _is_whole(ref)), None)]
    dist.broadcast_object_list(chosen)
    return chosen[0]


def _given_up(ref: CheckpointRef, refs: list[CheckpointRef]) -> bool:
    """Whether a later attempt began before it: it is of a branch that a rollback left."""
    return any(other.attempt > ref.attempt and other.step < ref.step for other in refs)


def _is_whole(ref: CheckpointRef) -> bool:
    try:
        verify(ref.uri)
    except CheckpointError:
        return False
    return True
