"""Everything one process trains with: model, optimizer, schedule, data, checkpoints and trace."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from ..checkpoint import CheckpointRef, CheckpointStore, Manifest
from ..checkpoint.store import MODEL_PREFIX, restore
from ..config import config_digests
from ..config.optimizer import OptimizerConfig, ParameterGroup
from ..errors import UserError
from ..schedule import build_momentum, build_schedule
from ..schedule.torch_adapter import ScheduleLR
from ..task import Split, Task, load_task
from ..telemetry import TraceWriter
from . import random_state
from .batches import loader, to_device
from .data_order import DataOrder
from .job import Job
from .progress import Progress
from .random_state import RandomState
from .sync_guard import SyncGuard

OPTIMIZER_PREFIX = "optim."
RNG_PREFIX = "rng."


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """The configured optimizer over all parameters that train.

    With `groups`, the first parameter group has what none of them matches, and may be empty; the others follow in
    their order. So the first group's rate is always the schedule's own.

    Raises:
        UserError: when a group gets no parameter.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters: Any = _parameter_groups(named, config.groups) if config.groups else list(named.values())
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=lr, betas=config.betas, weight_decay=config.weight_decay)


def _parameter_groups(named: dict[str, nn.Parameter], groups: tuple[ParameterGroup, ...]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"params": []}]
    for group in groups:
        own_decay = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
        made.append({"params": [], "lr_scale": group.lr_scale, **own_decay})
    for name, parameter in named.items():
        matching = (number for number, group in enumerate(groups, 1) if re.fullmatch(group.match, name))
        made[next(matching, 0)]["params"].append(parameter)
    for number, group in enumerate(groups):
        if not made[number + 1]["params"]:
            reason = "matches no parameter that trains → the whole name of one, such as " + next(iter(named), "…")
            if any(re.fullmatch(group.match, name) for name in named):
                reason = "groups before it take all that it matches → put it before them, or leave it out"
            raise UserError(f"optimizer.groups.{number}.match = {group.match!r}: {reason}")
    return made


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
        self.module = self.task.model().to(self.device)
        self.train_set, self.val_set = sized_dataset(self.task, "train"), sized_dataset(self.task, "val")
        self.num_train_samples = len(self.train_set)
        schedule = self.config.schedule
        self.total_steps = self.config.total_steps(self.num_train_samples)
        if job.total_steps is not None:
            whole = schedule.model_copy(update={"total_steps": self.total_steps, "total_epochs": None})
            schedule, self.total_steps = whole.compressed(job.total_steps), job.total_steps
        self.schedule = build_schedule(
            schedule, total_steps=self.total_steps, batch_size=self.config.training.batch_size
        )
        self.optimizer = build_optimizer(self.module, self.config.optimizer, self.schedule.lr(0))
        momentum = build_momentum(schedule, self.schedule, self.config.optimizer.own_momentum)
        self.scheduler = ScheduleLR(self.optimizer, self.schedule, momentum)
        self.order = DataOrder(
            num_samples=self.num_train_samples,
            batch_size=self.config.training.batch_size,
            seed=job.seed,
            rank=self.rank,
            world_size=self.world_size,
            accumulation=job.accumulation or self.config.training.grad_accumulation,
        )
        self.guard = SyncGuard(self.schedule, self.rank, self.world_size)
        self.trace = TraceWriter(job.trace_uri, self.rank, attempt)
        self.checkpoints = CheckpointStore(job.checkpoint_uri, job.run_id)
        self.step = 0
        self.device_seconds = 0.0
        self.metrics: dict[str, float] = {}
        self.last_checkpoint: CheckpointRef | None = None
        random_state.seed(job.seed + 1 + self.rank)
        self.model = DistributedDataParallel(
            self.module, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    @property
    def end_step(self) -> int:
        """Where this job stops."""
        return min(self.total_steps, self.job.stop_at_step or self.total_steps)

    def batches(self) -> Iterator[Any]:
        """Collated micro-batches on the device, from the current step on."""
        order = DataOrder(**{**vars(self.order), "start_step": self.step})
        for batch in loader(self.train_set, batch_sampler=order, collate_fn=default_collate):
            yield to_device(batch, self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward pass's precision."""
        if self.config.training.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def before_update(self) -> Callable[[], None]:
        """Take down what a forward pass changes; calling the result goes back to it, when no update follows."""
        state = RandomState.now(self.device)
        buffers = [buffer.clone() for buffer in self.module.buffers()]

        def go_back() -> None:
            state.set_again(self.device)
            for buffer, value in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(value)

        return go_back

    def share_buffers(self) -> None:
        """Give every rank rank 0's buffers, as DDP does before the next update; until then they differ."""
        for buffer in self.module.buffers():
            dist.broadcast(buffer, 0)

    def save(self, progress: Progress) -> CheckpointRef:
        """Write a checkpoint of the current step; every rank calls it."""
        self.share_buffers()
        everyone: list[Progress] = [progress] * self.world_size
        dist.all_gather_object(everyone, progress)
        ref = self.checkpoints.save(
            self._tensors(),
            attempt=self.attempt,
            step=self.step,
            rank=self.rank,
            world_size=self.world_size,
            training_digest=self.digests.training,
            state={
                "scheduler": self.scheduler.state_dict(),
                "seed": self.job.seed,
                "device_seconds": self.device_seconds,
                "progress": Progress.merged(everyone).to_state(),
            },
            metrics=self.metrics,
            previous=self.last_checkpoint.uri if self.last_checkpoint else None,
        )
        self.last_checkpoint = ref
        return ref

    def restore(self, ref: CheckpointRef) -> Progress:
        """Continue from a checkpoint, also one of another world size; returns what was seen until then.

        Raises:
            UserError: when it belongs to another config or seed.
            CheckpointError: when it does not verify.
        """
        tensors, manifest = restore(ref.uri)
        self._refuse_other_run(manifest, ref)
        with torch.no_grad():
            self.module.load_state_dict(_below(MODEL_PREFIX, tensors))
        self._load_optimizer(tensors)
        self.scheduler.load_state_dict(manifest.state["scheduler"])
        self.step, self.metrics = manifest.step, dict(manifest.metrics)
        self.device_seconds = manifest.state["device_seconds"]
        self.last_checkpoint = ref
        if manifest.world_size == self.world_size:
            states = _below(f"{RNG_PREFIX}{self.rank}.", tensors)
            RandomState.from_tensors(states).set_again(self.device)
        return Progress.from_state(manifest.state["progress"])

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"{MODEL_PREFIX}{name}": tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMIZER_PREFIX}{name}.{key}"] = value
        states = RandomState.now(self.device).to_tensors()
        return tensors | {f"{RNG_PREFIX}{self.rank}.{name}": tensor for name, tensor in states.items()}

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            prefix = f"{OPTIMIZER_PREFIX}{name}."
            for full, tensor in tensors.items():
                if full.startswith(prefix) and "." not in full[len(prefix) :]:
                    key = full[len(prefix) :]
                    # AdamW keeps its step count on the CPU.
                    target = tensor if key == "step" else tensor.to(self.device)
                    self.optimizer.state[parameter][key] = target

    def _refuse_other_run(self, manifest: Manifest, ref: CheckpointRef) -> None:
        if manifest.training_digest != self.digests.training:
            raise UserError(
                f"{ref.uri} was made under config {manifest.training_digest[:12]}…, this is"
                f" {self.digests.training[:12]}… → --resume never, or resume with the config that made it"
            )
        if manifest.state["seed"] != self.job.seed:
            raise UserError(
                f"{ref.uri} was made with the seed {manifest.state['seed']}, this run's is {self.job.seed}"
                " → --resume never, or resume the run that made it"
            )


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


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise UserError(f"process {rank} of this machine has no GPU: there are {count} → procs_per_node: {count}")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device
