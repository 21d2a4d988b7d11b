"""What a run config says of its schedule."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, strict=True)]
PositiveCount = Annotated[int, Field(ge=1, strict=True)]


class Section(BaseModel):
    """A part of the config: immutable, and an unknown key in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class WarmupConfig(Section):
    """Linear warmup: `start_lr + (lr0 - start_lr)·t/steps` for t < steps, so that `lr(steps) = lr0`."""

    steps: Count = 0
    start_lr: NonNegative = 0.0


class PlateauRestart(Section):
    """Restart the cosine when a metric stops improving; at most `max` times."""

    metric: str
    patience: PositiveCount
    max: PositiveCount


class RestartsConfig(Section):
    """Warm restarts (SGDR, arXiv:1608.03983): cycle i has `cycle_steps·cycle_mult^i` steps.

    It peaks at `lr_min + (lr0 - lr_min)·scale^i`. The first `ramp_steps` steps of each cycle after the
    first climb linearly from `lr_min` to that peak; the cosine runs over the rest of the cycle.
    """

    cycle_steps: PositiveCount
    cycle_mult: PositiveCount = 1
    scale: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    ramp_steps: Count = 0
    on_plateau: PlateauRestart | None = None

    @model_validator(mode="after")
    def _ramp_fits(self) -> Self:
        if self.ramp_steps >= self.cycle_steps:
            raise ValueError(
                f"ramp_steps = {self.ramp_steps} fills the cycle of {self.cycle_steps} steps"
                f" → at most {self.cycle_steps - 1}"
            )
        return self


class ClipConfig(Section):
    """Bounds on the learning rate, applied last; `ceiling: null` is none."""

    floor: NonNegative = 0.0
    ceiling: Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(f"floor = {self.floor} is above ceiling = {self.ceiling} → floor ≤ ceiling")
        return self


class MomentumConfig(Section):
    """Momentum warmup: linear from `start` to the optimizer's momentum over `warmup_steps`."""

    warmup_steps: Count = 0
    start: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.85


class BatchScaling(Section):
    """Scale `lr0` with the global batch: by its ratio to `base_batch_size`, or the ratio's square root."""

    base_batch_size: PositiveCount
    rule: Literal["linear", "sqrt"] = "linear"


class ScheduleConfig(Section):
    """The `schedule` section. Rates are per update; steps count from 0 and are optimizer updates."""

    kind: Literal["cosine", "cosine_restarts", "linear", "exponential", "step", "one_cycle", "plateau", "constant"] = (
        "cosine"
    )
    lr0: Positive
    lr_min: NonNegative = 0.0
    total_steps: PositiveCount | None = None
    total_epochs: PositiveCount | None = None
    warmup: WarmupConfig = WarmupConfig()
    restarts: RestartsConfig | None = None
    clip: ClipConfig = ClipConfig()
    momentum: MomentumConfig = MomentumConfig()
    scale_with_batch: BatchScaling | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lr_min > self.lr0:
            raise ValueError(f"lr_min = {self.lr_min} is above lr0 = {self.lr0} → lr_min ≤ lr0")
        if (self.total_steps is None) == (self.total_epochs is None):
            raise ValueError("give exactly one of total_steps and total_epochs; the other is derived")
        if self.total_steps is not None and self.warmup.steps >= self.total_steps:
            raise ValueError(
                f"warmup.steps = {self.warmup.steps} is not shorter than the run: total_steps is"
                f" {self.total_steps} → at most {self.total_steps - 1};"
                f" 5 % of the run, {max(1, self.total_steps // 20)}, is usual"
            )
        if self.kind == "cosine_restarts" and self.restarts is None:
            raise ValueError("kind cosine_restarts needs `restarts` → restarts: {cycle_steps: …}")
        if self.kind != "cosine_restarts" and self.restarts is not None:
            raise ValueError(f"`restarts` has no effect under kind {self.kind} → kind: cosine_restarts")
        return self

    def compressed(self, total_steps: int) -> Self:
        """The same schedule with all its lengths scaled to `total_steps` steps; no part that exists disappears.

        A schedule given in epochs has its warmup and restarts, which are in steps, kept as they are where they fit.
        """
        factor = total_steps / (self.total_steps or total_steps)
        warmup_steps = min(_scaled(self.warmup.steps, factor), total_steps - 1)
        restarts = self.restarts
        if restarts is not None:
            cycle_steps = max(2, _scaled(restarts.cycle_steps, factor))
            ramp_steps = min(_scaled(restarts.ramp_steps, factor), cycle_steps - 1)
            restarts = restarts.model_copy(update={"cycle_steps": cycle_steps, "ramp_steps": ramp_steps})
        warmup = self.warmup.model_copy(update={"steps": warmup_steps})
        return self.model_copy(
            update={"total_steps": total_steps, "total_epochs": None, "warmup": warmup, "restarts": restarts}
        )


def _scaled(steps: int, factor: float) -> int:
    return max(1, round(steps * factor)) if steps else 0
