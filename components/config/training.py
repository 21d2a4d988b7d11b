"""The training section: the loop, and what it does about trouble."""

from typing import Annotated, Literal

from pydantic import Field

from ..schedule.config import Count, NonNegative, PositiveCount, Section
from .texts import InitFrom


class EarlyStopping(Section):
    """End the training when `metric`, a mean over `smoothing` validations, has not improved in `patience` of them.

    It has improved when it is better than the best by more than `min_delta`. The last weights are the candidate.
    """

    metric: str
    patience: PositiveCount
    mode: Literal["min", "max"] = "min"
    smoothing: PositiveCount = 1
    min_delta: NonNegative = 0.0


class RollbackConfig(Section):
    """On divergence: back to the last stable checkpoint, the rates times `lr_scale` from there, at most `max` times."""

    max: PositiveCount = 2
    lr_scale: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5


class TrainingConfig(Section):
    """The loop. `batch_size` is global: over all processes and accumulation steps, in samples.

    A loss or gradient that is not finite is a divergence, once `max_skipped_updates` updates were left out for it.
    `compile` is torch.compile.
    """

    batch_size: PositiveCount
    eval_every_steps: PositiveCount = 50
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    grad_accumulation: PositiveCount = 1
    compile: bool = False
    init_from: InitFrom | None = None
    early_stopping: EarlyStopping | None = None
    max_skipped_updates: Count = 0
    rollback: RollbackConfig | None = None
