"""`ScheduleLR` in Lightning's loop and in Accelerate's, and its rates beside those of transformers and torch."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from convergate.components.schedule import CosineSchedule, LinearSchedule, Schedule, ScheduleEvent
from convergate.components.schedule.events import with_events
from convergate.components.schedule.torch_adapter import ScheduleLR
from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

SCHEDULE = CosineSchedule(lr0=0.1, total_steps=30, lr_min=0.001, warmup_steps=5, cycle_steps=10, scale=0.5)
SCALES = (1.0, 0.3)
EVENT = ScheduleEvent(9, "restart")
UPDATES, SAVED_AT = 24, 14
WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "not prepared": {"prepared": False},
    "not prepared, accumulated": {"prepared": False, "gradient_accumulation_steps": 2},
    "stepped by hand": {"step_scheduler_with_optimizer": False},
    "stepped by hand, accumulated": {"step_scheduler_with_optimizer": False, "gradient_accumulation_steps": 2},
    "split batches": {"split_batches": True},
    "split batches, accumulated": {"split_batches": True, "gradient_accumulation_steps": 2},
}


def plan(updates: range) -> list[list[float]]:
    """The rates of both groups at these updates, of a run with the event."""
    schedule = with_events(SCHEDULE, (EVENT,))
    return [[schedule.lr(step) * scale for scale in SCALES] for step in updates]


class Regression(LightningModule):
    """A model with two groups of parameters; keeps the rates that each update was made with.

    A resumed one is made without events: the checkpoint has them.
    """

    def __init__(self, *events: ScheduleEvent) -> None:
        super().__init__()
        self.events = events
        self.layer = torch.nn.Linear(4, 1)
        self.used: list[list[float]] = []

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.layer.weight]}, {"params": [self.layer.bias], "lr_scale": SCALES[1]}]
        optimizer = torch.optim.SGD(groups, lr=123.0, momentum=0.9)
        optimizer.register_step_pre_hook(lambda *_: self.used.append([group["lr"] for group in optimizer.param_groups]))
        scheduler = ScheduleLR(optimizer, SCHEDULE)
        for event in self.events:
            scheduler.add(event)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_lightning_applies_the_plan_before_and_after_a_resume(tmp_path: Path, accumulation: int) -> None:
    def fit(module: Regression, updates: int, checkpoint: str | None) -> Trainer:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=updates,
            accumulate_grad_batches=accumulation,
            gradient_clip_val=1.0,
            default_root_dir=tmp_path,
            **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        )
        trainer.fit(module, DataLoader(TensorDataset(torch.randn(160, 4)), batch_size=16), ckpt_path=checkpoint)
        return trainer

    module, checkpoint = Regression(EVENT), str(tmp_path / "checkpoint.ckpt")
    fit(module, SAVED_AT, None).save_checkpoint(checkpoint)
    assert module.used == plan(range(SAVED_AT))
    resumed = Regression()
    fit(resumed, UPDATES, checkpoint)
    assert resumed.used == plan(range(SAVED_AT, UPDATES))


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes under Accelerate left the rates of their updates."""
    folder, script = tmp_path_factory.mktemp("accelerate"), Path(__file__).with_name("accelerate_processes.py")
    job = {"schedule": dataclasses.asdict(SCHEDULE), "updates": UPDATES, "saved_at": SAVED_AT, "ways": WAYS}
    job["event"] = EVENT.to_json()
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_accelerate_applies_the_plan_before_and_after_a_resume(accelerated: Path, way: str, rank: int) -> None:
    """As it comes, its wrapper makes a step for each process (accelerate#2926): a schedule of double speed."""
    steps = {"as it comes": 2}.get(way, 1)
    used, resumed = json.loads((accelerated / f"rates-{rank}.json").read_text())[way]
    assert used == plan(range(0, steps * UPDATES, steps))
    assert resumed == plan(range(steps * SAVED_AT, steps * UPDATES, steps))


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda o: transformers.get_cosine_schedule_with_warmup(o, 30, 330), CosineSchedule(0.1, 330, 0, 30)),
        (
            lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, 30, 330, min_lr=0.001),
            CosineSchedule(0.1, 330, 0.001, 30),
        ),
        (
            lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, 30, 330, num_cycles=4),
            CosineSchedule(0.1, 330, 0, 30, cycle_steps=75),
        ),
        (lambda o: transformers.get_linear_schedule_with_warmup(o, 30, 330), LinearSchedule(0.1, 330, 0, 30)),
        (
            lambda o: CosineAnnealingWarmRestarts(o, T_0=5, T_mult=3, eta_min=0.001),
            CosineSchedule(0.1, 10**6, 0.001, cycle_steps=5, cycle_mult=3),
        ),
    ],
    ids=["cosine", "cosine with a minimum", "hard restarts", "linear", "torch's warm restarts"],
)
def test_the_same_curve(theirs: Callable[[torch.optim.Optimizer], LRScheduler], ours: Schedule) -> None:
    """Theirs add 1 to a cosine: an absolute error of a few units in the last place of the peak."""
    stepped = optimizer()
    scheduler = theirs(stepped)
    for step in range(min(ours.total_steps + 1, 610)):
        assert ours.lr(step) == pytest.approx(stepped.param_groups[0]["lr"], rel=0, abs=1e-16), step
        stepped.step()
        scheduler.step()


def test_where_theirs_miss_a_restart_ours_is_at_the_peak() -> None:
    """They find the cycle in floating point: the last digit decides between the peak and the trough."""
    hard = transformers.get_cosine_with_hard_restarts_schedule_with_warmup(optimizer(), 0, 220, num_cycles=22)
    assert hard.lr_lambdas[0](150) == 0.0
    assert CosineSchedule(0.1, 220, cycle_steps=10).lr(150) == 0.1
    warm = CosineAnnealingWarmRestarts(optimizer(), T_0=5, T_mult=3)
    warm.step(605)
    assert warm.get_last_lr() == [0.0]
    assert CosineSchedule(0.1, 10**6, cycle_steps=5, cycle_mult=3).lr(605) == 0.1
