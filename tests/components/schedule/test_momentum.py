"""The momentum beside the rate: by hand, its bounds, and against torch."""

from typing import Any

import pytest
import torch
from convergate.components.schedule import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    MomentumCycle,
    MomentumWarmup,
    OneCycleSchedule,
)
from convergate.components.schedule.torch_adapter import ScheduleLR
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_reference import Curve, schedules, steps
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR

ONE_CYCLE = OneCycleSchedule(lr0=0.1, total_steps=300, lr_min=0.0001, warmup_steps=90, start_lr=0.005)


def close(expected: object) -> object:
    return pytest.approx(expected, rel=0, abs=1e-14)


def test_a_warmup_by_hand() -> None:
    warmup = MomentumWarmup(low=0.5, high=0.9, warmup_steps=4)
    assert [warmup.momentum(step) for step in range(6)] == close([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    assert {warmup.momentum(step) for step in (4, 5, 10**15)} == {0.9}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LinearSchedule(1.0, 4, 0.2, warmup_steps=2, start_lr=0.4), [0.95, 0.9, 0.85, 0.9, 0.95, 0.95]),
        # The rate cools down to its peak: warmup is still one climb of the momentum's cycle.
        (LinearSchedule(1.0, 4, 0.2, warmup_steps=2, start_lr=3.0), [0.95, 0.9, 0.85, 0.9, 0.95, 0.95]),
        # The second cycle is half as high.
        (CosineSchedule(1.0, 8, cycle_steps=4, scale=0.5), [0.85, None, 0.9, None, 0.9, None, 0.925, None, 0.95]),
        # What is clipped of the rate is clipped of the momentum.
        (LinearSchedule(1.0, 4, ceiling=0.75, floor=0.25), [0.875, 0.875, 0.9, 0.925, 0.925]),
        (LinearSchedule(1.0, 4, floor=2.0, ceiling=3.0), [0.85, 0.85]),
        # A constant rate is at its peak all along, also in a warmup from where it ends.
        (LinearSchedule(0.1, 4, 0.1, warmup_steps=2, start_lr=0.1), [0.85] * 6),
        (ExponentialSchedule(1.0, 2, 0.01), [0.85, 0.95 - 0.1 * 0.09 / 0.99, 0.95]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_cycle_by_hand(schedule: Curve, expected: list[float | None]) -> None:
    cycle = MomentumCycle(schedule, low=0.85, high=0.95)
    for step, momentum in enumerate(expected):
        if momentum is not None:
            assert cycle.momentum(step) == close(momentum), step


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_cycle_stays_between_its_ends_and_moves_against_the_rate(data: st.DataObject) -> None:
    schedule = data.draw(schedules())
    low, high = sorted((data.draw(st.floats(0, 0.999)), data.draw(st.floats(0, 0.999))))
    cycle = MomentumCycle(schedule, low, high)
    one, other = sorted(data.draw(steps(schedule, 2)), key=schedule.lr)
    assert low - 1e-15 <= cycle.momentum(one) <= high
    if min(one, other) >= schedule.warmup_steps:
        assert cycle.momentum(one) >= cycle.momentum(other)


@pytest.mark.parametrize(
    ("low", "high"), [(-0.1, 0.9), (0.9, 0.8), (0.5, 1.0), (float("nan"), 0.9), (0.5, float("nan"))]
)
def test_ends_that_make_no_momentum_are_refused(low: float, high: float) -> None:
    message = f"0 ≤ low ≤ high < 1: they are {low} and {high}"
    with pytest.raises(ValueError, match=message):
        MomentumWarmup(low, high, 5)
    with pytest.raises(ValueError, match=message):
        MomentumCycle(ONE_CYCLE, low, high)


def parameters() -> list[dict[str, Any]]:
    return [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_torch_agrees_step_by_step_on_rate_and_momentum(kind: type[SGD | Adam]) -> None:
    theirs, ours = kind(parameters(), lr=1.0), kind(parameters(), lr=1.0)
    cycle = {"pct_start": 91 / 301, "div_factor": 20, "final_div_factor": 50}
    peer = OneCycleLR(theirs, 0.1, 301, **cycle, base_momentum=0.8, max_momentum=0.96)
    scheduler = ScheduleLR(ours, ONE_CYCLE, MomentumCycle(ONE_CYCLE, low=0.8, high=0.96))
    for step in range(301):
        for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12, abs=0)
            for key in {"momentum", "betas"} & mine.keys():
                assert mine[key] == close(other[key]), step
        if step < 300:
            for optimizer, one in ((theirs, peer), (ours, scheduler)):
                optimizer.step()
                one.step()
