"""Watches a node's agent from outside: torch's calls to a store whose host is silent wait without a bound.

An agent without a living worker meets the other nodes, or waits for them to end. It is killed where it stays so for too
long, and soon where all of its workers ended well: they had agreed with all others, and there is nothing to wait for.
"""

import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from .notes import ends

INTERVAL_SECONDS = 0.5
ENDED_SECONDS = 10.0
"""After all workers ended well, until the agent has to have ended: the others end at the same time."""


class Watch:
    """Of one agent, in a thread that ends with it."""

    def __init__(self, agent: "subprocess.Popen[str]", notes: Path, num_procs: int, patience_seconds: float) -> None:
        """Start to watch.

        Args:
            agent: the process.
            notes: the folder of its workers' notes.
            num_procs: the number of its workers.
            patience_seconds: how long it may be without one.
        """
        self.stuck = False
        """Whether the agent was killed for having been without a worker for too long."""
        self._agent, self._notes, self._num_procs = agent, notes, num_procs
        self._patience_seconds = patience_seconds
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def _run(self) -> None:
        since = time.monotonic()
        while self._agent.poll() is None:
            ended_well = len(ends(self._notes)) == self._num_procs
            if not ended_well and living_children(self._agent.pid):
                since = time.monotonic()
            alone = time.monotonic() - since
            if alone > (ENDED_SECONDS if ended_well else self._patience_seconds):
                self.stuck = not ended_well
                self._agent.kill()
                return
            time.sleep(INTERVAL_SECONDS)


def living_children(parent: int) -> list[int]:
    """The ids of a process's children that have not ended, in Linux's /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            # "pid (name) state parent …": the name may hold anything, parentheses too.
            state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(of) == parent and state not in "ZX":
                found.append(int(entry.name))
    return found
