"""A process that dies with its parent, so that no SIGKILL leaves workers alive.

    python -m convergate.components.training.lifetime MODULE [ARGUMENTS]

runs a module as the main program of such a process. The death signal is armed before anything heavy is imported, and
a parent that is gone by then is noticed by its id, which it left in the environment.
"""

import ctypes
import os
import runpy
import signal
import sys

PARENT_VARIABLE = "CONVERGATE_PARENT_PID"
"""Names the process whose end is this process's end."""
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel SIGKILL this process when its parent ends (prctl(2), PR_SET_PDEATHSIG; Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    expected = int(os.environ.get(PARENT_VARIABLE) or os.getppid())
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != expected:
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ[PARENT_VARIABLE] = str(os.getpid())


if __name__ == "__main__":
    die_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
