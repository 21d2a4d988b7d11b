"""A module as process 1 of a container, which ends at a SIGTERM from its first moment.

    python -m convergate.components.process_one MODULE [ARGUMENTS]

Linux drops a signal that process 1 has no handler for, and a module's imports take seconds, more from a cold disk: a
pod that is deleted meanwhile would be held until its grace is over. The module sets handlers of its own later.
"""

import runpy
import signal
import sys
from typing import NoReturn

from .errors import ExitCode


def _end(*_: object) -> NoReturn:
    raise SystemExit(ExitCode.TERMINATED)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
