"""What events make of a schedule: by hand, against 50 digits, and what does not fit."""

import json
import math
from typing import Any

import pytest
from convergate.components.schedule import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    MomentumCycle,
    PlateauSchedule,
    ScheduleEvent,
    with_events,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_reference import CURVES, Curve, eventful, relative_error, schedules, steps

RESTARTS = CosineSchedule(1.0, 100, 0.1, warmup_steps=4, cycle_steps=8, cycle_mult=2, scale=0.5, ramp_steps=2)
PLATEAU = PlateauSchedule(0.8, 100, 0.15, warmup_steps=4)


def restart(step: int) -> ScheduleEvent:
    return ScheduleEvent(step, "restart")


def reduce(step: int, factor: float = 0.5) -> ScheduleEvent:
    return ScheduleEvent(step, "reduce", factor)


def rollback(step: int, factor: float = 0.5) -> ScheduleEvent:
    return ScheduleEvent(step, "rollback", factor)


def close(expected: object) -> object:
    return pytest.approx(expected, rel=1e-14, abs=0)


@pytest.mark.parametrize("curve", CURVES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_rate_has_twelve_digits(curve: type[Curve], data: st.DataObject) -> None:
    schedule = data.draw(eventful([curve]))
    for step in data.draw(steps(schedule, 8)):
        assert relative_error(schedule, step) <= 1e-12, (step, schedule.lr(step))


def test_no_events_is_the_schedule_itself() -> None:
    assert with_events(RESTARTS, []) is RESTARTS


def test_a_restart_begins_the_next_cycle_with_its_ramp_amplitude_and_length() -> None:
    schedule = with_events(RESTARTS, [restart(7)])
    assert [schedule.lr(step) for step in range(7)] == [RESTARTS.lr(step) for step in range(7)]
    # Cycle 1 has 16 steps and peaks at 0.55, cycle 2 has 32 and peaks at 0.325: 5 steps earlier than planned.
    assert [schedule.lr(step) for step in (7, 8, 9, 16)] == close([0.1, 0.325, 0.55, 0.325])
    assert [schedule.lr(step) for step in (23, 24, 25, 40)] == close([0.1, 0.2125, 0.325, 0.2125])
    assert [schedule.lr(step) for step in range(7, 95)] == [RESTARTS.lr(step + 5) for step in range(7, 95)]
    assert {schedule.lr(step) for step in (100, 101, 10**15)} == {0.1}


@pytest.mark.parametrize(
    ("cycle_steps", "mult", "boundary", "index"),
    [(5, 3, 605, 5), (10, 10, 1110, 3), (7, 3, 847, 5), (1, 2, 2**40 - 1, 40), (100, 1, 700, 7)],
)
def test_cycles_after_an_early_restart_begin_where_integers_say(
    cycle_steps: int, mult: int, boundary: int, index: int
) -> None:
    whole = CosineSchedule(1.0, 2**50, warmup_steps=3, cycle_steps=cycle_steps, cycle_mult=mult, scale=0.5)
    length = cycle_steps * mult**index
    early = 3 + boundary - length // mult + 1  # cycle index - 1 had one update
    schedule = with_events(whole, [restart(early)])
    assert schedule.lr(early) == 0.5**index
    assert schedule.lr(early + length) == 0.5 ** (index + 1)
    assert schedule.lr(early + length - 1) < 0.5**index
    assert schedule.lr(early - 1) == 0.5 ** (index - 1)
    # At the cycle's own end, a restart is what happens anyway.
    planned = with_events(whole, [restart(3 + boundary)])
    around = range(max(3, boundary - 5), boundary + 9)
    assert [planned.lr(step) for step in around] == [whole.lr(step) for step in around]


def test_one_restart_said_twice_is_one() -> None:
    once, twice = with_events(RESTARTS, [restart(7)]), with_events(RESTARTS, [restart(7), restart(7)])
    assert [twice.lr(step) for step in range(101)] == [once.lr(step) for step in range(101)]


@settings(max_examples=60, deadline=None)
@given(events=st.lists(st.builds(restart, st.integers(5, 110)) | st.builds(rollback, st.integers(0, 110)), max_size=6))
def test_the_order_in_which_events_are_told_does_not_matter(events: list[ScheduleEvent]) -> None:
    forth, back = with_events(RESTARTS, events), with_events(RESTARTS, sorted(events, key=lambda event: -event.step))
    assert [forth.lr(step) for step in range(110)] == [back.lr(step) for step in range(110)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_event_changes_nothing_before_its_step(data: st.DataObject) -> None:
    schedule = data.draw(schedules())
    at = data.draw(st.integers(1, schedule.total_steps + 5))
    changed = with_events(schedule, [rollback(at)])
    for step in data.draw(st.lists(st.integers(0, at - 1), min_size=1, max_size=5)):
        assert changed.lr(step) == schedule.lr(step)


def test_a_reduction_multiplies_and_stops_at_the_minimum() -> None:
    schedule = with_events(PLATEAU, [reduce(10), reduce(20), reduce(30)])
    assert [schedule.lr(step) for step in (0, 2, 4, 9, 10, 19, 20, 29, 30, 99, 100)] == close(
        [0, 0.4, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.15, 0.15, 0.15]
    )


def test_a_rollback_scales_warmup_curve_minimum_and_ceiling_and_the_floor_stays() -> None:
    bare = LinearSchedule(1.0, 10, 0.2, warmup_steps=2, start_lr=0.4, floor=0.18, ceiling=0.9)
    schedule = with_events(bare, [rollback(1), rollback(8)])
    assert [schedule.lr(step) for step in (0, 1, 2, 6, 8, 9, 10)] == close([0.4, 0.35, 0.45, 0.3, 0.18, 0.18, 0.18])
    assert with_events(bare, [rollback(0, 1e-3)]).lr(2) == 0.18


def test_a_rollback_keeps_the_digits_of_a_curve_whose_end_has_few() -> None:
    bare = ExponentialSchedule(0.1, 34, 2.2250738585e-313)
    schedule = with_events(bare, [rollback(0, 1 / 3), rollback(9, 0.9999)])
    assert max(relative_error(schedule, step) for step in range(35)) <= 1e-12


def test_the_cycle_of_the_momentum_follows_restarts_and_reductions_and_not_rollbacks() -> None:
    def momentum(schedule: Any, step: int) -> float:
        return MomentumCycle(schedule, low=0.85, high=0.95).momentum(step)

    restarted, reduced = with_events(RESTARTS, [restart(7)]), with_events(PLATEAU, [reduce(10, 0.25)])
    assert [momentum(restarted, step) for step in (4, 7, 9)] == close([0.85, 0.95, 0.9])
    assert [momentum(reduced, step) for step in (9, 10)] == close([0.85, 0.95 - 0.1 * 0.05 / 0.65])
    rolled = with_events(RESTARTS, [rollback(7)])
    assert [momentum(rolled, step) for step in range(100)] == close([momentum(RESTARTS, step) for step in range(100)])


@pytest.mark.parametrize(
    ("schedule", "event", "reason"),
    [
        (PLATEAU, restart(9), "restart at step 9: a restart needs a cosine with cycle_steps, .* is a PlateauSchedule"),
        (CosineSchedule(1.0, 9), restart(5), "this is a CosineSchedule"),
        (RESTARTS, reduce(9), "reduce at step 9: .*, a reduction kind plateau; this is a CosineSchedule"),
        (RESTARTS, restart(4), "restart at step 4: in warmup → from step 5 on"),
        (PLATEAU, reduce(3), "reduce at step 3: in warmup → from step 5 on"),
    ],
)
def test_an_event_that_does_not_fit_the_schedule_is_refused(schedule: Curve, event: ScheduleEvent, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        with_events(schedule, [rollback(0), event])


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.5, math.nan, math.inf])
def test_a_factor_that_is_none_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="step ≥ 0 and 0 < factor ≤ 1: they are 5 and "):
        rollback(5, factor)


def test_a_step_before_the_first_and_a_restart_with_a_factor_are_refused() -> None:
    with pytest.raises(ValueError, match="they are -1 and 0.5"):
        rollback(-1)
    with pytest.raises(ValueError, match="factor = 0.5: a restart has none"):
        ScheduleEvent(5, "restart", 0.5)
    with pytest.raises(ValueError, match="step -1 is negative"):
        with_events(RESTARTS, [rollback(0)]).lr(-1)


@given(event=st.builds(rollback, st.integers(0, 10**15), st.floats(0, 1, exclude_min=True)))
def test_an_event_comes_back_from_json_to_the_last_bit(event: ScheduleEvent) -> None:
    assert ScheduleEvent.from_json(json.loads(json.dumps(event.to_json()))) == event
