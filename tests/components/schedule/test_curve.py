"""The rates themselves: by hand, against 50 digits, and against torch."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convergate.components.schedule import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    Schedule,
    StepSchedule,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_reference import CURVES, MILLION, Curve, relative_error, schedules, steps
from torch.optim import lr_scheduler

FALLING: list[type[Curve]] = [ExponentialSchedule, LinearSchedule, OneCycleSchedule, PlateauSchedule, StepSchedule]


def rates(schedule: Schedule, end: int) -> list[float]:
    return [schedule.lr(step) for step in range(end)]


def close(expected: object, rel: float = 1e-14, within: float = 0.0) -> object:
    """Within a relative error alone, unless told: pytest adds an absolute one of 1e-12."""
    return pytest.approx(expected, rel=rel, abs=within)


@pytest.mark.parametrize("curve", CURVES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_rate_has_twelve_digits(curve: type[Curve], data: st.DataObject) -> None:
    schedule = data.draw(schedules([curve]))
    for step in data.draw(steps(schedule, 8)):
        assert relative_error(schedule, step) <= 1e-12, (step, schedule.lr(step))


@settings(max_examples=150, deadline=None)
@given(schedule=schedules())
def test_the_ends_are_exact(schedule: Curve) -> None:
    def clipped(rate: float) -> float:
        return min(max(rate, schedule.floor), schedule.ceiling)

    total, warmup = schedule.total_steps, schedule.warmup_steps
    assert schedule.lr(warmup) == clipped(schedule.lr0)
    assert schedule.lr(0) == clipped(schedule.start_lr if warmup else schedule.lr0)
    assert {schedule.lr(step) for step in (total, total + 1, 2 * total, 10**15)} == {clipped(schedule.lr_min)}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_rate_that_only_falls_stays_between_its_ends(data: st.DataObject) -> None:
    schedule = data.draw(schedules(FALLING))
    one, other = sorted(data.draw(st.integers(schedule.warmup_steps, schedule.total_steps)) for _ in range(2))
    assert schedule.lr(one) >= schedule.lr(other) * (1 - sys.float_info.epsilon)
    if schedule.ceiling == math.inf:
        assert schedule.lr0 >= schedule.lr(one) >= schedule.lr_min


def test_a_cosine_by_hand() -> None:
    root = math.sqrt(2) / 2
    assert rates(CosineSchedule(lr0=1.0, total_steps=4), 6) == close(
        [1.0, (1 + root) / 2, 0.5, (1 - root) / 2, 0.0, 0.0]
    )


def test_warmup_ends_at_the_peak_and_the_cosine_has_what_remains() -> None:
    schedule = CosineSchedule(lr0=0.5, total_steps=8, lr_min=0.1, warmup_steps=4, start_lr=0.1)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.3 + math.sqrt(2) / 10, 0.3, 0.3 - math.sqrt(2) / 10, 0.1]
    assert rates(schedule, 9) == close(expected)


def test_the_peak_is_exact_where_a_sum_of_differences_is_not() -> None:
    low, high = 0.2, 0.86
    assert low + (high - low) != high
    assert CosineSchedule(high, 10, low, warmup_steps=5).lr(5) == high
    assert LinearSchedule(high, 10, low).lr(0) == high


def test_the_last_steps_of_a_million_keep_their_digits() -> None:
    schedule = CosineSchedule(lr0=1.0, total_steps=MILLION)
    assert schedule.lr(MILLION - 1) == close(2.46740110027031030e-12)
    assert schedule.lr(MILLION - 10) == close(2.46740110006940405e-10)
    literal = 0.5 * (1 + math.cos(math.pi * (MILLION - 1) / MILLION))
    assert literal != close(2.46740110027031030e-12, rel=1e-6)


def test_cooling_down_to_a_much_lower_peak_keeps_its_digits() -> None:
    schedule = CosineSchedule(lr0=1e-10, total_steps=2 * MILLION, warmup_steps=MILLION, start_lr=1.0)
    assert schedule.lr(MILLION - 1) == close(1e-6 + 1e-10 * (1 - 1e-6))


@pytest.mark.parametrize(
    ("cycle_steps", "mult", "boundary", "index"),
    [(5, 3, 605, 5), (10, 10, 1110, 3), (7, 3, 847, 5), (1, 2, 2**40 - 1, 40), (100, 1, 700, 7)],
)
def test_a_cycle_starts_where_integers_say(cycle_steps: int, mult: int, boundary: int, index: int) -> None:
    """The first three are where a floating logarithm is one cycle off (torch, timm)."""
    schedule = CosineSchedule(lr0=1.0, total_steps=2**50, warmup_steps=3, cycle_steps=cycle_steps, cycle_mult=mult)
    length = cycle_steps * mult**index
    assert schedule.cycle(3 + boundary) == (index, 0, length)
    assert schedule.cycle(3 + boundary - 1) == (index - 1, length // mult - 1, length // mult)
    assert schedule.lr(3 + boundary) == 1.0
    assert schedule.lr(3 + boundary - 1) < 1.0 or cycle_steps == 1


def test_a_restart_scales_the_amplitude_not_the_minimum() -> None:
    schedule = CosineSchedule(lr0=0.9, total_steps=70, lr_min=0.1, cycle_steps=10, cycle_mult=2, scale=0.5)
    assert [schedule.lr(step) for step in (0, 10, 30)] == close([0.9, 0.5, 0.3])
    assert [schedule.lr(step) for step in (5, 20, 50)] == close([0.5, 0.3, 0.2])


def test_a_ramp_opens_each_cycle_but_the_first() -> None:
    schedule = CosineSchedule(lr0=1.0, total_steps=24, lr_min=0.2, cycle_steps=8, scale=0.5, ramp_steps=4)
    assert rates(schedule, 8) == rates(CosineSchedule(lr0=1.0, total_steps=8, lr_min=0.2), 8)
    assert rates(schedule, 16)[8:] == close(
        [0.2, 0.3, 0.4, 0.5, 0.6, 0.4 + math.sqrt(2) / 10, 0.4, 0.4 - math.sqrt(2) / 10]
    )
    assert [schedule.lr(step) for step in (16, 18, 20)] == close([0.2, 0.3, 0.4])


def test_floor_and_ceiling_bound_every_step() -> None:
    bare = CosineSchedule(lr0=1.0, total_steps=50, warmup_steps=10)
    bounded = CosineSchedule(lr0=1.0, total_steps=50, warmup_steps=10, floor=0.2, ceiling=0.7)
    assert rates(bounded, 60) == [min(max(rate, 0.2), 0.7) for rate in rates(bare, 60)]
    assert {bounded.lr(0), bounded.lr(10), bounded.lr(55)} == {0.2, 0.7}


def test_a_run_shorter_than_its_first_cycle_follows_it_and_then_stays_at_the_minimum() -> None:
    short = CosineSchedule(lr0=1.0, total_steps=40, lr_min=0.1, cycle_steps=100)
    long = CosineSchedule(lr0=1.0, total_steps=100, lr_min=0.1)
    assert rates(short, 40) == rates(long, 40)
    assert short.lr(40) == 0.1


def test_one_step_is_a_run() -> None:
    assert rates(CosineSchedule(lr0=0.3, total_steps=1), 2) == [0.3, 0.0]


@pytest.mark.parametrize("curve", CURVES)
def test_a_negative_step_is_refused(curve: type[Curve]) -> None:
    schedule = curve(0.1, 10, 0.01, warmup_steps=3)
    with pytest.raises(ValueError, match="step -1 is negative; steps count from 0"):
        schedule.lr(-1)


@pytest.mark.parametrize(
    ("curve", "fields", "named"),
    [
        (ExponentialSchedule, {}, "lr_min = 0: an exponential never reaches it → a rate above 0"),
        (StepSchedule, {"every_steps": 0}, "they are 0 and 0.1"),
        (StepSchedule, {"factor": 1.0}, "they are 1 and 1.0"),
        (StepSchedule, {"factor": 0.0}, "they are 1 and 0.0"),
        (OneCycleSchedule, {"warmup_steps": 10}, "warmup_steps = 10"),
    ],
)
def test_fields_of_its_own_are_checked_too(curve: type[Curve], fields: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        curve(**({"lr0": 0.1, "total_steps": 10} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"total_steps": 0}, "total_steps = 0"),
        ({"warmup_steps": 10}, "warmup_steps = 10"),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
        ({"lr_min": 0.2}, "lr_min = 0.2"),
        ({"lr_min": -0.1}, "lr_min = -0.1"),
        ({"lr0": math.inf}, "lr0 = inf"),
        ({"lr0": math.nan}, "lr0 = nan"),
        ({"start_lr": math.nan}, "start_lr = nan"),
        ({"floor": 0.2, "ceiling": 0.1}, "floor = 0.2"),
        ({"floor": math.nan}, "floor = nan"),
        ({"cycle_steps": 0}, "cycle_steps = 0"),
        ({"cycle_steps": 5, "cycle_mult": 0}, "cycle_mult"),
        ({"cycle_steps": 5, "scale": 0.0}, "scale"),
        ({"cycle_steps": 5, "scale": 1.1}, "scale"),
        ({"cycle_steps": 5, "ramp_steps": 5}, "ramp_steps = 5"),
        ({"cycle_steps": 5, "ramp_steps": -1}, "ramp_steps = -1"),
    ],
)
def test_fields_that_make_no_schedule_are_refused_by_name(fields: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CosineSchedule(**({"lr0": 0.1, "total_steps": 10} | fields))  # type: ignore[arg-type]


def optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@settings(max_examples=60, deadline=None)
@given(lr0=st.floats(1e-6, 10), share=st.floats(0, 1), total=st.integers(2, MILLION), data=st.data())
def test_torch_agrees_within_the_error_of_its_closed_form(
    lr0: float, share: float, total: int, data: st.DataObject
) -> None:
    step, lr_min = data.draw(st.integers(0, total)), lr0 * share
    theirs = lr_scheduler.CosineAnnealingLR(optimizer(lr0), T_max=total, eta_min=lr_min)
    theirs.last_epoch = step
    ours = CosineSchedule(lr0, total, lr_min).lr(step)
    # Theirs adds 1 to a cosine: an absolute error of a few units in the last place of lr0.
    assert ours == close(theirs._get_closed_form_lr()[0], rel=0, within=4 * sys.float_info.epsilon * lr0)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=300, eta_min=0.001), CosineSchedule(0.1, 300, 0.001)),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.01, total_iters=300), LinearSchedule(0.1, 300, 0.001)),
        (lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, total_iters=300), LinearSchedule(0.1, 301, 0, 300, 0.025)),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / 300)), ExponentialSchedule(0.1, 300, 0.001)),
        (lambda o: lr_scheduler.StepLR(o, 70, 0.3), StepSchedule(0.1, 301, every_steps=70, factor=0.3)),
        (
            lambda o: lr_scheduler.OneCycleLR(o, 0.1, 301, pct_start=91 / 301, div_factor=20, final_div_factor=50),
            OneCycleSchedule(0.1, 300, 0.0001, warmup_steps=90, start_lr=0.005),
        ),
        (
            lambda o: lr_scheduler.OneCycleLR(
                o, 0.1, 301, pct_start=91 / 301, anneal_strategy="linear", div_factor=20, final_div_factor=50
            ),
            LinearSchedule(0.1, 300, 0.0001, warmup_steps=90, start_lr=0.005),
        ),
    ],
    ids=["cosine", "linear", "linear warmup", "exponential", "step", "one cycle", "one straight cycle"],
)
def test_torch_agrees_step_by_step(theirs: Callable[[torch.optim.Optimizer], Any], ours: Curve) -> None:
    stepped = optimizer(0.1)
    scheduler = theirs(stepped)
    for step in range(301):
        assert ours.lr(step) == close(stepped.param_groups[0]["lr"], rel=1e-12), step
        if step < 300:
            stepped.step()
            scheduler.step()


def test_an_exponential_by_hand() -> None:
    schedule = ExponentialSchedule(lr0=1.0, total_steps=6, lr_min=1e-4, warmup_steps=2)
    assert rates(schedule, 8) == close([0, 0.5, 1.0, 0.1, 0.01, 0.001, 1e-4, 1e-4])


def test_an_exponential_over_all_magnitudes_keeps_its_digits() -> None:
    """The ratio of its ends is below the smallest float."""
    schedule = ExponentialSchedule(lr0=1e200, total_steps=4, lr_min=1e-200)
    assert rates(schedule, 5) == close([1e200, 1e100, 1.0, 1e-100, 1e-200], rel=1e-13)


def test_drops_by_hand() -> None:
    schedule = StepSchedule(lr0=0.8, total_steps=10, lr_min=0.15, warmup_steps=2, every_steps=3, factor=0.5)
    assert rates(schedule, 12) == close([0, 0.4, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2, 0.15, 0.15])
    assert StepSchedule(0.8, 100, 0.15, every_steps=3, factor=0.5).lr(99) == 0.15


def test_a_plateau_nobody_reduces_is_constant_until_the_end() -> None:
    schedule = PlateauSchedule(lr0=0.8, total_steps=6, lr_min=0.1, warmup_steps=2)
    assert rates(schedule, 8) == [0, 0.4, 0.8, 0.8, 0.8, 0.8, 0.1, 0.1]


def test_one_cycle_by_hand() -> None:
    root = math.sqrt(2) / 4
    schedule = OneCycleSchedule(lr0=1.0, total_steps=8, warmup_steps=4)
    up = [0, 0.5 - root, 0.5, 0.5 + root]
    assert rates(schedule, 9) == close([*up, 1.0, *reversed(up)])
