"""Kills runs of `convergate train` and compares what comes of them with the same runs uninterrupted.

    python tests/chaos/chaos.py --kills 200 --seed 1

Every pair of a victim and a moment is met alike. Prints a table, keeps it as `.bench/chaos.json`, and exits 1 when a
run is not, bit for bit, what it would have been, with the command that repeats it alone.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from unittest import mock

from convergate.pipelines.servers import s3_server
from rich.console import Console
from rich.table import Table
from runs import Run, RunError, Struck
from variants import LAST_KILL_STEP, VARIANTS, Variant
from verdicts import problems
from victims import Kill, Moment, Victim, draw

KEPT = Path(__file__).resolve().parents[2] / ".bench" / "chaos.json"
KILLS_PER_RUN = 10


class Outcome(NamedTuple):
    """A run's kills, and what did not hold afterwards."""

    variant: str
    struck: list[Struck]
    problems: list[str]


class Chaos:
    """Runs and their uninterrupted twins, on one S3 server with its data under `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._whole: dict[str, Run] = {}

    def outcome(self, number: int, kills: list[Kill]) -> Outcome:
        """Carry out the run of this number, and judge it."""
        variant = VARIANTS[number % len(VARIANTS)]
        run = Run(variant, f"run-{number:02}", self._home)
        try:
            whole = self.uninterrupted(variant)
            run.carry_out(kills, final_step=int(whole.committed()[-1].rpartition("-")[2]))
            return Outcome(variant.name, run.struck, problems(run, whole))
        except RunError as error:
            return Outcome(variant.name, run.struck, [str(error)])
        finally:
            run.end()

    def uninterrupted(self, variant: Variant) -> Run:
        """The run of a variant without kills, made once."""
        if variant.name not in self._whole:
            run = Run(variant, f"whole-{variant.name}", self._home)
            try:
                run.carry_out([])
            finally:
                run.end()
            self._whole[variant.name] = run
        return self._whole[variant.name]


@contextlib.contextmanager
def arena(home: Path) -> Iterator[Chaos]:
    """An S3 server under `home`, known to this process and all that it starts, whatever S3 the user has."""
    with s3_server(home) as found:
        variables = found | {"S3_ENDPOINT_URL": found["AWS_ENDPOINT_URL"]}
        with mock.patch.dict(os.environ, variables):
            yield Chaos(home)


def rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """A row for each pair of victim and moment, then one for each variant, then one of all."""
    met = [(struck, number) for number, outcome in enumerate(outcomes) for struck in outcome.struck]
    groups: list[tuple[str, list[tuple[Struck, int]]]] = [
        (
            f"{victim}, {moment}",
            [pair for pair in met if (pair[0].kill.victim, pair[0].kill.moment) == (victim, moment)],
        )
        for victim in Victim
        for moment in Moment
    ]
    for variant in VARIANTS:
        groups.append((variant.name, [pair for pair in met if outcomes[pair[1]].variant == variant.name]))
    return [_row(name, pairs, outcomes) for name, pairs in [*groups, ("all", met)] if pairs]


def _row(name: str, pairs: list[tuple[Struck, int]], outcomes: list[Outcome]) -> dict[str, Any]:
    numbers = {number for _, number in pairs}
    recoveries = [struck.recovery_seconds for struck, _ in pairs if struck.recovery_seconds is not None]
    killed = [struck.gone_seconds for struck, _ in pairs if struck.kill.victim is not Victim.TERMINATED]
    return {
        "stratum": name,
        "kills": len(pairs),
        "runs": len(numbers),
        "identical": sum(not outcomes[number].problems for number in numbers),
        "worst_seconds_until_workers_gone": max(killed, default=None),
        "worst_seconds_to_recovery": max(recoveries, default=None),
    }


def tell(console: Console, outcome: Outcome, command: str) -> None:
    """How a run ended; where something does not hold, what, and the command that repeats it alone."""
    said = "NOT the same" if outcome.problems else "identical"
    console.print(f"{outcome.variant}: {len(outcome.struck)} kills, {said}")
    for problem in [*outcome.problems, f"again: {command}"] if outcome.problems else []:
        console.print(f"         {problem}", style="red", highlight=False, soft_wrap=True)


def show(console: Console, outcomes: list[Outcome]) -> None:
    """The rows as a table; at worst, how long until the workers were gone, and until there was progress again."""
    table = Table("stratum", "kills", "runs", "identical", "gone", "recovered")
    for row in rows(outcomes):
        *counts, gone, recovery = row.values()
        table.add_row(*map(str, counts), *("" if value is None else f"{value:.2f} s" for value in (gone, recovery)))
    console.print(table)


def main() -> int:
    """Kill, judge, show, keep; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the kills (default: 1)")
    parser.add_argument("--run", type=int, help="only the run of this number")
    parser.add_argument("--keep", type=Path, default=KEPT, help="the JSON file (default: .bench/chaos.json)")
    parser.add_argument("--home", type=Path, help="where data and logs stay (default: a folder that is removed)")
    options = parser.parse_args()
    plan = dict(enumerate(draw(options.kills, KILLS_PER_RUN, LAST_KILL_STEP, options.seed)))
    console, started, outcomes = Console(), monotonic(), []
    with contextlib.ExitStack() as stack:
        home = options.home or stack.enter_context(tempfile.TemporaryDirectory(prefix="convergate-chaos-"))
        chaos = stack.enter_context(arena(Path(home).resolve()))
        for number in plan if options.run is None else [options.run]:
            outcomes.append(chaos.outcome(number, plan[number]))
            console.print(f"{monotonic() - started:5.0f} s  run {number}, ", end="")
            tell(console, outcomes[-1], f"{' '.join([sys.executable, *sys.argv])} --run {number}")
    show(console, outcomes)
    options.keep.parent.mkdir(exist_ok=True)
    options.keep.write_text(json.dumps({"seed": options.seed, "strata": rows(outcomes)}, indent=2) + "\n")
    return 1 if any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
