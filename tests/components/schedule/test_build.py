"""From a config's schedule to its curves: each key where it belongs, and what does not fit in one line."""

import pytest
from convergate.components.errors import UserError
from convergate.components.schedule import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    MomentumCycle,
    MomentumWarmup,
    OneCycleSchedule,
    PlateauSchedule,
    Schedule,
    ScheduleConfig,
    StepSchedule,
    build_momentum,
    build_schedule,
)
from hypothesis import given
from hypothesis import strategies as st

BASE = {"lr0": 0.1, "total_steps": 100}
PLATEAU = {"metric": "val_loss", "patience": 3, "factor": 0.5}


def built(config: dict[str, object], total_steps: int = 100, batch_size: int = 64) -> Schedule:
    return build_schedule(ScheduleConfig.model_validate(config), total_steps=total_steps, batch_size=batch_size)


def test_every_key_of_the_config_reaches_the_curve() -> None:
    config = BASE | {
        "kind": "cosine_restarts",
        "lr_min": 0.01,
        "warmup": {"steps": 10, "start_lr": 0.02},
        "restarts": {
            "cycle_steps": 20,
            "cycle_mult": 2,
            "scale": 0.5,
            "ramp_steps": 3,
            "on_plateau": {"metric": "val_loss", "patience": 3, "max": 2},
        },
        "clip": {"floor": 0.03, "ceiling": 0.09},
    }
    assert built(config) == CosineSchedule(0.1, 100, 0.01, 10, 0.02, 0.03, 0.09, 20, 2, 0.5, 3)


def test_a_cosine_without_restarts_is_one_cycle() -> None:
    schedule = built(BASE | {"warmup": {"steps": 10}})
    assert isinstance(schedule, CosineSchedule)
    assert schedule.cycle(99) == (0, 89, 90)


@pytest.mark.parametrize(
    ("config", "schedule"),
    [
        ({"kind": "linear"}, LinearSchedule(0.1, 100, 0.01, 10, 0.02)),
        ({"kind": "constant"}, LinearSchedule(0.1, 100, 0.1, 10, 0.02)),
        ({"kind": "exponential"}, ExponentialSchedule(0.1, 100, 0.01, 10, 0.02)),
        ({"kind": "one_cycle"}, OneCycleSchedule(0.1, 100, 0.01, 10, 0.02)),
        ({"kind": "plateau", "plateau": PLATEAU}, PlateauSchedule(0.1, 100, 0.01, 10, 0.02)),
        ({"kind": "step", "step": {"every_steps": 30}}, StepSchedule(0.1, 100, 0.01, 10, 0.02, every_steps=30)),
        (
            {"kind": "step", "step": {"every_steps": 30, "factor": 0.5}},
            StepSchedule(0.1, 100, 0.01, 10, 0.02, every_steps=30, factor=0.5),
        ),
    ],
    ids=str,
)
def test_every_kind_has_its_curve(config: dict[str, object], schedule: Schedule) -> None:
    assert built(BASE | {"lr_min": 0.01, "warmup": {"steps": 10, "start_lr": 0.02}} | config) == schedule


@pytest.mark.parametrize(
    ("momentum", "expected"),
    [
        ({}, None),
        ({"start": 0.5}, None),
        ({"warmup_steps": 5}, MomentumWarmup(low=0.85, high=0.9, warmup_steps=5)),
        ({"warmup_steps": 5, "start": 0.5}, MomentumWarmup(low=0.5, high=0.9, warmup_steps=5)),
        ({"cycle": True, "start": 0.8}, MomentumCycle(OneCycleSchedule(0.1, 100), low=0.8, high=0.9)),
    ],
)
def test_the_momentum_moves_where_the_config_says_so(momentum: dict[str, object], expected: object) -> None:
    config = ScheduleConfig.model_validate(BASE | {"kind": "one_cycle", "momentum": momentum})
    schedule = build_schedule(config, total_steps=100, batch_size=64)
    assert build_momentum(config, schedule, 0.9) == expected


@pytest.mark.parametrize("momentum", [{"cycle": True}, {"warmup_steps": 5}])
def test_a_momentum_that_would_fall_to_the_optimizers_is_one_line(momentum: dict[str, object]) -> None:
    config = ScheduleConfig.model_validate(BASE | {"momentum": momentum})
    schedule = build_schedule(config, total_steps=100, batch_size=64)
    with pytest.raises(
        UserError, match="^schedule.momentum.start = 0.85 is above the optimizer's momentum → at most 0.5$"
    ):
        build_momentum(config, schedule, 0.5)


@given(lr0=st.floats(1e-9, 10), step=st.integers(5, 10**6))
def test_a_constant_rate_is_lr0_bit_for_bit(lr0: float, step: int) -> None:
    schedule = built({"kind": "constant", "lr0": lr0, "total_steps": 100, "warmup": {"steps": 5}})
    assert schedule.lr(step) == lr0
    assert schedule.lr(4) < lr0


@pytest.mark.parametrize(("rule", "peak"), [("linear", 0.025), ("sqrt", 0.05)])
def test_the_peak_scales_with_the_batch(rule: str, peak: float) -> None:
    scaling = {"base_batch_size": 256, "rule": rule}
    assert built(BASE | {"scale_with_batch": scaling}, batch_size=64).lr(0) == peak
    assert built(BASE | {"scale_with_batch": scaling}, batch_size=256).lr(0) == 0.1


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "exponential", "one_cycle"])
@pytest.mark.parametrize(
    ("config", "total_steps", "named"),
    [
        ({"warmup": {"steps": 40}}, 40, "warmup_steps = 40 is not shorter than the run: total_steps is 40 → 0 to 39"),
        ({"warmup": {"steps": 50}}, 40, "warmup_steps = 50"),
        ({}, 0, "total_steps = 0: a run has at least one step"),
        ({"scale_with_batch": {"base_batch_size": 1}, "lr0": 1e308}, 40, "lr0 = inf"),
    ],
)
def test_epochs_that_turn_out_too_short_are_one_line(
    kind: str, config: dict[str, object], total_steps: int, named: str
) -> None:
    with pytest.raises(UserError) as caught:
        built({"kind": kind, "lr0": 0.1, "lr_min": 0.01, "total_epochs": 2} | config, total_steps)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_that_scales_the_peak_below_the_minimum_is_refused() -> None:
    config = BASE | {"lr_min": 0.05, "scale_with_batch": {"base_batch_size": 256}}
    with pytest.raises(UserError, match=r"lr0 = 0.025, lr_min = 0.05"):
        built(config, batch_size=64)
