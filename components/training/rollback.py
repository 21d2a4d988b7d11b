"""Rollback: after a divergence, back to the last stable checkpoint with lower rates.

Once a loss is not finite, what led there began earlier; a lower rate from before it is the usual cure (PaLM,
arXiv:2204.02311, section 5.1, restarts some 100 steps earlier). The branch that is left stays in the trace under its
attempt. The new attempt gives that branch's checkpoints up and commits its first one at once, so that no restart finds
the old branch again.
"""

import torch.distributed as dist

from ..checkpoint import CheckpointError, CheckpointRef
from ..schedule import ScheduleEvent
from ..telemetry import Detection
from ..telemetry.detectors import WINDOW
from .attempts import claim_attempt
from .progress import Progress
from .resume import go_back
from .saving import save, wait_until_saved
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
    wait_until_saved(session)
    seen, device_seconds = _everyones(session, progress), session.device_seconds
    restored = _last_stable(session, progress, seen.anomalies(), stop.step)
    if restored is None:
        return None
    session.begin_attempt(claim_attempt(session.job))
    if session.rank == 0:
        session.checkpoints.give_up(session.attempt, session.step)
    session.device_seconds = device_seconds
    restored.events = [*progress.events, *(one for one in seen.anomalies() if one.step >= session.step)]
    restored.save_seconds = seen.save_seconds
    # A checkpoint from before an earlier rollback does not know of it.
    num_known = sum(event.kind == "rollback" for event in session.scheduler.events)
    factor = policy.lr_scale ** (1 + num_before - num_known)
    session.scheduler.add(ScheduleEvent(session.step, "rollback", factor))
    session.guard.answered("diverged")
    detail = f"from step {stop.step}, {stop.detail}; the rates are {factor:g} of what they were"
    session.note(restored, Detection(session.step, "rolled_back", detail))
    save(session, restored)
    wait_until_saved(session)
    return restored


def _everyones(session: Session, progress: Progress) -> Progress:
    everyone = [progress] * session.world_size
    dist.all_gather_object(everyone, progress)
    return Progress.merged(everyone)


def _last_stable(session: Session, progress: Progress, anomalies: list[Detection], diverged_at: int) -> Progress | None:
    """Restore the newest whole checkpoint from before the anomalies that led to the divergence, if there is one.

    One of that very step would not do: its weights are those that the anomaly was seen with. One that an interruption
    saved between the regular ones does not count, so that interruptions change nothing.
    """
    first = min((one.step for one in anomalies if one.step > diverged_at - WINDOW), default=diverged_at)

    def is_stable(ref: CheckpointRef) -> bool:
        return ref.step < first and ref.step % session.save_every == 0

    try:
        return go_back(session, progress, is_stable)
    except CheckpointError:
        return None
