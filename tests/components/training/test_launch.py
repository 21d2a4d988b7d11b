"""Real worker processes: bit-identical after a kill, ranks that disagree are named, user errors in one line."""

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.errors import ExitCode
from convergate.components.storage import S3Location, S3Store
from convergate.components.telemetry import read_trace
from convergate.components.training.job import Job
from convergate.components.training.launch import LaunchError, launch
from convergate.components.training.result import TrainingResult

CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "digits",
    "task": {"factory": "convergate.components.task.digits:DigitsTask", "params": {"width": 8}},
    "optimizer": {"kind": "sgd", "grad_clip_norm": 1.0},
    "schedule": {"lr0": 0.1, "lr_min": 0.001, "total_steps": 24, "warmup": {"steps": 4}},
    "training": {"batch_size": 64, "eval_every_steps": 8},
    "distributed": {"procs_per_node": 2},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "digits"},
}


def job(s3: str, run_id: str, changes: dict[str, Any] | None = None, **options: Any) -> Job:
    config = copy.deepcopy(CONFIG)
    for path, value in (changes or {}).items():
        section, _, key = path.partition(".")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return Job(
        run_id=run_id,
        config_text=yaml.safe_dump(config),
        seed=5,
        checkpoint_uri=f"{s3}/checkpoints",
        trace_uri=f"{s3}/{run_id}/trace",
        result_uri=f"{s3}/{run_id}/training.json",
        checkpoint_every=8,
        **options,
    )


def run(one: Job, num_procs: int = 2, max_restarts: int = 0) -> TrainingResult:
    launch([one], num_procs, max_restarts, on_line=lambda line: None)
    return TrainingResult.from_json(S3Store().read(S3Location.parse(one.result_uri)))


def weights(result: TrainingResult) -> list[str]:
    """The checksums of everything that was saved: model, optimizer, random state."""
    from convergate.components.checkpoint.reading import read_manifest

    return [stored.crc64nvme for stored in read_manifest(result.checkpoint_uri)[0].objects]


def test_after_kill_9_of_a_worker_weights_and_trace_are_those_of_an_uninterrupted_run(s3: str) -> None:
    whole = run(job(s3, "whole"))
    killed = run(job(s3, "killed", kill_at_step=13), max_restarts=1)
    assert (whole.attempts, killed.attempts) == (1, 2)
    assert [(event.kind, event.step) for event in killed.events] == [("resumed", 8)]
    assert weights(killed) == weights(whole)
    assert killed.train_loss == whole.train_loss
    columns = ["rank", "step", "lr", "loss", "grad_norm", "samples"]
    assert read_trace(killed.trace_uri)[columns].equals(read_trace(whole.trace_uri)[columns])
    assert whole.max_lr_deviation == 0
    assert set(read_trace(whole.trace_uri)["samples"]) == {32}


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize(("kind", "lr0", "precision"), [("adamw", 0.003, "fp32"), ("sgd", 0.1, "bf16")])
def test_also_with_accumulation_adamw_bf16_and_an_awkward_task(s3: str, kind: str, lr0: float, precision: str) -> None:
    changes = {
        "task": {"factory": "odd_tasks:Awkward", "params": {"width": 8}},
        "optimizer.kind": kind,
        "schedule.lr0": lr0,
        "training.precision": precision,
        "training.grad_accumulation": 2,
    }
    whole = run(job(s3, "whole", changes))
    killed = run(job(s3, "killed", changes, kill_at_step=13), max_restarts=1)
    assert weights(killed) == weights(whole)
    assert whole.status == "completed"
    assert whole.val_metrics.keys() == {"loss", "accuracy"}


def test_a_smaller_world_continues_with_the_same_rate_and_data(s3: str) -> None:
    first = run(job(s3, "run", stop_at_step=8))
    second = run(job(s3, "run"), num_procs=1)
    assert (first.final_step, second.final_step) == (8, 24)
    trace = read_trace(second.trace_uri)
    late = trace[trace["step"] >= 8]
    assert set(late[late["attempt"] == 2]["samples"]) == {64}
    assert (trace["lr"] == trace["lr_planned"]).all()


TASKS = '''
import os
from collections import namedtuple
from convergate.components.task.digits import DigitsTask

Item = namedtuple("Item", "image label")

class Tampered(DigitsTask):
    """Rank 1 finds another rate in its optimizer at step 5."""
    def loss(self, model, batch):
        import gc
        from convergate.components.schedule.torch_adapter import ScheduleLR
        if os.environ["RANK"] == "1":
            for scheduler in [o for o in gc.get_objects() if isinstance(o, ScheduleLR)]:
                if scheduler.last_epoch == 4:
                    scheduler.schedule_step = scheduler.step
                    def off(*a, s=scheduler):
                        s.schedule_step(*a)
                        for group in s.optimizer.param_groups:
                            group["lr"] *= 1 + 1e-12
                    scheduler.step = off
        return super().loss(model, batch)

class Parted(DigitsTask):
    """Rank 1 flips one weight by hand."""
    calls = 0
    def loss(self, model, batch):
        import torch
        self.calls += 1
        if os.environ["RANK"] == "1" and self.calls == 3:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] += 1e-6
        return super().loss(model, batch)

class Vector(DigitsTask):
    """A loss that is no scalar."""
    def loss(self, model, batch):
        return super().scores(model, batch)["loss"]

class Unused(DigitsTask):
    """A layer that nobody calls."""
    def model(self):
        import torch
        model = super().model()
        model.spare = torch.nn.Linear(2, 2)
        return model

class Endless(DigitsTask):
    """A stream instead of a dataset."""
    def dataset(self, split):
        import torch
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(())
        return Stream()

class Infinite(DigitsTask):
    """Rank 1's loss is infinite at step 5, its gradient is not."""
    calls = 0
    def loss(self, model, batch):
        self.calls += 1
        bad = os.environ["RANK"] == "1" and self.calls == 6
        return super().loss(model, batch) + (float("inf") if bad else 0.0)

class Together(DigitsTask):
    """While the agent stands still, rank 1 ends by SIGKILL and rank 0 by an error; then it looks at both at once."""
    def loss(self, model, batch):
        import signal
        import subprocess
        import torch.distributed as dist
        agent, workers = os.getppid(), [None, None]
        dist.all_gather_object(workers, os.getpid())
        if dist.get_rank() == 0:
            os.kill(agent, signal.SIGSTOP)
            ended = " && ".join(f"grep -q '^State:.Z' /proc/{worker}/status" for worker in workers)
            subprocess.Popen(["sh", "-c", f"until {ended}; do sleep 0.02; done; kill -CONT {agent}"])
        dist.barrier()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ConnectionError("the other rank is gone")

class Awkward(DigitsTask):
    """BatchNorm, dropout, NumPy's and Python's random augmentation, batches of a named tuple, one validation sample."""
    def model(self):
        import torch
        model = super().model()
        model.head = torch.nn.Sequential(torch.nn.BatchNorm1d(32), torch.nn.Dropout(0.2), torch.nn.Linear(32, 10))
        return model
    def dataset(self, split):
        inner, limit = super().dataset(split), 1 if split == "val" else None
        class Augmented:
            def __len__(self):
                return limit or len(inner)
            def __getitem__(self, index):
                import random
                import numpy as np
                image, label = inner[index]
                return Item(image + 0.1 * float(np.random.normal()) + 0.01 * random.gauss(0, 1), label)
        return Augmented()

class Slow(Awkward):
    """Time to be interrupted."""
    def loss(self, model, batch):
        import time
        time.sleep(0.05)
        return super().loss(model, batch)
'''


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tasks")
def test_a_rate_off_by_1e12_on_one_rank_stops_all_and_names_it(s3: str) -> None:
    result = run(job(s3, "run", {"task.factory": "odd_tasks:Tampered", "task.params": {"width": 8}}))
    assert (result.status, result.lr_sync_errors, result.verdict) == ("lr_sync_error", 1, "FAIL")
    assert "rank 1 on" in result.reason
    assert "at step 5" in result.reason
    assert result.final_step == 5


@pytest.mark.usefixtures("tasks")
def test_replicas_that_part_are_caught_at_the_next_checksum(s3: str) -> None:
    with pytest.raises(LaunchError, match=r"after 8 updates the parameters of ranks \[1\] differ"):
        run(job(s3, "run", {"task.factory": "odd_tasks:Parted"}))


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Vector", r"loss.* is not a scalar"),
        ("Unused", r"parameters that take no part in the loss"),
        ("Endless", r"dataset\('train'\) has no length"),
    ],
)
def test_a_task_that_cannot_be_trained_is_said_in_one_line(s3: str, task: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message) as caught:
        run(job(s3, "run", {"task.factory": f"odd_tasks:{task}"}))
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.usefixtures("tasks")
def test_an_infinite_loss_stops_all_although_its_gradient_is_finite(s3: str) -> None:
    result = run(job(s3, "run", {"task.factory": "odd_tasks:Infinite"}))
    assert (result.status, result.final_step, result.anomalous) == ("diverged", 5, True)
    assert "loss inf" in result.reason


def test_a_worker_that_a_signal_ended_is_named(s3: str) -> None:
    with pytest.raises(LaunchError, match=r"rank 1 was ended by SIGKILL"):
        run(job(s3, "run", kill_at_step=3))


@pytest.mark.usefixtures("tasks")
def test_of_workers_that_end_in_the_same_poll_the_killed_one_is_named(s3: str) -> None:
    """The other one's error is only what the kill made of it."""
    with pytest.raises(LaunchError, match=r"rank 1 was ended by SIGKILL"):
        run(job(s3, "run", {"task.factory": "odd_tasks:Together"}))


def test_a_process_whose_parent_is_gone_ends_at_once() -> None:
    """Also where the parent ended before the child could ask to die with it."""
    command = [sys.executable, "-m", "convergate.components.training.lifetime", "this"]
    gone = subprocess.run(command, env={**os.environ, "CONVERGATE_PARENT_PID": "1"}, capture_output=True, check=False)
    assert (gone.returncode, gone.stdout) == (-signal.SIGKILL, b"")
    mine = {**os.environ, "CONVERGATE_PARENT_PID": str(os.getpid())}
    assert b"Zen" in subprocess.run(command, env=mine, capture_output=True, check=True).stdout


def test_what_only_the_user_can_mend_is_not_tried_again(s3: str) -> None:
    one = job(s3, "run", {"training.batch_size": 4096})
    with pytest.raises(LaunchError, match=r"training split has 12\d\d samples"):
        run(one, max_restarts=1)
    assert len(list(S3Store().list(S3Location.parse(one.result_uri + ".attempts")))) == 1


@pytest.mark.usefixtures("tasks")
def test_sigterm_saves_and_the_next_launch_continues(s3: str, tmp_path: Path) -> None:
    """SIGTERM reaches the agent as from an orchestrator; every rank agrees, saves and ends."""
    one = job(s3, "run", {"task.factory": "odd_tasks:Slow"})
    (tmp_path / "one.json").write_text(one.model_dump_json())
    script = (
        "import sys; from pathlib import Path\n"
        "from convergate.components.training.job import Job\n"
        "from convergate.components.training.launch import launch, InterruptedRunError\n"
        "try: launch([Job.model_validate_json(Path('one.json').read_text())], 2, 1)\n"
        "except InterruptedRunError as error: sys.exit(int(error.exit_code))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 8/"):
            break
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    saved = TrainingResult.from_json(S3Store().read(S3Location.parse(one.result_uri)))
    assert saved.status == "interrupted"
    assert 8 <= saved.final_step < 24
    continued = run(one)
    assert [(event.kind, event.step) for event in continued.events] == [("resumed", saved.final_step)]
    assert weights(continued) == weights(run(job(s3, "whole", {"task.factory": "odd_tasks:Slow"})))


def test_a_lost_s3_ends_the_run_as_an_outside_failure(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    started, before = time.monotonic(), set(threading.enumerate())
    with pytest.raises(LaunchError, match="permission denied") as caught:
        run(job(s3, "run"))
    assert caught.value.exit_code == ExitCode.OUTSIDE
    assert time.monotonic() - started < 120
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive(), thread
