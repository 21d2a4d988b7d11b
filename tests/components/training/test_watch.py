"""An agent that waits for nobody is ended: processes that stand for it, with and without a worker."""

import subprocess
import sys
from pathlib import Path

import pytest
from convergate.components.training import watch
from convergate.components.training.watch import Watch, living_children

WAITS = "import time; time.sleep(600)"
WORKS = f"""
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(worker.pid, flush=True)
{WAITS}
"""


def agent(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_without_a_worker_for_too_long_it_is_stuck(tmp_path: Path) -> None:
    process = agent(WAITS)
    seen = Watch(process, tmp_path, 1, patience_seconds=0.5)
    assert process.wait(30) == -9
    assert seen.stuck


def test_with_a_worker_it_may_take_its_time_until_that_ends(tmp_path: Path) -> None:
    process = agent(WORKS)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert living_children(process.pid) == [worker]
    seen = Watch(process, tmp_path, 1, patience_seconds=1.0)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    subprocess.run(["kill", "-9", str(worker)], check=True)  # it stays as a zombie: nobody waits for it
    assert process.wait(30) == -9
    assert seen.stuck


def test_once_all_workers_ended_well_there_is_nothing_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "ENDED_SECONDS", 0.5)
    process = agent(WAITS)
    seen = Watch(process, tmp_path, 2, patience_seconds=600)
    (tmp_path / "end-0").write_text("done")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    (tmp_path / "end-1").write_text("interrupted")
    assert process.wait(30) == -9
    assert not seen.stuck
