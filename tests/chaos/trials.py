"""Seeded trials of the checkpoints: faults on the network, at the server and at rest, and killed processes.

    python tests/chaos/trials.py --trials 500 --seed 1

Each case comes as often as any other. Prints a table, keeps it as `.bench/faults.json`, and exits 1 when something did
not hold, with the command that repeats that trial alone.
"""

import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import torch
from cases import drawn_case
from ranks import start_forkserver
from rich.console import Console
from rich.table import Table
from scene import SMALL_DISK, Scene, be_impatient, scene, why_no_small_disk
from story import SECONDS, Heard, Story

KEPT = Path(__file__).resolve().parents[2] / ".bench" / "faults.json"
WORKERS = 4
"""Processes: most of a trial is waiting."""
HANGING_SECONDS = 3 * SECONDS
"""Then a trial is ended with the traces of its threads, and counts as one that does not end."""


@dataclass
class Outcome:
    """What came of one trial."""

    number: int
    case: str
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""
    """Why it could not take place."""


class Stage:
    """The trials of one worker, on servers of its own that start when they are needed."""

    def __init__(self, home: Path, seed: int) -> None:
        self._home, self._seed = home, seed
        self._stack = ExitStack()
        self._scenes: dict[str, Scene] = {}
        self._heard = Heard.by(lambda _: None)

    def outcome(self, number: int) -> Outcome:
        """Carry out one trial."""
        case = drawn_case(number, self._seed)
        outcome = Outcome(number, case.name)
        outcome.skipped = why_no_small_disk() if case.server == SMALL_DISK else ""
        if outcome.skipped:
            return outcome
        story = Story(self._scene(case.server), f"trial-{number:05}", Random(f"{self._seed} {number}"))
        self._heard.tell = story.log.append
        faulthandler.dump_traceback_later(HANGING_SECONDS, exit=True)
        started = monotonic()
        with story.scene.proxied():
            try:
                with contextlib.closing(story):
                    case.play(story)
            except Exception:  # whatever it is, the trial has not survived
                story.problems.append(traceback.format_exc())
        outcome.seconds, outcome.problems = monotonic() - started, story.problems
        faulthandler.cancel_dump_traceback_later()
        if outcome.seconds > SECONDS:
            outcome.problems.append(f"took {outcome.seconds:.0f} s, {SECONDS:.0f} s are allowed")
        return outcome

    def _scene(self, kind: str) -> Scene:
        if kind not in self._scenes:
            home = self._home / str(len(self._scenes))
            self._scenes[kind] = self._stack.enter_context(scene(kind, home))
        return self._scenes[kind]

    def end(self) -> None:
        """Stop the servers."""
        self._stack.close()


def work(told: Connection, home: Path, seed: int) -> None:
    """Carry out the trials whose numbers come, until None comes."""
    torch.set_num_threads(1)
    start_forkserver()
    be_impatient()
    stage = Stage(home, seed)
    try:
        while (number := told.recv()) is not None:
            told.send(stage.outcome(number))
    finally:
        stage.end()


class Workers:
    """Processes that carry trials out, each with servers of its own; one that hangs is replaced."""

    def __init__(self, num: int, home: Path, seed: int) -> None:
        self._num, self._home, self._seed = num, home, seed
        self._begun = 0
        self._at: dict[Connection, tuple[Any, int]] = {}
        """The process at the other end, and the number of its trial."""

    def outcomes(self, numbers: list[int]) -> Iterator[Outcome]:
        """What came of these trials, in the order in which they end."""
        left = list(reversed(numbers))
        for _ in range(min(self._num, len(left))):
            self._give(self._start(), left)
        while self._at:
            for told in wait(list(self._at)):
                assert isinstance(told, Connection)
                worker, number = (told, self._at[told][0]), self._at.pop(told)[1]
                try:
                    yield told.recv()
                except (EOFError, OSError):
                    name = drawn_case(number, self._seed).name
                    yield Outcome(number, name, HANGING_SECONDS, ["its process ended: see the traces above"])
                    worker = self._start()
                self._give(worker, left)

    def _start(self) -> tuple[Connection, Any]:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._home / f"worker-{self._begun}", self._seed))
        process.start()
        theirs.close()
        self._begun += 1
        return mine, process

    def _give(self, worker: tuple[Connection, Any], left: list[int]) -> None:
        told, process = worker
        if left:
            self._at[told] = process, left.pop()
            told.send(self._at[told][1])
        else:
            told.send(None)
            process.join()


def rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """A row for each case, then one of all."""
    names = sorted({outcome.case for outcome in outcomes})
    groups = [(name, [outcome for outcome in outcomes if outcome.case == name]) for name in names]
    return [_row(name, group) for name, group in [*groups, ("all", outcomes)]]


def _row(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    tried = [outcome for outcome in outcomes if not outcome.skipped]
    return {
        "fault": name,
        "trials": len(tried),
        "survived": sum(not outcome.problems for outcome in tried),
        "worst_seconds": round(max((outcome.seconds for outcome in tried), default=0.0), 2),
        "skipped": next((outcome.skipped for outcome in outcomes if outcome.skipped), ""),
    }


def show(console: Console, outcomes: list[Outcome]) -> None:
    """The rows as a table."""
    table = Table("fault", "trials", "survived", "at worst", "skipped")
    for fault, trials, survived, seconds, skipped in (row.values() for row in rows(outcomes)):
        table.add_row(fault, str(trials), str(survived), f"{seconds:.1f} s", skipped)
    console.print(table)


def main() -> int:
    """Try, judge, show, keep; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500, help="in all (default: 500)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: 1)")
    parser.add_argument("--trial", type=int, help="only the trial of this number")
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"processes (default: {WORKERS})")
    parser.add_argument("--keep", type=Path, default=KEPT, help="the JSON file (default: .bench/faults.json)")
    options = parser.parse_args()
    console, started, outcomes = Console(), monotonic(), list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="convergate-faults-") as home:
        workers = Workers(options.workers, Path(home), options.seed)
        for outcome in workers.outcomes(list(range(options.trials)) if options.trial is None else [options.trial]):
            outcomes.append(outcome)
            if outcome.problems:
                console.print(f"trial {outcome.number}, {outcome.case}: NOT survived", style="red")
            for problem in outcome.problems:
                console.print(f"    {problem}", highlight=False, soft_wrap=True, markup=False)
            if outcome.problems:
                again = f"{' '.join([sys.executable, *sys.argv])} --trial {outcome.number}"
                console.print(f"    again: {again}", highlight=False, soft_wrap=True)
    seconds = monotonic() - started
    show(console, outcomes)
    console.print(f"{len(outcomes)} trials in {seconds:.0f} s")
    options.keep.parent.mkdir(exist_ok=True)
    kept = {"seed": options.seed, "seconds": round(seconds, 1), "faults": rows(outcomes)}
    options.keep.write_text(json.dumps(kept, indent=2) + "\n")
    missing = os.environ.get("CI") == "true" and any(outcome.skipped for outcome in outcomes)
    return 1 if missing or any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
