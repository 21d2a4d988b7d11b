"""Everything one process trains with: model, optimizer, schedule, data, checkpoints and trace."""

import os
from collections.abc import Iterator
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
from ..config.models import OptimizerConfig
from ..errors import UserError
from ..schedule import build_schedule
from ..schedule.torch_adapter import ScheduleLR
from ..task import load_task
from ..telemetry import TraceWriter
from .batches import loader, to_device
from .data_order import DataOrder
from .job import Job
from .sync_guard import SyncGuard

OPTIMIZER_PREFIX = "optim."
RNG_PREFIX = "rng."


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """The configured optimizer over all parameters that train."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=lr, betas=config.betas, weight_decay=config.weight_decay)


class Session:
    """The state of one rank. `step` is the number of updates done, and of the next one to do."""

    def __init__(self, job: Job, attempt: int) -> None:
        self.job, self.attempt = job, attempt
        self.config = job.config()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = _device()
        self.digests = config_digests(self.config)
        self.task = load_task(self.config.task)
        torch.manual_seed(job.seed)
        self.module = self.task.model().to(self.device)
        train_set: Any = self.task.dataset("train")
        self.num_train_samples = len(train_set)
        self.total_steps = job.total_steps or self.config.total_steps(self.num_train_samples)
        self.schedule = build_schedule(
            self.config.schedule.compressed(job.total_steps) if job.total_steps else self.config.schedule,
            total_steps=self.total_steps,
            batch_size=self.config.training.batch_size,
        )
        self.optimizer = build_optimizer(self.module, self.config.optimizer, self.schedule.lr(0))
        self.scheduler = ScheduleLR(self.optimizer, self.schedule)
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
        self._train_set = train_set
        torch.manual_seed(job.seed + 1 + self.rank)
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
        for batch in loader(self._train_set, batch_sampler=order, collate_fn=default_collate):
            yield to_device(batch, self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward pass's precision."""
        if self.config.training.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def save(self) -> CheckpointRef:
        """Write a checkpoint of the current step; every rank calls it."""
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
            },
            metrics=self.metrics,
            previous=self.last_checkpoint.uri if self.last_checkpoint else None,
        )
        self.last_checkpoint = ref
        return ref

    def restore(self, ref: CheckpointRef) -> None:
        """Continue from a checkpoint, also one of another world size.

        Raises:
            UserError: when it belongs to another config.
            CheckpointError: when it does not verify.
        """
        tensors, manifest = restore(ref.uri)
        self._refuse_other_config(manifest, ref)
        with torch.no_grad():
            self.module.load_state_dict(
                {n.removeprefix(MODEL_PREFIX): t for n, t in tensors.items() if n.startswith(MODEL_PREFIX)}
            )
        self._load_optimizer(tensors)
        self.scheduler.load_state_dict(manifest.state["scheduler"])
        self.step, self.metrics = manifest.step, dict(manifest.metrics)
        self.device_seconds = manifest.state["device_seconds"]
        self.last_checkpoint = ref
        rng = tensors.get(f"{RNG_PREFIX}{self.rank}.cpu")
        if rng is not None and manifest.world_size == self.world_size:
            torch.set_rng_state(rng)
        cuda = tensors.get(f"{RNG_PREFIX}{self.rank}.cuda")
        if cuda is not None and self.device.type == "cuda" and manifest.world_size == self.world_size:
            torch.cuda.set_rng_state(cuda, self.device)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"{MODEL_PREFIX}{name}": tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMIZER_PREFIX}{name}.{key}"] = value
        tensors[f"{RNG_PREFIX}{self.rank}.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors[f"{RNG_PREFIX}{self.rank}.cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            prefix = f"{OPTIMIZER_PREFIX}{name}."
            for full, tensor in tensors.items():
                if full.startswith(prefix) and "." not in full[len(prefix) :]:
                    key = full[len(prefix) :]
                    # AdamW keeps its step count on the CPU.
                    target = tensor if key == "step" else tensor.to(self.device)
                    self.optimizer.state[parameter][key] = target

    def _refuse_other_config(self, manifest: Manifest, ref: CheckpointRef) -> None:
        if manifest.training_digest != self.digests.training:
            raise UserError(
                f"{ref.uri} was made under config {manifest.training_digest[:12]}…, this is"
                f" {self.digests.training[:12]}… → --resume never, or resume with the config that made it"
            )


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
