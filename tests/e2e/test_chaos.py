"""A few kills of `make chaos` through its own command; and that what it holds a run to can be missed."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import chaos
import pytest
import torch
from convergate.components.telemetry import StepRecord, TraceWriter
from convergate.components.training.result import TrainingResult
from variants import Variant
from verdicts import differences, late_writes
from victims import MARK, Moment, Victim, draw, processes

from ..checkpoints import commit
from ..documents import make_training


@pytest.mark.timeout(600)  # six launches of three processes each, beside other tests
def test_a_sample_of_kills_changes_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "chaos.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, chaos.__file__, "--kills", "4", "--seed", "198", "--keep", str(kept)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    everything = json.loads(kept.read_text())["strata"][-1]
    assert (everything["kills"], everything["runs"], everything["identical"]) == (4, 1, 1)
    assert everything["worst_seconds_until_workers_gone"] < 5


def test_a_run_that_fails_is_named_with_the_command_that_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["chaos.py", "--kills", "2", "--seed", "5", "--keep", str(tmp_path / "kept.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(chaos, "VARIANTS", (Variant("broken", training={"batch_size": 0}),))
    assert chaos.main() == 1
    said = capsys.readouterr().out
    assert "broken: 0 kills, NOT the same" in said
    assert "whole-broken exited 2, which no kill explains" in said
    assert f"again: {sys.executable} {' '.join(arguments)} --run 0" in said


def test_every_pair_of_victim_and_moment_is_met_alike() -> None:
    runs = draw(200, per_run=10, last_step=90, seed=1)
    met = Counter((kill.victim, kill.moment) for kills in runs for kill in kills)
    assert met == {(victim, moment): 4 if moment is Moment.FINISHING else 12 for victim in Victim for moment in Moment}
    assert {kills[-1].moment for kills in runs} == {Moment.FINISHING}
    assert [[kill.step for kill in kills] == sorted(kill.step for kill in kills) for kills in runs] == [True] * 20
    assert draw(200, 10, 90, seed=1) == runs != draw(200, 10, 90, seed=2)


def test_a_process_that_lives_on_is_found_whoever_its_parent_is() -> None:
    script = "sleep 60 >/dev/null 2>&1 & echo $!"
    shell = subprocess.run(["sh", "-c", script], env={MARK: "orphan"}, capture_output=True, text=True, check=True)
    orphan = int(shell.stdout)
    assert [process.pid for process in processes("orphan")] == [orphan]
    assert processes("orpha") == []
    os.kill(orphan, 9)
    while processes("orphan"):
        time.sleep(0.01)


def test_what_an_earlier_start_writes_after_a_later_one_is_named(tmp_path: Path) -> None:
    def write(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        time.sleep(0.02)  # the clock of a file system is coarse
        return path

    claims = [write("claims/001.json")]
    write("checkpoints/run/attempt-001-step-000000010-0123abcd/manifest.json")
    write("checkpoints/run/commits/998-999999989-attempt-001-step-000000010.json")
    claims.append(write("claims/002.json"))
    write("checkpoints/run/attempt-002-step-000000020-0123abcd/manifest.json")
    assert late_writes(claims, [tmp_path / "checkpoints"]) == []
    write("checkpoints/run/attempt-001-step-000000020-0123abcd/manifest.json")
    write("checkpoints/run/commits/998-999999979-attempt-001-step-000000020.json")
    assert late_writes(claims, [tmp_path / "checkpoints"]) == [
        "stale: attempt-001-step-000000020-0123abcd/manifest.json was written after start 2",
        "stale: commits/998-999999979-attempt-001-step-000000020.json was written after start 2",
    ]


@pytest.fixture
def make_result(s3: str) -> Any:
    """A run of two steps, with weights and a trace on S3."""

    def make(
        name: str, *, weight: float = 1.0, rows: tuple[tuple[float, float], ...], **changes: Any
    ) -> TrainingResult:
        trace = TraceWriter(f"{s3}/{name}/trace", 0, 1)
        for step, (lr, loss) in enumerate(rows):
            trace.append(StepRecord(step, lr, 0.1, loss, 1.0, 0.01, 32))
        trace.close()
        ref = commit(s3, name, {"model.weight": torch.tensor([weight]), "rng.0.cpu": torch.zeros(1)}, step=2)
        return make_training(checkpoint_uri=ref.uri, trace_uri=f"{s3}/{name}/trace", **changes)

    return make


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"weight": 1.0 + 2**-23}, ["weights: 1 of 2 tensors differ, ['model.weight']"]),
        ({"rows": ((0.1, 2.0), (0.1, 1.0 + 2**-52))}, ["trace: step 1 of rank 0 has another loss, first of 1"]),
        ({"rows": ((0.1, 2.0), (0.1 + 2**-55, 1.0))}, ["trace: step 1 of rank 0 has another lr, first of 1"]),
        ({"rows": ((0.1, 2.0),)}, ["trace: step 1 of rank 0 is missing, first of 1"]),
        ({"rows": ((0.1, 2.0), (0.1, 1.0), (0.1, 0.5))}, ["trace: step 2 of rank 0 is too much, first of 1"]),
        ({"final_step": 3}, ["final_step: 3 instead of 2"]),
    ],
)
def test_the_smallest_difference_is_named(make_result: Any, changes: dict[str, Any], named: list[str]) -> None:
    same = {"rows": ((0.1, 2.0), (0.1, 1.0)), "final_step": 2, "total_steps": 3}
    assert differences(make_result("killed", **(same | changes)), make_result("whole", **same)) == named
