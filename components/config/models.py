"""The schema of a run config; the schedule's section stands beside its curves, in `schedule.config`."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..schedule.config import (
    MAX_COUNT,
    Count,
    Finding,
    NonNegative,
    Positive,
    PositiveCount,
    ScheduleConfig,
    Section,
    problems_at,
)
from .optimizer import OptimizerConfig
from .problems import shown
from .texts import Factory, Name, S3Uri
from .training import TrainingConfig

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Owner(Section):
    """Who answers for the run."""

    team: str = "unknown"
    contact: str = ""


class TaskConfig(Section):
    """The user's model and data: `package.module:Class`, called with `params`."""

    factory: Factory
    params: dict[str, Any] = Field(default_factory=dict)

    @field_validator("params")
    @classmethod
    def _has_a_digest(cls, params: dict[str, Any]) -> dict[str, Any]:
        found = list(_not_json((), params))
        if found:
            raise problems_at(*found)
        return params


def _not_json(location: tuple[str, ...], value: Any) -> Iterator[Finding]:
    """What in a value from YAML has no canonical JSON, and so no digest."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str):
                yield from _not_json((*location, key), item)
            else:
                yield Finding((*location, shown(key)), item, "the key is not text → put the key in quotes")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_json((*location, str(index)), item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Finding(location, value, "must be a finite number")
    elif isinstance(value, int) and abs(value) > MAX_COUNT:
        yield Finding(location, value, f"beyond the exact integers of JSON → at most {MAX_COUNT}, or quotes around it")
    elif not isinstance(value, str | int | float | None):
        yield Finding(location, value, f"a {type(value).__name__} is not a JSON value → put it in quotes")


class DistributedConfig(Section):
    """Where the processes run; `backend: auto` is NCCL on GPUs and gloo elsewhere.

    `launcher: local` starts them on this machine, `trainjob` on the nodes of a Kubeflow TrainJob, canary and run alike.
    """

    launcher: Literal["local", "trainjob"] = "local"
    nodes: PositiveCount = 1
    procs_per_node: PositiveCount = 1
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    timeout_minutes: Positive = 5.0
    """How long a collective waits for a rank; longer than any rank validates or loads alone.

    So long also a node waits for the others, before the first step and after one was lost.
    """

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.nodes * self.procs_per_node


class CheckpointConfig(Section):
    """Where checkpoints go, how often, and which are kept.

    They are written while the training goes on. `when_busy` is what happens where one is due and the one before is
    not written yet.
    """

    uri: S3Uri = "s3://convergate/checkpoints"
    every_steps: PositiveCount = 100
    when_busy: Literal["wait", "skip"] = "wait"
    keep_last: PositiveCount = 3
    keep_best: Count = 1
    keep_every: PositiveCount | None = None
    """Those of steps that are a multiple of it are kept for good."""


class StorageConfig(Section):
    """The root under which runs' documents, the ledger, champions and releases stand."""

    uri: S3Uri = "s3://convergate"


class DataConfig(Section):
    """The dataset of this run, pinned by its snapshot; in the lineage, not in the config's digests."""

    uri: str | None = None
    snapshot: str | None = None
    suite: Literal["default"] = "default"


MIN_DRILL_STEPS = 4
"""Fewer steps leave the canary no room for a checkpoint, a step after it, and the kill."""


class CanaryConfig(Section):
    """The short run before the run: `steps_fraction` of the run, within [min_steps, max_steps].

    Its processes are started by `distributed.launcher`, as the run's.
    """

    steps_fraction: Fraction = 0.02
    min_steps: PositiveCount = 20
    max_steps: PositiveCount = 500
    nodes: PositiveCount = 1
    procs_per_node: PositiveCount = 2

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.nodes * self.procs_per_node

    @field_validator("max_steps")
    @classmethod
    def _above_min(cls, max_steps: int, info: ValidationInfo) -> int:
        min_steps = info.data.get("min_steps")
        if min_steps is not None and max_steps < min_steps:
            raise ValueError(f"is below min_steps = {min_steps} → at least {min_steps}")
        return max_steps

    def num_steps(self, total_steps: int) -> int:
        """Steps of the real schedule that the canary runs, never more than the run has."""
        wanted = max(self.min_steps, min(self.max_steps, round(self.steps_fraction * total_steps)))
        return min(wanted, total_steps)


class EvaluationConfig(Section):
    """What makes a candidate good: `metric` on the test split against `target` and the champion."""

    metric: str
    mode: Literal["max", "min"] = "max"
    target: Finite
    margin_vs_champion: NonNegative = 0.0


class SloConfig(Section):
    """The convergence SLO over the last `window_runs` runs of (experiment, model)."""

    window_runs: PositiveCount = 50
    convergence_rate: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.80
    anomalous_rate: Fraction = 0.05
    lr_sync_errors: Count = 0
    cost_per_converged_gpu_hours: Positive | None = None
    min_runs: PositiveCount = 5
    require: Literal["not_breached", "proven"] = "not_breached"


class BudgetConfig(Section):
    """What one run may cost, in GPU-hours (device-hours on CPUs), and what one costs."""

    max_gpu_hours: Positive = 2.0
    gpu_hour_price: Positive | None = None


class PromotionConfig(Section):
    """The registered model and the alias that serving follows."""

    model: Name
    alias: Name = "champion"

    @field_validator("alias")
    @classmethod
    def _is_free(cls, alias: str) -> str:
        if alias in ("challenger", "previous_champion"):
            raise ValueError("convergate sets this alias itself → champion is usual")
        return alias


class RunConfig(Section):
    """The whole config. Unknown keys are errors; optional keys may be added as rooms deepen."""

    schema_version: int
    experiment: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    owner: Owner = Owner()
    task: TaskConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig
    distributed: DistributedConfig = DistributedConfig()
    training: TrainingConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    storage: StorageConfig = StorageConfig()
    data: DataConfig = DataConfig()
    canary: CanaryConfig = CanaryConfig()
    evaluation: EvaluationConfig
    slo: SloConfig = SloConfig()
    budget: BudgetConfig = BudgetConfig()
    promotion: PromotionConfig

    @field_validator("schema_version")
    @classmethod
    def _known_version(cls, schema_version: int) -> int:
        if schema_version != 1:
            raise ValueError("not a version that this convergate reads → 1")
        return schema_version

    @field_validator("training")
    @classmethod
    def _batch_divides(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        distributed = info.data.get("distributed")
        if distributed is None:
            return training
        parts = distributed.world_size * training.grad_accumulation
        if training.batch_size % parts:
            below = training.batch_size // parts * parts or parts
            raise problems_at(
                Finding(
                    ("batch_size",),
                    training.batch_size,
                    f"does not divide over {distributed.world_size} processes × {training.grad_accumulation}"
                    f" accumulation steps → a multiple of {parts}, such as {below}",
                )
            )
        return training

    @property
    def budget_hours(self) -> float:
        """The most hours that all processes of the training may run."""
        return self.budget.max_gpu_hours / self.distributed.world_size

    def total_steps(self, num_train_samples: int) -> int:
        """Optimizer updates of the run, whichever of steps and epochs the config gives."""
        if self.schedule.total_steps is not None:
            return self.schedule.total_steps
        assert self.schedule.total_epochs is not None
        return self.schedule.total_epochs * self.steps_per_epoch(num_train_samples)

    def steps_per_epoch(self, num_train_samples: int) -> int:
        """Full global batches in one pass over the training split."""
        return num_train_samples // self.training.batch_size
