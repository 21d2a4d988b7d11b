"""Five real retrainings in a row on the digits, and the command line's start-up: figures beside their targets.

    python tests/bench/bench_retrain.py

Runs in a fresh folder, so the ledger starts empty: the first four runs become challenger, the fifth is promoted.
Prints a table, keeps it as `.bench/retrain.json`, and exits 1 when a target is missed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from figures import ROOT, Figure, report
from rich.console import Console

CONFIG = ROOT / "manifests" / "configs" / "digits.yaml"
COMMAND = [sys.executable, "-m", "convergate.cli.main"]
NUM_RUNS = 5
NUM_STARTS = 11
EXPECTED = ["CHALLENGER"] * (NUM_RUNS - 1) + ["PROMOTE"]


def retrain(folder: Path) -> dict[str, Any]:
    """One whole run in `folder`; its outcome, with the accuracy that evaluation found."""
    done = subprocess.run(
        [*COMMAND, "retrain", str(CONFIG), "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    if not done.stdout.startswith("{"):
        raise SystemExit(f"retrain exited {done.returncode}: {done.stderr}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    documents = folder / ".convergate" / "s3" / "convergate" / "runs" / outcome["run_id"]
    for name in ("evaluation", "training", "plan"):
        outcome[name] = json.loads((documents / f"{name}.json").read_text())
    return outcome


def median_seconds(run: Callable[[], object], times: int) -> float:
    """The median wall time of a call, after one that is not counted."""
    run()
    seconds = []
    for _ in range(times):
        started = perf_counter()
        run()
        seconds.append(perf_counter() - started)
    return statistics.median(seconds)


def run_figures(outcomes: list[dict[str, Any]]) -> list[Figure]:
    """The figures of the five runs beside their targets."""
    decisions = [outcome["decision"] for outcome in outcomes]
    slowest = max(outcome["seconds"] for outcome in outcomes)
    worst = min(outcome["evaluation"]["value"] for outcome in outcomes)
    seeds = {outcome["plan"]["seed"] for outcome in outcomes}
    deviation = max(outcome["training"]["max_lr_deviation"] for outcome in outcomes)
    matching = sum(found == expected for found, expected in zip(decisions, EXPECTED, strict=True))
    return [
        Figure("decisions as expected, the fifth PROMOTE", matching, "of 5", "5", decisions == EXPECTED),
        Figure("slowest retrain, installed", slowest, "s", "< 60", slowest < 60),
        Figure("lowest test accuracy", worst, "", "≥ 0.97", worst >= 0.97),
        Figure("different seeds", len(seeds), "of 5", "5", len(seeds) == NUM_RUNS),
        Figure("largest LR deviation", deviation, "", "0", deviation == 0),
    ]


def start_figures() -> list[Figure]:
    """How long the command line takes to show its help, beside a bare interpreter."""
    helping = median_seconds(lambda: subprocess.run([*COMMAND, "--help"], capture_output=True, check=True), NUM_STARTS)
    bare = median_seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), NUM_STARTS)
    return [
        Figure("convergate --help", helping, "s", "< 0.3", helping < 0.3),
        Figure("convergate --help over a bare interpreter", helping / bare, "×", "shown", True),
    ]


def main() -> int:
    """Measure, show, keep; returns the exit code."""
    console = Console()
    figures = start_figures()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="convergate-bench-") as folder:
        for number in range(NUM_RUNS):
            with console.status(f"run {number + 1} of {NUM_RUNS}"):
                outcomes.append(retrain(Path(folder)))
            steps = " ".join(f"{name} {seconds:.1f}" for name, seconds in outcomes[-1]["step_seconds"].items())
            console.print(f"run {number + 1}: {outcomes[-1]['decision']} in {outcomes[-1]['seconds']:.1f} s ({steps})")
    return report(figures + run_figures(outcomes), "retrain")


if __name__ == "__main__":
    sys.exit(main())
