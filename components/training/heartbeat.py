"""Heartbeats: when a collective times out, who was missing, on which host, and where it was.

Every rank's own thread writes a small beat to a key-value store every second. The store is the one over which the
process group was made, on rank 0's host, through a connection of its own. A rank that is waited for either beats on
at an older step or phase, or is silent: its process or its machine stands still.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch.distributed as dist

from ..errors import ConvergateError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Phase = Literal["starting", "validation", "saving", "loss", "update"]
"""What a rank does, in the order in which it comes with a number of updates done."""
INTERVAL_SECONDS = 1.0
SILENT_SECONDS = 2.5 * INTERVAL_SECONDS
"""A rank without a new beat for so long is silent."""
ANSWER_SECONDS = SILENT_SECONDS + 10.0
"""A store that does not answer for so long is taken for gone."""
STALL_FRACTION = 0.5
"""Of the timeout: a phase that lasts so long is looked into before NCCL's watchdog aborts the process."""
MAX_NAMED = 8
_TIMEOUT = re.compile(r"Timed out waiting \d+ ?ms|collective operation timeout|wait timeout after|Socket Timeout")
"""Of gloo; of NCCL's watchdog; of the store, over which NCCL starts."""
_LOST = re.compile(
    r"Connection (closed|reset) by peer|Connection (refused|timed out)|Broken pipe|No route to host|"
    r"Network is unreachable|Socket closed|pair closure|connectFullMesh|clients joined|ncclRemoteError|"
    r"remote process exit|communicator was aborted"
)
"""Of gloo, of the store, of NCCL: another rank's process is gone, or the way to it."""
_SOURCE = re.compile(r"^\[[^\]]*\] *")
"""The line of C++ that gloo begins with."""
LOG = "check that machine, and the log of that rank"


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank said of itself last."""

    rank: int
    host: str
    step: int
    phase: Phase
    where: str
    """The line of Python that its main thread is in."""
    since: float
    """When it came into this phase, by its own clock, in seconds since 1970."""
    failed: bool
    """Whether an error ended it: it is none of those that are waited for."""
    number: int

    @property
    def position(self) -> tuple[int, int]:
        """Orders ranks by how far they are."""
        return self.step, get_args(Phase).index(self.phase)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC)
        return (
            f"rank {self.rank} on {self.host} at step {self.step} in {self.phase} since {since:%H:%M:%S} UTC"
            f" ({self.where})"
        )


class Whereabouts(Protocol):
    """What a rank is at: plain attributes, which cost whoever sets them nothing else."""

    step: int
    """Updates done."""
    phase: Phase


class Heartbeat:
    """One rank's beats: of where it is, once `follows` is set."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        timeout: timedelta | None = None,
        on_stall: Callable[[str], None] | None = None,
    ) -> None:
        """Start to beat, after the process group is made.

        Args:
            rank: of this process.
            world_size: the number of ranks.
            timeout: of the collectives, where somebody is to be told of a phase that comes near it.
            on_stall: gets that in words, in the heartbeat's thread, and nothing (`""`) once the phase is over.
        """
        self.follows: Whereabouts | None = None
        self._rank, self._world_size = rank, world_size
        self._stall_seconds = timeout.total_seconds() * STALL_FRACTION if timeout is not None else float("inf")
        self._on_stall = on_stall or (lambda _: None)
        self._beat = Beat(rank, socket.gethostname(), 0, "starting", "", time.time(), failed=False, number=0)
        self._failing, self._closed = False, False
        self._wake, self._told, self._answered = threading.Event(), threading.Event(), threading.Event()
        self._answer: str | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def explain(self, error: BaseException) -> str | None:
        """Which ranks a collective that timed out was waiting for, in one line; None for any other error.

        Called with whatever error ends this process, so that the others know why it is silent. A timeout takes a few
        seconds, to hear who else is, and `ANSWER_SECONDS` where the store's host is gone.
        """
        timed_out = bool(_TIMEOUT.search(str(error)))
        self._failing = True
        self._wake.set()
        event, seconds = (self._answered, ANSWER_SECONDS) if timed_out else (self._told, INTERVAL_SECONDS)
        until = time.monotonic() + seconds
        while self._thread.is_alive() and not event.wait(0.05) and time.monotonic() < until:
            pass
        if not timed_out or event.is_set() or not self._thread.is_alive():
            return self._answer if timed_out else None
        return (
            f"a collective timed out, and rank 0 on {os.environ['MASTER_ADDR']}, which keeps the heartbeats of all,"
            f" does not answer → {LOG}"
        )

    def close(self) -> None:
        """Stop, before rank 0 takes the store away."""
        self._closed = True
        self._wake.set()
        self._thread.join(INTERVAL_SECONDS)

    def _run(self) -> None:
        stalled = False
        try:
            store = dist.PrefixStore("heartbeat", _connect())  # type: ignore[attr-defined]
            while not self._closed:
                moved = self._write(store)
                if self._beat.failed:
                    self._told.set()
                    self._answer = self._look(store)
                    self._answered.set()
                    return
                if moved and stalled:
                    stalled = False
                    self._on_stall("")
                elif not stalled and time.time() - self._beat.since > self._stall_seconds:
                    stalled = True
                    self._on_stall(self._look(store))
                self._wake.wait(INTERVAL_SECONDS)
                self._wake.clear()
        except RuntimeError:
            return  # Rank 0 has left, and its store with it; there is nobody left to tell.

    def _write(self, store: "Store") -> bool:
        """Beat once; whether this rank came into another phase since."""
        last, at = self._beat, self.follows
        step, phase = (at.step, at.phase) if at is not None else (0, last.phase)
        moved = (step, phase) != (last.step, last.phase)
        since = time.time() if moved else last.since
        self._beat = Beat(self._rank, last.host, step, phase, _where(), since, self._failing, last.number + 1)
        store.set(str(self._rank), json.dumps(asdict(self._beat)))
        return moved

    def _look(self, store: "Store") -> str:
        """Read every rank's beat twice, so far apart that who lives has beaten again."""
        before = self._read(store)
        until = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < until and not self._closed:
            time.sleep(INTERVAL_SECONDS / 4)
            self._write(store)
        return describe(before, self._read(store))

    def _read(self, store: "Store") -> list[Beat | None]:
        keys = [str(rank) for rank in range(self._world_size)]
        return [Beat(**json.loads(store.get(key))) if store.check([key]) else None for key in keys]


def lost_rank(error: BaseException) -> str | None:
    """That another rank cannot be reached, in one line; None for an error of any other kind.

    Also of a timeout that no heartbeat could explain: before there was one, or where the store is gone.
    """
    text = str(error)
    of_store = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
    known = next((line for line in text.splitlines() if _LOST.search(line) or _TIMEOUT.search(line)), None)
    if isinstance(error, ConvergateError) or not isinstance(error, RuntimeError) or not (known or of_store):
        return None
    said = _SOURCE.sub("", known or text.partition("\n")[0])
    return f"the connection to another rank is lost: {said.split('. ')[0]} → the log of that rank tells why"


def describe(before: Sequence[Beat | None], after: Sequence[Beat | None]) -> str:
    """Who is missing, of every rank's beats at two times, `SILENT_SECONDS` apart; None where a rank has none.

    Of the ranks that no error ended: those that are silent or behind, or all of them where none is.
    """
    here = [beat for beat in after if beat is not None]
    others = [beat for beat in here if not beat.failed]
    earlier = {beat.rank: beat.number for beat in before if beat is not None}
    silent = {beat.rank for beat in others if earlier.get(beat.rank) == beat.number}
    furthest = max((beat.position for beat in here), default=(0, 0))
    missing = [beat for beat in others if beat.rank in silent or beat.position < furthest]
    if not missing and len(others) < len(here):
        missing = others
    named = [f"rank {rank}, which was never heard" for rank, beat in enumerate(after) if beat is None]
    named += [f"{beat}{', silent' * (beat.rank in silent)}" for beat in missing]
    if named:
        return f"a collective waits for {_joined(named)} → {LOG}"
    return (
        f"nothing moves, and no rank is behind: {_joined([str(beat) for beat in here])}"
        " → check the network between the machines, or raise distributed.timeout_minutes"
    )


def _joined(named: list[str]) -> str:
    more = len(named) - MAX_NAMED
    return "; ".join(named[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _connect() -> "Store":
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=ANSWER_SECONDS),
    )


def _where() -> str:
    """The line of Python that the main thread is in."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" if frame else ""


__all__ = ["LOG", "Beat", "Heartbeat", "Phase", "Whereabouts", "describe", "lost_rank"]
