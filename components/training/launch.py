"""torchrun's launcher as a child: it dies with its parent, is interrupted with it, and is read while it runs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from ..errors import ConvergateError, ExitCode
from .job import JOBS, Job

WORKER = "convergate.components.training.worker"
GRACE_SECONDS = 60.0
"""How long workers may take to save after SIGTERM before they are killed."""


class LaunchError(ConvergateError):
    """The workers failed and their restarts are used up."""

    def __init__(self, reason: str, exit_code: ExitCode = ExitCode.NEGATIVE) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class InterruptedRunError(ConvergateError):
    """The run was interrupted by a signal; its state is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = ExitCode.INTERRUPTED if signum == signal.SIGINT else ExitCode.TERMINATED


def launch(jobs: list[Job], num_procs: int, max_restarts: int, on_line: Callable[[str], None] = print) -> None:
    """Run the jobs, one after the other, in `num_procs` processes on this machine, until all have ended well.

    Raises:
        LaunchError: when they failed more than `max_restarts` times, with the first failing rank's error.
        InterruptedRunError: when this process got SIGTERM or SIGINT meanwhile; the workers had time to save.
    """
    with tempfile.TemporaryDirectory(prefix="convergate-") as folder:
        job_file = Path(folder) / "job.json"
        job_file.write_bytes(JOBS.dump_json(jobs))
        command = [
            *(sys.executable, "-m", "convergate.components.training.agent"),
            *(
                "--standalone",
                "--nnodes=1",
                f"--nproc-per-node={num_procs}",
                f"--max-restarts={max_restarts}",
            ),
            *("--monitor-interval=0.1", "-m", WORKER, str(job_file)),
        ]
        environment = {
            **os.environ,
            "CONVERGATE_FAILURES": folder,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_procs))),
            "PYTHONUNBUFFERED": "1",
            # With a store that outlives a restart, gloo finds the addresses of the workers that were lost.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        with _forwarding(process) as received:
            tail = _follow(process, on_line)
            code = process.wait()
        if received:
            raise InterruptedRunError(received[0])
        if code != 0:
            raise _first_failure(Path(folder)) or LaunchError(_last_error(tail) or f"torchrun exited {code}")


@contextlib.contextmanager
def _forwarding(process: "subprocess.Popen[str]") -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on to the agent as SIGTERM, and kill it when the grace is over."""
    received: list[int] = []
    timers: list[threading.Timer] = []

    def forward(signum: int, _frame: FrameType | None) -> None:
        if not received:
            timers.append(threading.Timer(GRACE_SECONDS, process.kill))
            timers[0].daemon = True
            timers[0].start()
        received.append(signum)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {signum: signal.signal(signum, forward) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for timer in timers:
            timer.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()


def _follow(process: "subprocess.Popen[str]", on_line: Callable[[str], None]) -> "deque[str]":
    tail: deque[str] = deque(maxlen=60)
    assert process.stdout is not None
    for line in process.stdout:
        tail.append(line.rstrip())
        on_line(line.rstrip())
    return tail


def _first_failure(folder: Path) -> LaunchError | None:
    """The error that a worker noted before it ended; the oldest is the cause, later ones follow from it."""
    notes = sorted(folder.glob("failure-*.json"), key=lambda path: path.stat().st_mtime)
    if not notes:
        return None
    note = json.loads(notes[0].read_text())
    return LaunchError(f"rank {note['rank']}: {note['error']}", ExitCode(note["exit_code"]))


def _last_error(tail: "deque[str]") -> str | None:
    """The last line of the output that reads like an exception."""
    lines = [line for line in tail if "Error" in line and not line.startswith((" ", "Traceback"))]
    return lines[0] if lines else None
