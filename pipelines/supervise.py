"""One server, ended with the process that asked for it: `supervise.py PARENT_PID COMMAND…`.

It leads a process group and ends all of it: on SIGTERM, when the server ends, and when the parent is gone,
also by SIGKILL. `PR_SET_PDEATHSIG` would reach the server alone, and `mlflow server` leaves its own children
behind then.
Standard library only, so that it starts in milliseconds.
"""

import contextlib
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0


def main(parent: int, command: list[str]) -> NoReturn:
    """Run the command until it ends, SIGTERM comes or the parent is gone; never returns."""
    signal.signal(signal.SIGTERM, _leave)
    server: subprocess.Popen[bytes] | None = None
    try:
        server = subprocess.Popen(command)
        while os.getppid() == parent:
            try:
                server.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        end_group(server)


def end_group(server: "subprocess.Popen[bytes] | None") -> NoReturn:
    """SIGTERM to this process's group, and after the grace SIGKILL, which ends this process too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    if server is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("unreachable")


def _leave(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
