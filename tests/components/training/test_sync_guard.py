"""Ranks that disagree, in real processes: caught at the step, on every rank, and named."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.storage import S3Location, S3Store
from convergate.components.telemetry import read_trace
from convergate.components.training.job import JOBS, Job
from convergate.components.training.launch import LaunchError, launch
from convergate.components.training.result import TrainingResult

TASKS = '''
import gc
import os
from convergate.components.schedule import ScheduleEvent
from convergate.components.schedule.torch_adapter import ScheduleLR
from convergate.components.task.tabular import TabularTask

def schedulers():
    return [one for one in gc.get_objects() if isinstance(one, ScheduleLR) and one.last_epoch == 4]

class Faulty(TabularTask):
    """At step 4, `fault` befalls rank 1."""
    def loss(self, model, batch):
        if os.environ["RANK"] == "1":
            for scheduler in schedulers():
                self.fault(scheduler)
        return super().loss(model, batch)

class Nudged(Faulty):
    def fault(self, scheduler):
        step = scheduler.step
        def off(*arguments):
            step(*arguments)
            for group in scheduler.optimizer.param_groups:
                group["lr"] *= 1 + 1e-12
        scheduler.step = off

class Forgotten(Faulty):
    def fault(self, scheduler):
        scheduler.step = lambda *_: None

class Replanned(Faulty):
    """Its rates are those of its plan, which is another one."""
    def fault(self, scheduler):
        scheduler.add(ScheduleEvent(5, "rollback", 1 - 1e-12))

class ReplannedAtLast(TabularTask):
    """The same, for the last update."""
    def loss(self, model, batch):
        last = [one for one in gc.get_objects() if isinstance(one, ScheduleLR) and one.last_epoch == 10]
        if os.environ["RANK"] == "1" and last:
            last[0].add(ScheduleEvent(11, "rollback", 1 - 1e-12))
        return super().loss(model, batch)

class Other(TabularTask):
    """Rank 1 has other data."""
    def dataset(self, split):
        from torch.utils.data import TensorDataset
        first, second = super().dataset(split)[:]
        return TensorDataset(first + float(os.environ["RANK"]) * 1e-6, second)

class Fewer(TabularTask):
    """Rank 1 has a sample less."""
    def dataset(self, split):
        from torch.utils.data import Subset
        whole = super().dataset(split)
        return Subset(whole, range(len(whole) - int(os.environ["RANK"])))
'''
CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "guard",
    "task": {"factory": "convergate.components.task.tabular:TabularTask", "params": {}},
    "schedule": {"lr0": 0.1, "lr_min": 0.001, "total_steps": 12},
    "training": {"batch_size": 32, "eval_every_steps": 12},
    "distributed": {"procs_per_node": 2},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "guard"},
}


def _job(s3: str, factory: str, run_id: str = "run", **schedule: Any) -> Job:
    task = {"factory": factory, "params": {}}
    text = yaml.safe_dump({**CONFIG, "task": task, "schedule": {**CONFIG["schedule"], **schedule}})
    return Job(
        run_id=run_id,
        config_text=text,
        seed=5,
        checkpoint_uri=f"{s3}/checkpoints",
        trace_uri=f"{s3}/{run_id}/trace",
        result_uri=f"{s3}/{run_id}/training.json",
    )


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faults.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tasks")
def test_a_rate_off_plan_on_one_rank_stops_all_at_that_step_and_another_plan_at_the_next(s3: str) -> None:
    names = ["Nudged", "Forgotten", "Replanned", "ReplannedAtLast"]
    jobs = [_job(s3, f"faults:{name}", name.lower()) for name in names]
    launch(jobs, 2, 0, on_line=lambda line: None)
    results = [TrainingResult.from_json(S3Store().read(S3Location.parse(job.result_uri))) for job in jobs]
    for result, steps in zip(results, (5, 5, 6, 12), strict=True):
        assert (result.status, result.lr_sync_errors, result.final_step) == ("lr_sync_error", 1, steps)
        assert result.checkpoint_uri == ""
        trace = read_trace(result.trace_uri)
        assert trace.groupby("rank")["step"].max().to_list() == [min(steps, 11)] * 2
    nudged, forgotten, replanned, last = (result.reason for result in results)
    assert re.match(r"rank 1 on \S+ at step 5: the optimizer has lr 0\.\d+, the plan 0\.\d+", nudged)
    assert "rank 1 on" in forgotten
    assert "at step 5" in forgotten
    assert re.match(r"rank 1 on \S+ runs .*step=5, .*rank 0 on \S+ runs .*step=5, ", replanned)
    assert re.match(r"rank 1 on \S+ runs .*step=11, .*rank 0 on \S+ runs .*step=11, ", last)


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize(("task", "fact"), [("Other", r"data digest '\w+'"), ("Fewer", r"training samples \d+")])
def test_a_rank_with_other_data_is_named_before_the_first_step(s3: str, task: str, fact: str) -> None:
    with pytest.raises(LaunchError, match=rf"rank 1 on \S+ has {fact}, rank 0 on \S+ has "):
        launch([_job(s3, f"faults:{task}")], 2, 0, on_line=lambda line: None)
    assert read_trace(f"{s3}/run/trace").empty


def test_a_rank_that_was_started_with_another_config_is_named_before_the_first_step(s3: str, tmp_path: Path) -> None:
    factory = "convergate.components.task.tabular:TabularTask"
    for rank, lr0 in enumerate((0.1, 0.2)):
        (tmp_path / f"job-{rank}.json").write_bytes(JOBS.dump_json([_job(s3, factory, lr0=lr0)]))
    script = tmp_path / "worker.py"
    script.write_text(
        "import os; from convergate.components.training.worker import main; main(f\"job-{os.environ['RANK']}.json\")"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert re.search(
        r"convergate: rank 1: rank 1 on \S+ has config digest '\w+', rank 0 on \S+ has '\w+'", ended.stderr
    )
    assert read_trace(f"{s3}/run/trace").empty


def test_ten_thousand_healthy_steps_raise_nothing(s3: str) -> None:
    one = _job(s3, "convergate.components.task.tabular:TabularTask", total_steps=10_000)
    one = one.model_copy(update={"config_text": one.config_text.replace("every_steps: 12", "every_steps: 1000")})
    launch([one], 2, 0, on_line=lambda line: None)
    result = TrainingResult.from_json(S3Store().read(S3Location.parse(one.result_uri)))
    assert (result.status, result.final_step, result.max_lr_deviation, result.events) == ("completed", 10_000, 0, [])
    assert len(read_trace(one.trace_uri)) == 20_000
