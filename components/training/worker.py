"""What each process runs: `python -m convergate.components.training.worker JOB`, under torchrun.

Outcomes that all ranks agree on (completed, diverged, off plan, interrupted, out of budget) end the process well, with
the TrainingResult written by rank 0; anything else ends it with an error, and torchrun starts all processes again.
"""

import json
import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Literal, NoReturn

import torch
import torch.distributed as dist

from ..checkpoint.reading import read_manifest
from ..config.document import Verdict
from ..errors import ConvergateError, ExitCode, UserError
from ..storage import S3Location, S3Store
from .attempts import claim_attempt
from .facts import facts
from .heartbeat import Heartbeat
from .job import JOBS, Job
from .launch import FAILURES_VARIABLE, stall_note
from .loop import Stop, train
from .parallel import TORCH_SAYS
from .progress import ANOMALIES, Progress
from .result import Event, TrainingResult
from .resume import resume
from .rollback import roll_back
from .saving import save, wait_until_saved
from .session import Session

OUTAGE_PAUSE_SECONDS = 10
"""Before the first restart after S3 failed; before the second, twice as long."""


def main(job_file: str) -> None:
    """Run the jobs of the file, one after the other, in this process."""
    # A terminal's Ctrl-C is the launcher's to answer: it asks all ranks to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _heed_earlier_failures()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.use_deterministic_algorithms(mode=not torch.cuda.is_available())
    jobs = JOBS.validate_json(Path(job_file).read_text())
    timeout = timedelta(minutes=jobs[0].config().distributed.timeout_minutes)
    dist.init_process_group(_backend(jobs[0]), timeout=timeout)
    heartbeat = Heartbeat(dist.get_rank(), dist.get_world_size(), timeout, _note_stall)
    try:
        for job in jobs:
            stop = _run(job, heartbeat)
            if stop is not None and stop.kind == "interrupted":
                break
    except Exception as error:
        failed_at = time.time()
        known = _in_words(error, heartbeat)
        _note_failure(known, failed_at)
        _end_at_once(known)
    heartbeat.close()
    dist.destroy_process_group()


def _in_words(error: Exception, heartbeat: Heartbeat) -> Exception:
    """What torch says of a user's model or of a rank that is waited for, in words where we know them."""
    waited_for = heartbeat.explain(error)
    if waited_for is not None:
        return ConvergateError(waited_for)
    for said, meaning in TORCH_SAYS.items():
        if said in str(error):
            return UserError(meaning)
    return error


def _end_at_once(error: Exception) -> NoReturn:
    """Show the error and leave without any clean-up: that could wait for a rank that is gone."""
    if isinstance(error, ConvergateError):
        print(f"convergate: rank {dist.get_rank()}: {error}", file=sys.stderr)  # noqa: T201
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
    finally:
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
    """Gather every rank's figures; rank 0 writes the result."""
    progress.save_seconds = max(progress.save_seconds, session.saver.longest_seconds)
    everyone: list[Progress] = [progress] * session.world_size
    dist.all_gather_object(everyone, progress)
    if session.rank != 0:
        return
    seen = Progress.merged(everyone)
    events += [Event(step=d.step, kind=d.kind, detail=d.detail) for d in (*seen.events, *seen.first_detections())]
    if stop is not None:
        events.append(Event(step=stop.step, kind=stop.kind, detail=stop.detail))
    status = _status(stop)
    verdict: Verdict = "PASS" if status == "completed" else "FAIL"
    result = TrainingResult(
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
    S3Store().write(S3Location.parse(session.job.result_uri), result.to_json(), "application/json")


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


def _note_failure(error: Exception, failed_at: float) -> None:
    """Leave the error for the launcher, which shows the oldest: it is the cause of the others."""
    folder = os.environ.get(FAILURES_VARIABLE)
    if folder:
        rank, restart = int(os.environ.get("RANK", "0")), _restart()
        text = str(error) if isinstance(error, ConvergateError) else f"{type(error).__name__}: {error}"
        note = {
            "rank": rank,
            "restart": restart,
            "time": failed_at,
            "error": text.splitlines()[0] if text else "",
            "exit_code": int(getattr(error, "exit_code", 1)),
        }
        Path(folder, f"failure-{restart}-{rank}.json").write_text(json.dumps(note))


def _note_stall(waited_for: str) -> None:
    """Leave who is waited for, should NCCL's watchdog abort this process; or take that back."""
    rank, folder = os.environ["RANK"], os.environ.get(FAILURES_VARIABLE)
    if waited_for:
        print(f"convergate: rank {rank}: {waited_for}", file=sys.stderr, flush=True)  # noqa: T201
    if folder:
        stall_note(folder, rank).write_text(waited_for)


def _heed_earlier_failures() -> None:
    """In a restart: leave at once where only the user can mend the cause, and give an outage time to pass."""
    folder, restart = os.environ.get(FAILURES_VARIABLE), _restart()
    if not folder or restart == 0:
        return
    codes = {json.loads(path.read_text())["exit_code"] for path in Path(folder).glob("failure-*.json")}
    if ExitCode.USAGE in codes:
        os._exit(ExitCode.USAGE)
    if ExitCode.OUTSIDE in codes:
        time.sleep(OUTAGE_PAUSE_SECONDS * restart)


def _restart() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


if __name__ == "__main__":
    main(sys.argv[1])
