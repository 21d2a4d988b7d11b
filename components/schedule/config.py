"""What a run config says of its schedule."""

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

MAX_COUNT = 2**53 - 1
"""The largest integer that every JSON reader keeps (RFC 7493, section 2.2), and so the largest that has a digest."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class Section(BaseModel):
    """A part of the config: immutable, and an unknown key in it is an error.

    What is said of two keys is checked as soon as both are right, as a validator of the one that is to blame: so it
    is reported beside whatever else is wrong. A message is `reason → fix`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class Finding(NamedTuple):
    """What a validator found wrong in a key inside the section that it looks at."""

    location: tuple[str, ...]
    value: Any
    message: str


def problems_at(*found: Finding) -> ValidationError:
    """The error for a validator to raise; pydantic adds each finding, under its own path, to all the others."""
    return ValidationError.from_exception_data(
        "config",
        [
            # As a value: a `{` in the template itself would be a placeholder.
            {"type": PydanticCustomError("finding", "{text}", {"text": message}), "loc": location, "input": value}
            for location, value, message in found
        ],
    )


class WarmupConfig(Section):
    """Linear warmup: `start_lr + (lr0 - start_lr)·t/steps` for t < steps, so that `lr(steps) = lr0`.

    Under kind one_cycle it is a half cosine between the same two rates.
    """

    steps: Count = 0
    start_lr: NonNegative = 0.0


class PlateauRule(Section):
    """When a validation metric has stopped improving: not by more than `threshold` in `patience` evaluations.

    What is judged is the mean of the last `smoothing` values; after each plateau `cooldown` evaluations do not count.
    """

    metric: Annotated[str, Field(min_length=1)]
    patience: PositiveCount
    mode: Literal["min", "max"] = "min"
    smoothing: PositiveCount = 1
    cooldown: Count = 0
    threshold: NonNegative = 0.0


class PlateauConfig(PlateauRule):
    """Kind plateau: the rate is multiplied by `factor` at every plateau of the metric, down to `lr_min`."""

    factor: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1


class PlateauRestart(PlateauRule):
    """Restart the cosine at a plateau of the metric; at most `max` times."""

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

    @field_validator("ramp_steps")
    @classmethod
    def _ramp_fits(cls, ramp_steps: int, info: ValidationInfo) -> int:
        cycle_steps = info.data.get("cycle_steps")
        if cycle_steps is not None and ramp_steps >= cycle_steps:
            raise ValueError(f"fills the cycle of {cycle_steps} steps → at most {cycle_steps - 1}")
        return ramp_steps


class StepConfig(Section):
    """Drops: after every `every_steps` steps the rate is multiplied by `factor`, down to `lr_min`."""

    every_steps: PositiveCount
    factor: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1


class ClipConfig(Section):
    """Bounds on the learning rate, applied last; `ceiling: null` is none."""

    floor: NonNegative = 0.0
    ceiling: Positive | None = None

    @field_validator("ceiling")
    @classmethod
    def _above_floor(cls, ceiling: float | None, info: ValidationInfo) -> float | None:
        floor = info.data.get("floor")
        if ceiling is not None and floor is not None and ceiling < floor:
            raise ValueError(f"is below floor = {floor:g} → at least {floor:g}")
        return ceiling


class MomentumConfig(Section):
    """How the optimizer's momentum (SGD's `momentum`, the first of AdamW's `betas`) moves; by default it stays.

    `warmup_steps`: linear from `start` to the optimizer's over so many steps. `cycle`: against the rate, `start` at
    its peak and the optimizer's where it is lowest.
    """

    warmup_steps: Count = 0
    start: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.85
    cycle: bool = False

    @field_validator("cycle")
    @classmethod
    def _without_warmup(cls, cycle: bool, info: ValidationInfo) -> bool:
        warmup_steps = info.data.get("warmup_steps")
        if cycle and warmup_steps:
            raise ValueError(
                f"moves the momentum from step 0 on, and so does warmup_steps = {warmup_steps} → leave one out"
            )
        return cycle


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
    total_epochs: PositiveCount | None = None
    total_steps: PositiveCount | None = None
    warmup: WarmupConfig = WarmupConfig()
    restarts: RestartsConfig | None = None
    step: StepConfig | None = None
    plateau: PlateauConfig | None = None
    clip: ClipConfig = ClipConfig()
    momentum: MomentumConfig = MomentumConfig()
    scale_with_batch: BatchScaling | None = None

    @field_validator("lr_min")
    @classmethod
    def _below_peak(cls, lr_min: float, info: ValidationInfo) -> float:
        lr0 = info.data.get("lr0")
        if lr0 is not None and lr_min > lr0:
            raise ValueError(f"is above lr0 = {lr0:g} → at most {lr0:g}; lr0/100, {lr0 / 100:g}, is usual")
        if lr_min == 0 and info.data.get("kind") == "exponential":
            usual = f"; lr0/100, {lr0 / 100:g}, is usual" if lr0 is not None else ""
            raise ValueError(f"an exponential never reaches 0 → a rate above it{usual}")
        return lr_min

    @field_validator("total_steps")
    @classmethod
    def _one_length(cls, total_steps: int | None, info: ValidationInfo) -> int | None:
        if "total_epochs" not in info.data:
            return total_steps
        total_epochs = info.data["total_epochs"]
        if total_steps is None and total_epochs is None:
            raise ValueError("the run has no length → give total_steps or total_epochs")
        if total_steps is not None and total_epochs is not None:
            raise ValueError(f"the run has two lengths: total_epochs is {total_epochs} → leave one out; it is derived")
        return total_steps

    @field_validator("warmup")
    @classmethod
    def _warmup_fits(cls, warmup: WarmupConfig, info: ValidationInfo) -> WarmupConfig:
        _refuse_too_long("steps", warmup.steps, info.data.get("total_steps"))
        return warmup

    @field_validator("momentum")
    @classmethod
    def _momentum_fits(cls, momentum: MomentumConfig, info: ValidationInfo) -> MomentumConfig:
        _refuse_too_long("warmup_steps", momentum.warmup_steps, info.data.get("total_steps"))
        return momentum

    @field_validator("restarts", "step", "plateau")
    @classmethod
    def _section_of_its_kind(cls, section: Section | None, info: ValidationInfo) -> Section | None:
        kind = info.data.get("kind")
        its_kind, needed = {
            "restarts": ("cosine_restarts", "needs its cycles → restarts: {cycle_steps: …}"),
            "step": ("step", "needs its drops → step: {every_steps: …}"),
            "plateau": ("plateau", "needs its metric → plateau: {metric: val_loss, patience: …}"),
        }[str(info.field_name)]
        if kind == its_kind and section is None:
            raise ValueError(f"kind {kind} {needed}")
        if kind not in (None, its_kind) and section is not None:
            raise ValueError(f"has no effect under kind {kind} → kind: {its_kind}")
        return section

    def compressed(self, total_steps: int) -> Self:
        """The same schedule with all its lengths scaled to `total_steps` steps.

        Warmups, restarts, ramps and drops that the schedule has stay, however short, as long as there is a step for
        each. One given in epochs has what it gives in steps kept as it is where it fits.
        """
        factor = total_steps / (self.total_steps or total_steps)
        warmup_steps, restarts, step = self.warmup.steps, self.restarts, self.step
        warmup_steps = min(_scaled(warmup_steps, factor), total_steps - 1)
        if restarts is not None:
            shortest = min(2, restarts.cycle_steps)  # a ramp and a step after it
            warmup_steps, cycle_steps = self._fitted(restarts.cycle_steps, shortest, warmup_steps, total_steps)
            ramp_steps = min(_scaled(restarts.ramp_steps, factor), cycle_steps - 1)
            restarts = restarts.model_copy(update={"cycle_steps": cycle_steps, "ramp_steps": ramp_steps})
        if step is not None:
            warmup_steps, every_steps = self._fitted(step.every_steps, 1, warmup_steps, total_steps)
            step = step.model_copy(update={"every_steps": every_steps})
        momentum_steps = min(_scaled(self.momentum.warmup_steps, factor), total_steps - 1)
        return self.model_copy(
            update={
                "total_steps": total_steps,
                "total_epochs": None,
                "warmup": self.warmup.model_copy(update={"steps": warmup_steps}),
                "restarts": restarts,
                "step": step,
                "momentum": self.momentum.model_copy(update={"warmup_steps": momentum_steps}),
            }
        )

    def _fitted(self, period: int, shortest: int, warmup_steps: int, total_steps: int) -> tuple[int, int]:
        """Warmup and period in `total_steps` steps: a second period begins there where one does in the whole run."""
        full_steps = self.total_steps or total_steps
        fitted = max(shortest, _scaled(period, total_steps / full_steps))
        if self.warmup.steps + period < full_steps:
            warmup_steps = min(warmup_steps, max(1, total_steps - shortest - 1))
            return warmup_steps, max(1, min(fitted, total_steps - warmup_steps - 1))
        return warmup_steps, max(fitted, total_steps - warmup_steps)


def _refuse_too_long(key: str, warmup_steps: int, total_steps: int | None) -> None:
    if total_steps is None or warmup_steps < total_steps:
        return
    message = f"not shorter than the run: total_steps is {total_steps} → at most {total_steps - 1}"
    usual = total_steps // 20
    if usual:
        message += f"; 5 % of the run, {usual}, is usual"
    raise problems_at(Finding((key,), warmup_steps, message))


def _scaled(steps: int, factor: float) -> int:
    return max(1, round(steps * factor)) if steps else 0
