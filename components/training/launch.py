"""torchrun's launcher as a child: it dies with its parent, is interrupted with it, and is read while it runs."""

import contextlib
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
from .lifetime import PARENT_VARIABLE
from .notes import FOLDER_VARIABLE, AgentEnd, agent_end, ends, last_failures, stall
from .rendezvous import Rendezvous
from .watch import Watch

LIFETIME = "convergate.components.training.lifetime"
AGENT = "convergate.components.training.agent"
WORKER = "convergate.components.training.worker"
GRACE_SECONDS = 60
"""How long workers may take to save after SIGTERM before the agent kills them, where nobody says otherwise."""
KILL_SECONDS = 5
"""After the grace, until the agent itself is killed."""
_KILLED_BY_AGENT = "Unable to shutdown process"
_TAIL_LINES = 1000


class LaunchError(ConvergateError):
    """The workers failed and their restarts are used up, or the nodes of a job did not meet."""

    def __init__(self, reason: str, exit_code: ExitCode = ExitCode.NEGATIVE) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class InterruptedRunError(ConvergateError):
    """The run was interrupted by a signal; the workers had time to save."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = ExitCode.INTERRUPTED if signum == signal.SIGINT else ExitCode.TERMINATED


def launch(
    jobs: list[Job],
    num_procs: int,
    max_restarts: int,
    on_line: Callable[[str], None] = print,
    *,
    rendezvous: Rendezvous | None = None,
    grace_seconds: int = GRACE_SECONDS,
) -> None:
    """Run the jobs, one after the other, in `num_procs` processes on this machine, until all have ended well.

    Args:
        jobs: what the processes do.
        num_procs: of this machine.
        max_restarts: of all processes, after one of them failed.
        on_line: gets each line that they print.
        rendezvous: where the processes of other machines are met; None where there are no others.
        grace_seconds: how long the workers may take to save after a signal.

    Raises:
        LaunchError: when they failed more than `max_restarts` times, with the first failing rank's error; OUTSIDE where
            that is the loss of another node.
        InterruptedRunError: when this process got SIGTERM or SIGINT meanwhile, or a worker SIGTERM; the workers had
            time to save.
        OutsideError: when node 0 has no address.
    """
    with tempfile.TemporaryDirectory(prefix="convergate-") as name:
        folder = Path(name)
        (folder / "job.json").write_bytes(JOBS.dump_json(jobs))
        process = subprocess.Popen(
            _command(folder / "job.json", num_procs, max_restarts, rendezvous, grace_seconds),
            env=_environment(folder, num_procs),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in a terminal reaches the whole process group, and the agent would pass it on as it is.
            start_new_session=True,
        )
        watch = None
        with _forwarding(process, grace_seconds + KILL_SECONDS) as received:
            if rendezvous is not None:
                watch = Watch(process, folder, num_procs, rendezvous.patience_seconds)
            # Once interrupted, the agent has only that to tell.
            tail = _follow(process, lambda line: None if received else on_line(line))
            code = process.wait()
        if received:
            raise InterruptedRunError(received[0])
        if len(ended := ends(folder)) == num_procs:
            if "interrupted" in ended:
                raise InterruptedRunError
        elif code != 0:
            stuck = watch is not None and watch.stuck
            raise _failure(folder, tail, rendezvous, stuck=stuck) or LaunchError(f"torchrun exited {code}")


def _command(
    job_file: Path, num_procs: int, max_restarts: int, rendezvous: Rendezvous | None, grace_seconds: int
) -> list[str]:
    meeting = ["--standalone", "--nnodes=1"] if rendezvous is None else rendezvous.options()
    return [
        *(sys.executable, "-m", AGENT, *meeting),
        *(f"--nproc-per-node={num_procs}", f"--max-restarts={max_restarts}"),
        *("--monitor-interval=0.1", f"--shutdown-timeout={grace_seconds}"),
        *("-m", LIFETIME, WORKER, str(job_file)),
    ]


def _environment(notes: Path, num_procs: int) -> dict[str, str]:
    threads = max(1, _num_cpus() // num_procs)
    # torchrun reads options from PET_…, which Kubeflow's Trainer sets: here they are all arguments.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    return {
        **inherited,
        FOLDER_VARIABLE: str(notes),
        PARENT_VARIABLE: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "PYTHONUNBUFFERED": "1",
        # Below it, torch tells with two screens of C++ that a connection was lost.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        # With a store that outlives a restart, gloo finds the addresses of the workers that were lost.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def _num_cpus() -> int:
    """Cores that this process may use: in a container fewer than the machine has (cgroup v2, cpu.max)."""
    found = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return max(1, min(found, int(quota) // int(period)))
    return found


@contextlib.contextmanager
def _forwarding(process: "subprocess.Popen[str]", kill_seconds: float) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on to the agent as SIGTERM, and kill it when the grace is over."""
    received: list[int] = []
    timers: list[threading.Timer] = []

    def forward(signum: int, _frame: FrameType | None) -> None:
        if not received:
            timers.append(threading.Timer(kill_seconds, process.kill))
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


def _failure(folder: Path, tail: "deque[str]", rendezvous: Rendezvous | None, *, stuck: bool) -> LaunchError | None:
    """Why the last start failed: a worker's own note, unless a signal ended one without a note.

    Of notes the oldest that is not only of another rank's loss: the others then only tell that a connection was lost.
    Where the nodes did not meet afterwards a start again may cure it, whatever was noted before.
    """
    end, last = agent_end(folder), last_failures(folder)
    killed = _killed(folder, end, {note.rank for note in last}, "\n".join(tail), several=rendezvous is not None)
    if killed is not None:
        return killed
    trouble = rendezvous.trouble(end.rendezvous) if rendezvous is not None and (stuck or end.rendezvous) else ""
    if last:
        note = min(last, key=lambda note: (note.lost, note.time))
        code = ExitCode(note.exit_code)
        curable = trouble and code == ExitCode.NEGATIVE
        reason = f"rank {note.rank}: {note.error}" + (f"; then {trouble}" if trouble else "")
        return LaunchError(reason, ExitCode.OUTSIDE if curable else code)
    if trouble:
        return LaunchError(trouble, ExitCode.OUTSIDE)
    lines = [line for line in tail if "Error" in line and not line.startswith((" ", "Traceback"))]
    return LaunchError(lines[0]) if lines else None


def _killed(folder: Path, end: AgentEnd, noted: set[int], output: str, *, several: bool) -> LaunchError | None:
    """A worker that a signal ended without a word of its own, SIGTERM aside: that is the agent's, after a failure.

    NCCL's watchdog aborts a process whose peer is lost, which of `several` nodes is nobody's fault here.
    """
    for rank, code in end.ended.items():
        if code >= 0:
            continue
        name = signal.Signals(-code).name
        if rank in noted or name == "SIGTERM" or (name == "SIGKILL" and _KILLED_BY_AGENT in output):
            continue
        hint = ": out of memory, or killed by hand" if name == "SIGKILL" else ""
        waited_for = stall(folder, rank) if name == "SIGABRT" else None
        if waited_for is not None:
            hint = f": {waited_for or 'see its log'}"
        outside = several and name == "SIGABRT"
        return LaunchError(f"rank {rank} was ended by {name}{hint}", ExitCode.OUTSIDE if outside else ExitCode.NEGATIVE)
    return None
