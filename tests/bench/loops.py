"""One training in four loops: a bare torch loop, Accelerate's, Lightning's and ours, a block of steps at a time.

All begin with the same weights and see the same samples in the same order under the same rates, so their losses are
the same numbers. Each keeps the moment of every call of the task's loss: a step lasts from one to the next.
"""

import logging
import math
import statistics
from collections.abc import Iterator
from itertools import islice, pairwise
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from convergate.components.config import RunConfig, parse_config
from convergate.components.schedule import Schedule, build_schedule
from convergate.components.schedule.torch_adapter import ScheduleLR
from convergate.components.task.digits import DigitsTask
from convergate.components.task.tabular import TabularTask
from convergate.components.training import loop
from convergate.components.training.data_order import DataOrder
from convergate.components.training.job import Job
from convergate.components.training.progress import Progress
from convergate.components.training.session import Session
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

SEED = 17
CONFIG = """
schema_version: 1
experiment: bench
task: {{factory: "loops:{task}"}}
optimizer: {{kind: sgd, momentum: 0.9, grad_clip_norm: {clip}}}
schedule: {{kind: cosine, lr0: 0.01, lr_min: 0.0001, total_steps: {steps}, warmup: {{steps: 20}}}}
training: {{batch_size: {batch}, eval_every_steps: {steps}}}
checkpoint: {{every_steps: {steps}, keep_last: 1, keep_best: 0}}
evaluation: {{metric: accuracy, target: 0.5}}
promotion: {{model: bench}}
"""
MOMENTS: list[float] = []
"""When the loss was called."""
LOSSES: list[torch.Tensor] = []


class _Timed:
    """A task that keeps when its loss was called, and what it gave."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        MOMENTS.append(perf_counter())
        loss: torch.Tensor = super().loss(model, batch)  # type: ignore[misc]
        LOSSES.append(loss.detach())
        return loss


class TimedTabular(_Timed, TabularTask):
    """The smallest network that is shipped: 2,178 parameters."""


class TimedDigits(_Timed, DigitsTask):
    """A ResNet of 77,754 parameters."""


class Block(NamedTuple):
    """What a number of steps in a row took."""

    step_seconds: list[float]
    losses: list[float]

    @property
    def quick(self) -> float:
        """Seconds of a step in ten that are quicker: what else runs on the machine only ever adds to a step."""
        return statistics.quantiles(self.step_seconds, n=10, method="inclusive")[0]


class Loop(Protocol):
    """One of the four; `run` goes on where the last block ended."""

    def run(self, first: int, end: int) -> None:
        """Make the updates `first` to `end`."""
        ...


def timed(loop: Loop, first: int, end: int, unmeasured: int) -> Block:
    """A block of a loop; its first steps fill caches, and are not measured."""
    MOMENTS.clear()
    LOSSES.clear()
    loop.run(first, end)
    assert len(MOMENTS) == end - first
    seconds = [after - before for before, after in pairwise(MOMENTS)]
    return Block(seconds[unmeasured:], [loss.item() for loss in LOSSES])


class Setting:
    """What the loops have in common: the config, the task and its data, and fresh parts for each."""

    def __init__(self, task: str, batch_size: int, total_steps: int, clip_norm: float) -> None:
        self.clip_norm = clip_norm
        self.text = CONFIG.format(task=task, batch=batch_size, steps=total_steps, clip=clip_norm)
        self.config: RunConfig = parse_config(self.text)
        self.task: Any = {"TimedTabular": TimedTabular, "TimedDigits": TimedDigits}[task]()
        self.data = self.task.dataset("train")
        self.schedule: Schedule = build_schedule(self.config.schedule, total_steps=total_steps, batch_size=batch_size)

    def parts(self) -> tuple[torch.nn.Module, torch.optim.Optimizer, ScheduleLR]:
        """A fresh model with its optimizer and scheduler."""
        torch.manual_seed(SEED)
        model = self.task.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return model, optimizer, ScheduleLR(optimizer, self.schedule)

    def batches(self, first: int, end: int) -> DataLoader[Any]:
        """An ordinary loader of this process's part of the steps, whose samples are chosen beforehand."""
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        order = DataOrder(len(self.data), self.config.training.batch_size, SEED, rank, size, start_step=first)
        return DataLoader(self.data, batch_sampler=list(islice(order, end - first)))


class BareLoop:
    """What one writes by hand: clipping, the schedule, `loss.item()`, under DDP where there are processes."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model, self.optimizer, self.scheduler = setting.parts()
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.model = DistributedDataParallel(self.model)

    def run(self, first: int, end: int) -> None:
        total = 0.0
        for batch in self.setting.batches(first, end):
            self.optimizer.zero_grad()
            loss = self.setting.task.loss(self.model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.setting.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            total += loss.item()
        assert math.isfinite(total)


class AccelerateLoop:
    """As its guide has it, without trackers."""

    def __init__(self, setting: Setting) -> None:
        from accelerate import Accelerator

        self.setting, self.accelerator = setting, Accelerator(cpu=True)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(*setting.parts())

    def run(self, first: int, end: int) -> None:
        total = 0.0
        for batch in self.accelerator.prepare_data_loader(self.setting.batches(first, end)):
            self.optimizer.zero_grad()
            loss = self.setting.task.loss(self.model, batch)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.setting.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            total += loss.item()
        assert math.isfinite(total)


class LightningLoop:
    """A `Trainer` with `barebones=True`: no logger, checkpoint or progress bar; a new one for each block."""

    def __init__(self, setting: Setting) -> None:
        from lightning.pytorch import LightningModule

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        class Module(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model, self.optimizer, self.scheduler = setting.parts()
                self.total = 0.0

            def training_step(self, batch: Any, _: int) -> torch.Tensor:
                loss: torch.Tensor = setting.task.loss(self.model, batch)
                self.total += loss.item()
                return loss

            def configure_optimizers(self) -> dict[str, Any]:
                return {
                    "optimizer": self.optimizer,
                    "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"},
                }

        self.setting, self.module = setting, Module()

    def run(self, first: int, end: int) -> None:
        from lightning.pytorch import Trainer

        trainer = Trainer(accelerator="cpu", barebones=True, max_epochs=1, gradient_clip_val=self.setting.clip_norm)
        trainer.fit(self.module, self.setting.batches(first, end))
        assert math.isfinite(self.module.total)


class OurLoop:
    """The package's own, with its session: the trace on S3, guard, detectors, deterministic algorithms."""

    def __init__(self, setting: Setting, root: str) -> None:
        job = Job(
            run_id="bench",
            config_text=setting.text,
            seed=SEED,
            checkpoint_uri=f"{root}/checkpoints",
            trace_uri=f"{root}/trace",
            result_uri=f"{root}/training.json",
        )
        self.session, self.progress = Session(job, attempt=1), Progress()

    def run(self, first: int, end: int) -> None:
        assert self.session.step == first
        self.session.end_step = end
        torch.use_deterministic_algorithms(True)
        loop.train(self.session, self.progress)
        torch.use_deterministic_algorithms(False)


def in_turns(loops: dict[str, Loop], rounds: int, steps: int, unmeasured: int) -> Iterator[dict[str, Block]]:
    """Rounds of one block of each loop, each round in the opposite order of the last; the first is not given."""
    for number in range(rounds + 1):
        order = list(loops) if number % 2 else list(reversed(loops))
        blocks = {name: timed(loops[name], number * steps, (number + 1) * steps, unmeasured) for name in order}
        if number:
            yield blocks
