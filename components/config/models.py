"""The schema of a run config. The schedule's part stands beside its curves, in `schedule.config`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..schedule.config import Count, NonNegative, Positive, PositiveCount, ScheduleConfig, Section

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
S3Uri = Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?$")]


class Owner(Section):
    """Who answers for the run."""

    team: str = "unknown"
    contact: str = ""


class TaskConfig(Section):
    """The user's model and data: `package.module:Class`, called with `params`."""

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    params: dict[str, Any] = Field(default_factory=dict)


class OptimizerConfig(Section):
    """The optimizer; `betas` are AdamW's, `momentum` is SGD's. `grad_clip_norm: null` clips nothing."""

    kind: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.9
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    grad_clip_norm: Positive | None = None


class EarlyStopping(Section):
    """Stop when `metric` has not improved for `patience` evaluations."""

    metric: str
    patience: PositiveCount


class TrainingConfig(Section):
    """The loop. `batch_size` is global: over all processes and accumulation steps, in samples."""

    batch_size: PositiveCount
    eval_every_steps: PositiveCount = 50
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    grad_accumulation: PositiveCount = 1
    init_from: str | None = None
    early_stopping: EarlyStopping | None = None


class DistributedConfig(Section):
    """Where the processes run; `backend: auto` is NCCL on GPUs and gloo elsewhere."""

    launcher: Literal["local", "trainjob"] = "local"
    nodes: PositiveCount = 1
    procs_per_node: PositiveCount = 1
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    strategy: Literal["ddp", "fsdp2"] = "ddp"

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.nodes * self.procs_per_node


class CheckpointConfig(Section):
    """Where checkpoints go, how often, and how many are kept."""

    uri: S3Uri = "s3://convergate/checkpoints"
    every_steps: PositiveCount = 100
    keep_last: PositiveCount = 3
    keep_best: Count = 1


class StorageConfig(Section):
    """The root under which runs' documents, the ledger, champions and releases stand."""

    uri: S3Uri = "s3://convergate"


class DataConfig(Section):
    """The dataset of this run, pinned by its snapshot; in the lineage, not in the config's digests."""

    uri: str | None = None
    snapshot: str | None = None
    suite: Literal["default"] = "default"


class CanaryConfig(Section):
    """The short run before the run: `steps_fraction` of the run, within [min_steps, max_steps]."""

    steps_fraction: Fraction = 0.02
    min_steps: PositiveCount = 20
    max_steps: PositiveCount = 500
    nodes: PositiveCount = 1
    procs_per_node: PositiveCount = 2

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps} is above max_steps = {self.max_steps}")
        return self

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

    @model_validator(mode="after")
    def _alias_is_free(self) -> Self:
        if self.alias in ("challenger", "previous_champion"):
            raise ValueError(f"alias = {self.alias} is set by convergate itself → champion is usual")
        return self


class RunConfig(Section):
    """The whole config. Unknown keys are errors; optional keys may be added as rooms deepen."""

    schema_version: Literal[1]
    experiment: Name
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    owner: Owner = Owner()
    task: TaskConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig
    training: TrainingConfig
    distributed: DistributedConfig = DistributedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    storage: StorageConfig = StorageConfig()
    data: DataConfig = DataConfig()
    canary: CanaryConfig = CanaryConfig()
    evaluation: EvaluationConfig
    slo: SloConfig = SloConfig()
    budget: BudgetConfig = BudgetConfig()
    promotion: PromotionConfig

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        parts = self.distributed.world_size * self.training.grad_accumulation
        if self.training.batch_size % parts:
            below = self.training.batch_size // parts * parts or parts
            raise ValueError(
                f"training.batch_size = {self.training.batch_size} does not divide over"
                f" {self.distributed.world_size} processes × {self.training.grad_accumulation} accumulation steps"
                f" → a multiple of {parts}, such as {below}"
            )
        return self

    def total_steps(self, num_train_samples: int) -> int:
        """Optimizer updates of the run, whichever of steps and epochs the config gives."""
        if self.schedule.total_steps is not None:
            return self.schedule.total_steps
        assert self.schedule.total_epochs is not None
        return self.schedule.total_epochs * self.steps_per_epoch(num_train_samples)

    def steps_per_epoch(self, num_train_samples: int) -> int:
        """Full global batches in one pass over the training split."""
        return num_train_samples // self.training.batch_size
