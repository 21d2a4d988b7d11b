"""Who is killed, and when: kills drawn from a seed, and the processes of a run that they meet."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
MARK = "CONVERGATE_CHAOS_RUN"
"""In the environment of every process of a run, so that it is found whoever its parent is by now."""


class Victim(StrEnum):
    """What a signal ends: SIGKILL, but for the last."""

    WORKER = "one worker"
    AGENT = "the agent"
    COMMAND = "the command"
    ALL = "all"
    TERMINATED = "SIGTERM"


class Moment(StrEnum):
    """What the run is doing then."""

    STARTING = "starting"
    STEPPING = "stepping"
    SAVING = "saving"
    FINISHING = "finishing"
    """The last checkpoint is committed; a run can be killed once then."""


@dataclass(frozen=True)
class Kill:
    """One kill of a run."""

    victim: Victim
    moment: Moment
    step: int
    """Not before so many updates."""
    chance: float
    """In [0, 1): which process of several, and how long after the moment began."""


def draw(num: int, per_run: int, last_step: int, seed: int) -> list[list[Kill]]:
    """The kills of each run, `per_run` or fewer: by their steps, then one that meets it while finishing.

    All pairs of a victim and one of the other moments are alike often, and so are the victims at the end.
    """
    chance = random.Random(seed)
    moments = [moment for moment in Moment if moment is not Moment.FINISHING]
    deck = _shuffled(list(product(Victim, moments)), chance)
    last = _shuffled(list(Victim), chance)
    runs = []
    for start in range(0, num, per_run):
        length = min(per_run, num - start)
        steps = sorted(chance.randrange(1, last_step) for _ in range(length - 1))
        kills = [Kill(*next(deck), step, chance.random()) for step in steps]
        runs.append([*kills, Kill(next(last), Moment.FINISHING, last_step, chance.random())])
    return runs


def _shuffled(items: list[Item], chance: random.Random) -> Iterator[Item]:
    """All of the items in an order of chance, and all again in another, without end."""
    while True:
        chance.shuffle(items)
        yield from items


@dataclass(frozen=True)
class Process:
    """A process of a run, the zombies left out."""

    pid: int
    part: Victim
    """`WORKER`, `AGENT` or `COMMAND`."""

    def ended(self) -> bool:
        """Whether it is gone, or nothing but a zombie."""
        try:
            return (Path("/proc", str(self.pid), "stat")).read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    def end(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal; that it has ended meanwhile is fine."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signum)


def processes(run: str) -> list[Process]:
    """The processes of a run that live."""
    return [process for process in _marked(f"{MARK}={run}".encode()) if not process.ended()]


def _marked(mark: bytes) -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                yield Process(int(entry.name), _part((entry / "cmdline").read_bytes()))


def _part(command: bytes) -> Victim:
    """The agent names the workers after its own options."""
    if b"training.agent" in command:
        return Victim.AGENT
    return Victim.WORKER if b"training.worker" in command else Victim.COMMAND


def chosen(kill: Kill, living: list[Process]) -> list[Process]:
    """Whom it meets of those that live: nobody where its victim has not been started yet.

    SIGTERM comes to the command, as from an orchestrator, or to one worker, as from a node that is drained.
    """
    if kill.victim is Victim.ALL:
        return living
    part = kill.victim
    if part is Victim.TERMINATED:
        part = Victim.COMMAND if kill.chance < 0.5 else Victim.WORKER
    of_part = sorted((process for process in living if process.part is part), key=lambda process: process.pid)
    return [of_part[int(kill.chance * 1000) % len(of_part)]] if of_part else []


def strike(kill: Kill, met: list[Process]) -> None:
    """Send the signal."""
    for process in met:
        process.end(signal.SIGTERM if kill.victim is Victim.TERMINATED else signal.SIGKILL)
