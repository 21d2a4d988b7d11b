"""torchrun's launcher as a child: it dies with its parent, is interrupted with it, and is read while it runs."""

import contextlib
import json
import os
import re
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
from .lifetime import PARENT_VARIABLE

LIFETIME = "convergate.components.training.lifetime"
AGENT = "torch.distributed.run"
WORKER = "convergate.components.training.worker"
GRACE_SECONDS = 60
"""How long workers may take to save after SIGTERM before the agent kills them."""
KILL_SECONDS = GRACE_SECONDS + 10.0
"""After SIGTERM, until the agent itself is killed."""
FAILURES_VARIABLE = "CONVERGATE_FAILURES"
"""Names the folder where workers note why they failed."""
_ENDED = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\n +exitcode +: -(\d+) ")
"""In torchrun's list of failed workers at its end: one that a signal ended."""
_KILLED_BY_AGENT = "Unable to shutdown process"
_TAIL_LINES = 1000


class LaunchError(ConvergateError):
    """The workers failed and their restarts are used up."""

    def __init__(self, reason: str, exit_code: ExitCode = ExitCode.NEGATIVE) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class InterruptedRunError(ConvergateError):
    """The run was interrupted by a signal; the workers had time to save."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
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
        process = subprocess.Popen(
            _command(job_file, num_procs, max_restarts),
            env=_environment(folder, num_procs),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in a terminal reaches the whole process group, and the agent would pass it on as it is.
            start_new_session=True,
        )
        with _forwarding(process) as received:
            # Once interrupted, the agent has only its own trace to tell.
            tail = _follow(process, lambda line: None if received else on_line(line))
            code = process.wait()
        if received:
            raise InterruptedRunError(received[0])
        if code != 0:
            raise _failure(Path(folder), tail) or LaunchError(f"torchrun exited {code}")


def _command(job_file: Path, num_procs: int, max_restarts: int) -> list[str]:
    return [
        *(sys.executable, "-m", LIFETIME, AGENT),
        *("--standalone", "--nnodes=1", f"--nproc-per-node={num_procs}", f"--max-restarts={max_restarts}"),
        *("--monitor-interval=0.1", f"--shutdown-timeout={GRACE_SECONDS}"),
        *("-m", LIFETIME, WORKER, str(job_file)),
    ]


def _environment(failures: str, num_procs: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // num_procs)
    return {
        **os.environ,
        FAILURES_VARIABLE: failures,
        PARENT_VARIABLE: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "PYTHONUNBUFFERED": "1",
        # With a store that outlives a restart, gloo finds the addresses of the workers that were lost.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


@contextlib.contextmanager
def _forwarding(process: "subprocess.Popen[str]") -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on to the agent as SIGTERM, and kill it when the grace is over."""
    received: list[int] = []
    timers: list[threading.Timer] = []

    def forward(signum: int, _frame: FrameType | None) -> None:
        if not received:
            timers.append(threading.Timer(KILL_SECONDS, process.kill))
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
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    assert process.stdout is not None
    for line in process.stdout:
        tail.append(line.rstrip())
        on_line(line.rstrip())
    return tail


def _failure(folder: Path, tail: "deque[str]") -> LaunchError | None:
    """Why the last start failed: a worker's own note, the oldest first, unless a signal ended one without a note.

    The others' notes then only tell that a connection was lost.
    """
    notes = [json.loads(path.read_text()) for path in folder.glob("failure-*.json")]
    last = [note for note in notes if note["restart"] == max(note["restart"] for note in notes)]
    killed = _killed("\n".join(tail), {note["rank"] for note in last}, folder)
    if killed is not None:
        return killed
    if last:
        note = min(last, key=lambda note: note["time"])
        return LaunchError(f"rank {note['rank']}: {note['error']}", ExitCode(note["exit_code"]))
    lines = [line for line in tail if "Error" in line and not line.startswith((" ", "Traceback"))]
    return LaunchError(lines[0]) if lines else None


def stall_note(folder: str | Path, rank: int | str) -> Path:
    """Where a worker notes whom a collective waits for, while it does: NCCL aborts without an error of its own."""
    return Path(folder, f"stall-{rank}.txt")


def _killed(output: str, noted: set[int], folder: Path) -> LaunchError | None:
    """A worker that a signal ended without a word of its own, SIGTERM aside: that is the agent's, after a failure."""
    for rank, number in _ENDED.findall(output):
        name = signal.Signals(int(number)).name
        if int(rank) in noted or name == "SIGTERM" or (name == "SIGKILL" and _KILLED_BY_AGENT in output):
            continue
        hint = ": out of memory, or killed by hand" if name == "SIGKILL" else ""
        note = stall_note(folder, rank)
        if name == "SIGABRT" and note.exists():
            hint = f": {note.read_text() or 'see its log'}"
        return LaunchError(f"rank {rank} was ended by {name}{hint}")
    return None
