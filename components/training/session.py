"""Everything one process trains with: model, optimizer, schedule, data, checkpoints and trace."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import default_collate

from ..checkpoint import CheckpointStore
from ..checkpoint.saver import Saver
from ..config import config_digests
from ..errors import UserError
from ..schedule import Schedule, ScheduleConfig, build_momentum, build_schedule
from ..schedule.torch_adapter import ScheduleLR
from ..storage.streams import Pace
from ..task import Split, Task, load_task
from ..telemetry import Detection, TraceWriter
from . import random_state
from .batches import loader, to_device
from .data_order import DataOrder
from .heartbeat import Phase
from .initial_weights import load_initial_weights
from .job import Job
from .optimizer import build_optimizer
from .parallel import Alone, Replicated, Sharded
from .progress import Progress
from .sync_guard import SyncGuard, checksum
from .throttle import Throttle
from .validation_rules import ValidationRules

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Session:
    """The state of one rank. `step` is the number of updates done, and of the next one to do."""

    def __init__(self, job: Job, attempt: int) -> None:
        self.job, self.attempt = job, attempt
        self.config = job.config()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = _device()
        self.digests = config_digests(self.config)
        self.task = load_task(self.config.task)
        random_state.seed(job.seed)
        self.guard = SyncGuard(self.rank, self.world_size, self.digests.training)
        self.module = self.task.model()
        self.parallel = self._spread()
        self.train_set, self.val_set = sized_dataset(self.task, "train"), sized_dataset(self.task, "val")
        self.num_train_samples = len(self.train_set)
        self.total_steps = job.total_steps or self.config.total_steps(self.num_train_samples)
        schedule = self._schedule_config()
        self.optimizer, self.scheduler = self._updates(schedule)
        fp16 = self.config.training.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        self.training = self.config.training
        if job.total_steps is not None or job.stop_at_step is not None:
            # A part of a run, such as the canary's, is judged as it is: no early end, no second try.
            self.training = self.training.model_copy(update={"early_stopping": None, "rollback": None})
        self.rules = ValidationRules(schedule, self.training)
        self.order = DataOrder(
            num_samples=self.num_train_samples,
            batch_size=self.config.training.batch_size,
            seed=job.seed,
            rank=self.rank,
            world_size=self.world_size,
            accumulation=job.accumulation or self.config.training.grad_accumulation,
        )
        self.trace = TraceWriter(job.trace_uri, self.rank, attempt)
        self.checkpoints = CheckpointStore(job.checkpoint_uri, job.run_id)
        pace = Pace()
        self.saver = Saver(self.checkpoints, self.rank, self.world_size, pace)
        self.throttle = Throttle(pace)
        self.init_uri, self.init_digest = job.init_uri, job.init_digest
        """The checkpoint that the weights began with, in whichever attempt or run that was."""
        self.step = 0
        self.phase: Phase = "starting"
        self.end_step = min(self.total_steps, job.stop_at_step or self.total_steps)
        """Where this job stops."""
        self.ended_early = False
        self.skipped_updates = 0
        self.device_seconds = 0.0
        self.metrics: dict[str, float] = {}
        self.newest_uri = ""
        """Of the newest checkpoint that was restored, or that a save was begun for; empty where there is none."""
        self.saved_step: int | None = None
        """The step of that one; None where this attempt has none to be content with."""
        random_state.seed(job.seed + 1 + self.rank)

    def _schedule_config(self) -> ScheduleConfig:
        schedule = self.config.schedule
        if self.job.total_steps is None:
            return schedule
        full_steps = self.config.total_steps(self.num_train_samples)
        whole = schedule.model_copy(update={"total_steps": full_steps, "total_epochs": None})
        return whole.compressed(self.job.total_steps)

    def _updates(self, schedule: ScheduleConfig) -> tuple[torch.optim.Optimizer, ScheduleLR]:
        """The optimizer and what moves its rates and its momentum."""
        curve = build_schedule(schedule, total_steps=self.total_steps, batch_size=self.config.training.batch_size)
        momentum = build_momentum(schedule, curve, self.config.optimizer.own_momentum)
        optimizer = build_optimizer(self.module, self.config.optimizer, curve.lr(0))
        return optimizer, ScheduleLR(optimizer, curve, momentum)

    def _spread(self) -> Alone:
        """Put the module on the device and spread it over the processes."""
        sharded = self.world_size > 1 and self.config.distributed.strategy == "fsdp2"
        if sharded:
            # Each rank keeps its part of its own module, where DDP gives all of them rank 0's.
            self.guard.agree_before_start({"initial parameters": checksum(self.module)})
        else:
            self.module.to(self.device)  # FSDP2 moves what it shards, a block at a time
        compiled = self.config.training.compile
        if self.world_size == 1:
            return Alone(self.module, compiled=compiled)
        if sharded:
            return Sharded(self.module, self.device, self._low_precision, compiled=compiled)
        return Replicated(self.module, self.device, compiled=compiled)

    @property
    def save_every(self) -> int:
        """Updates from one regular checkpoint to the next; an interruption saves between them."""
        return self.job.checkpoint_every or self.config.checkpoint.every_steps

    def begin_attempt(self, attempt: int) -> None:
        """Write trace and checkpoints under another attempt from here on."""
        self.trace.close()
        self.attempt, self.saved_step = attempt, None
        self.trace = TraceWriter(self.job.trace_uri, self.rank, attempt)

    @property
    def schedule(self) -> Schedule:
        """The plan as it stands, with the events until now."""
        return self.scheduler.schedule

    def batches(self) -> Iterator[Any]:
        """Collated micro-batches on the device, from the current step on."""
        order = replace(self.order, start_step=self.step)
        for batch in loader(self.train_set, batch_sampler=order, collate_fn=default_collate):
            yield to_device(batch, self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward pass's precision."""
        dtype = self._low_precision
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    @property
    def _low_precision(self) -> torch.dtype | None:
        return _AUTOCAST.get(self.config.training.precision)

    def note(self, progress: Progress, event: Detection) -> None:
        """Keep an event of the run: in its progress, and so in checkpoints, ledger and report, and in the trace."""
        progress.events.append(event)
        if self.rank == 0:
            self.trace.event(event.step, event.kind, event.detail)

    def begin(self) -> None:
        """Take the weights that the job begins with, where it names some; the rest of the state stays new.

        Raises:
            UserError: when they are another model's.
            CheckpointError: when they do not verify.
        """
        if self.init_uri:
            load_initial_weights(self.module, self.init_uri, self.init_digest)


def sized_dataset(task: Task, split: Split) -> Any:
    """The task's dataset of a split.

    Raises:
        UserError: when it has no length, or is empty.
    """
    dataset: Any = task.dataset(split)
    if not hasattr(dataset, "__len__"):
        raise UserError(f"the task's dataset({split!r}) has no length → a map-style dataset, with __len__")
    if len(dataset) == 0:
        raise UserError(f"the task's dataset({split!r}) is empty → at least one sample")
    return dataset


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise UserError(f"process {rank} of this machine has no GPU: there are {count} → procs_per_node: {count}")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device
