"""What each process runs: `python -m convergate.components.training.worker JOB`, under torchrun.

Outcomes that all ranks agree on (completed, diverged, off plan, interrupted, out of budget) end the process well, with
the TrainingResult written by rank 0; anything else ends it with an error, and torchrun starts all processes again.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Literal, NoReturn

import torch
import torch.distributed as dist

from ..checkpoint.ranks import from_rank_0
from ..checkpoint.reading import read_manifest
from ..config.document import Verdict
from ..errors import ConvergateError, ExitCode, OutsideError, UserError
from ..storage import S3Location, S3Store
from .attempts import claim_attempt
from .facts import facts
from .heartbeat import LOG, Heartbeat, lost_rank
from .job import JOBS, Job
from .loop import Stop, train
from .notes import FOLDER_VARIABLE, failures, note_end, note_failure, note_stall, note_start, restart
from .parallel import TORCH_SAYS
from .progress import ANOMALIES, Progress
from .result import Event, TrainingResult
from .resume import resume
from .rollback import roll_back
from .saving import save, wait_until_saved
from .session import Session

OUTAGE_PAUSE_SECONDS = 10
"""Before the first restart after S3 failed; before the second, twice as long."""
MEETING_SECONDS = 30
"""After the timeout, until a rank that still waits for the others to begin ends itself."""


def main(job_file: str) -> None:
    """Run the jobs of the file, one after the other, in this process."""
    # A terminal's Ctrl-C is the launcher's to answer: it asks all ranks to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _heed_earlier_failures()
    note_start()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.use_deterministic_algorithms(mode=not torch.cuda.is_available())
    jobs = JOBS.validate_json(Path(job_file).read_text())
    stop, heartbeat = None, None
    try:
        heartbeat = _meet(jobs[0])
        for job in jobs:
            stop = _run(job, heartbeat)
            if stop is not None and stop.kind == "interrupted":
                break
    except Exception as error:
        failed_at = time.time()
        known, lost = _in_words(error, heartbeat)
        note_failure(known, failed_at, lost=lost)
        _end_at_once(known)
    note_end("interrupted" if stop is not None and stop.kind == "interrupted" else "done")
    assert heartbeat is not None
    heartbeat.close()
    dist.destroy_process_group()


def _meet(job: Job) -> Heartbeat:
    """Make the process group of all ranks."""
    timeout = timedelta(minutes=job.config().distributed.timeout_minutes)
    with _bounded(timeout):
        dist.init_process_group(_backend(job), timeout=timeout)
    return Heartbeat(dist.get_rank(), dist.get_world_size(), timeout, _on_stall)


@contextmanager
def _bounded(timeout: timedelta) -> Iterator[None]:
    """End this process where torch waits on without a bound: for a store whose host is silent."""

    def end() -> None:
        error = _lost_kind()(f"the ranks did not meet within {timeout} → {LOG}")
        note_failure(error, time.time(), lost=True)
        _end_at_once(error)

    timer = threading.Timer(timeout.total_seconds() + MEETING_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _in_words(error: Exception, heartbeat: Heartbeat | None) -> tuple[Exception, bool]:
    """What torch says of a user's model or of a rank that is waited for or gone, in words where we know them.

    Also whether the cause is another rank.
    """
    waited_for = heartbeat.explain(error) if heartbeat is not None else None
    if waited_for is not None:
        return _lost_kind()(waited_for), True
    gone = lost_rank(error)
    if gone is not None:
        return _lost_kind()(gone), True
    for said, meaning in TORCH_SAYS.items():
        if said in str(error):
            return UserError(meaning), False
    return error, False


def _lost_kind() -> type[ConvergateError]:
    """What the loss of a rank is: of one on another machine it is nobody's here, and a start again may cure it."""
    several_nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    return OutsideError if several_nodes else ConvergateError


def _end_at_once(error: Exception) -> NoReturn:
    """Show the error and leave without any clean-up: that could wait for a rank that is gone."""
    if isinstance(error, ConvergateError):
        print(f"convergate: rank {os.environ['RANK']}: {error}", file=sys.stderr)  # noqa: T201
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(getattr(error, "exit_code", 1)))


def _run(job: Job, heartbeat: Heartbeat) -> Stop | None:
    started = perf_counter()
    session = Session(job, claim_attempt(job))
    heartbeat.follows = session
    signal.signal(signal.SIGTERM, lambda *_: session.guard.ask_to_stop("interrupted", "SIGTERM"))
    progress, events = resume(session)
    session.guard.agree_before_start(facts(session))
    try:
        progress, stop = _train(session, progress)
    except Exception:
        with suppress(ConvergateError):
            session.trace.close()  # What ended the training is told, and not what that makes of its trace.
        raise
    session.trace.close()
    _report(session, progress, stop, events, perf_counter() - started)
    return stop


def _train(session: Session, progress: Progress) -> tuple[Progress, Stop | None]:
    """Train to the end, rolled back where a divergence and the config ask for it; or to where the ranks stop.

    Whatever was begun to be saved is committed then.
    """
    while True:
        try:
            train(session, progress)
        except Stop as stop:
            rolled_back = roll_back(session, progress, stop)
            if rolled_back is not None:
                progress = rolled_back
                continue
            if stop.kind in ("interrupted", "budget"):
                save(session, progress)
            wait_until_saved(session)
            return progress, stop
        wait_until_saved(session)
        return progress, None


def _report(session: Session, progress: Progress, stop: Stop | None, events: list[Event], seconds: float) -> None:
    """Gather every rank's figures; rank 0 writes the result, and no rank has ended before it is written."""
    progress.save_seconds = max(progress.save_seconds, session.saver.longest_seconds)
    everyone: list[Progress] = [progress] * session.world_size
    dist.all_gather_object(everyone, progress)
    seen = Progress.merged(everyone)
    location = S3Location.parse(session.job.result_uri)
    from_rank_0(
        lambda: S3Store().write(location, _result(session, seen, stop, events, seconds).to_json(), "application/json")
    )


def _result(session: Session, seen: Progress, stop: Stop | None, events: list[Event], seconds: float) -> TrainingResult:
    events = [
        *events,
        *(Event(step=d.step, kind=d.kind, detail=d.detail) for d in (*seen.events, *seen.first_detections())),
    ]
    if stop is not None:
        events.append(Event(step=stop.step, kind=stop.kind, detail=stop.detail))
    status = _status(stop)
    verdict: Verdict = "PASS" if status == "completed" else "FAIL"
    return TrainingResult(
        run_id=session.job.run_id,
        seconds=seconds,
        summary=_summary(session, seen, stop),
        verdict=verdict,
        reason="" if stop is None else stop.detail,
        status=status,
        training_digest=session.digests.training,
        seed=str(session.job.seed),
        attempts=session.attempt,
        final_step=session.step,
        total_steps=session.total_steps,
        train_loss=seen.recent_loss(),
        val_metrics=session.metrics,
        max_lr_deviation=seen.max_lr_deviation,
        lr_sync_errors=int(stop is not None and stop.kind == "lr_sync_error"),
        anomalous=any(event.kind in ANOMALIES for event in events),
        untreated=sorted({anomaly.kind for anomaly in seen.untreated()}),
        checkpoint_uri=session.newest_uri,
        checkpoint_digest=read_manifest(session.newest_uri)[1] if session.newest_uri else "",
        init_uri=session.init_uri,
        init_digest=session.init_digest,
        trace_uri=session.job.trace_uri,
        world_size=session.world_size,
        device=_device_name(session.device),
        train_seconds=seconds,
        gpu_hours=seconds * session.world_size / 3600,
        save_seconds=seen.save_seconds,
        events=sorted(events, key=lambda event: event.step),
    )


def _status(
    stop: Stop | None,
) -> Literal["completed", "diverged", "lr_sync_error", "interrupted", "failed"]:
    if stop is None:
        return "completed"
    return "failed" if stop.kind == "budget" else stop.kind


def _summary(session: Session, seen: Progress, stop: Stop | None) -> str:
    if stop is not None:
        return f"{stop.kind.replace('_', ' ')} at step {stop.step}: {stop.detail}"
    loss = session.metrics.get("loss")
    early = next((event for event in seen.events if event.kind == "early_stopped"), None)
    figures = [f"{session.step} steps" if early is None else f"ended early at step {early.step}: {early.detail}"]
    if loss is not None:
        figures.append(f"val_loss {loss:.3f}")
    deviation = seen.max_lr_deviation
    figures += [f"LR {'on' if deviation == 0 else 'off'} plan (max dev {deviation:g})", "0 sync errors"]
    return ", ".join(figures)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _backend(job: Job) -> str:
    wanted = job.config().distributed.backend
    return ("nccl" if torch.cuda.is_available() else "gloo") if wanted == "auto" else wanted


def _on_stall(waited_for: str) -> None:
    """Say and leave who is waited for; or, with nothing, take that back."""
    if waited_for:
        print(f"convergate: rank {os.environ['RANK']}: {waited_for}", file=sys.stderr, flush=True)  # noqa: T201
    note_stall(waited_for)


def _heed_earlier_failures() -> None:
    """In a restart: leave at once where only the user can mend the cause, and give an outage time to pass."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder or restart() == 0:
        return
    earlier = failures(folder)
    if any(failure.exit_code == ExitCode.USAGE for failure in earlier):
        os._exit(ExitCode.USAGE)
    if any(failure.exit_code == ExitCode.OUTSIDE and not failure.lost for failure in earlier):
        time.sleep(OUTAGE_PAUSE_SECONDS * restart())


if __name__ == "__main__":
    main(sys.argv[1])
