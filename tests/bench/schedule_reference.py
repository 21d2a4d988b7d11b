"""Random schedules and steps, and the rate as each is defined, in 50 digits: for the tests and for the benchmark."""

import math
import sys
from collections.abc import Collection, Iterable

import mpmath
from convergate.components.schedule import (
    CosineSchedule,
    EventfulSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    ScheduleEvent,
    StepSchedule,
    with_events,
)
from hypothesis import strategies as st

MILLION = 1_000_000
Curve = CosineSchedule | ExponentialSchedule | LinearSchedule | OneCycleSchedule | PlateauSchedule | StepSchedule
CURVES: list[type[Curve]] = [
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    StepSchedule,
]
Events = tuple[ScheduleEvent, ...]
FACTORS = st.floats(1e-3, 1) | st.floats(0.999999, 1) | st.sampled_from([0.1, 0.5])


def exact(schedule: Curve, step: int, events: Events = ()) -> mpmath.mpf:
    """The rate as it is defined, in 50 digits."""
    with mpmath.workdps(50):
        happened = [event for event in events if event.step <= step]
        lr0, start, warmup = mpmath.mpf(schedule.lr0), mpmath.mpf(schedule.start_lr), schedule.warmup_steps
        if step >= schedule.total_steps:
            rate = mpmath.mpf(schedule.lr_min)
        elif step >= warmup:
            rate = _after_warmup(schedule, step, happened)
        elif isinstance(schedule, OneCycleSchedule):
            rate = lr0 + (start - lr0) * (1 + mpmath.cos(mpmath.pi * step / warmup)) / 2
        else:
            rate = start + (lr0 - start) * step / warmup
        rate = min(max(rate, mpmath.mpf(schedule.floor)), mpmath.mpf(schedule.ceiling))
        return max(rate * _factor("rollback", happened), mpmath.mpf(schedule.floor))


def _factor(kind: str, happened: Iterable[ScheduleEvent]) -> mpmath.mpf:
    return mpmath.fprod(mpmath.mpf(event.factor) for event in happened if event.kind == kind)


def _after_warmup(schedule: Curve, step: int, happened: Collection[ScheduleEvent]) -> mpmath.mpf:
    lr0, lr_min = mpmath.mpf(schedule.lr0), mpmath.mpf(schedule.lr_min)
    position, length = step - schedule.warmup_steps, schedule.total_steps - schedule.warmup_steps
    if isinstance(schedule, CosineSchedule):
        return _in_a_cycle(schedule, step, {event.step for event in happened if event.kind == "restart"})
    if isinstance(schedule, OneCycleSchedule):
        return lr_min + (lr0 - lr_min) * (1 + mpmath.cos(mpmath.pi * position / length)) / 2
    if isinstance(schedule, ExponentialSchedule):
        return lr0 * (lr_min / lr0) ** (mpmath.mpf(position) / length)
    if isinstance(schedule, StepSchedule):
        return max(lr0 * mpmath.mpf(schedule.factor) ** (position // schedule.every_steps), lr_min)
    if isinstance(schedule, PlateauSchedule):
        return max(lr0 * mpmath.mpf(schedule.reduction) * _factor("reduce", happened), lr_min)
    return lr0 + (lr_min - lr0) * position / length


def _in_a_cycle(schedule: CosineSchedule, step: int, restarts: set[int]) -> mpmath.mpf:
    """The cycle is found by walking through all of them; each ends at its length or at a restart."""
    lr0, lr_min = mpmath.mpf(schedule.lr0), mpmath.mpf(schedule.lr_min)
    index, begin = 0, schedule.warmup_steps
    length = schedule.cycle_steps or schedule.total_steps - schedule.warmup_steps
    while (end := min([begin + length, *(at for at in restarts if at > begin)])) <= step:
        index, begin, length = index + 1, end, length * schedule.cycle_mult
    position = step - begin
    amplitude, ramp = (lr0 - lr_min) * mpmath.mpf(schedule.scale) ** index, schedule.ramp_steps if index else 0
    if position < ramp:
        return lr_min + amplitude * position / ramp
    return lr_min + amplitude * (1 + mpmath.cos(mpmath.pi * (position - ramp) / (length - ramp))) / 2


def relative_error(schedule: Curve | EventfulSchedule, step: int) -> float:
    """How far the rate is from its definition, as a share of it; below the smallest normal number, as one of that."""
    base, events = _parts(schedule)
    reference = exact(base, step, events)
    return float(abs(schedule.lr(step) - reference) / max(reference, sys.float_info.min))


def _parts(schedule: Curve | EventfulSchedule) -> tuple[Curve, Events]:
    if not isinstance(schedule, EventfulSchedule):
        return schedule, ()
    assert isinstance(schedule.base, Curve)
    return schedule.base, schedule.events


def edges(scheduled: Curve | EventfulSchedule) -> list[int]:
    """The steps at which something begins or ends: warmup, the first ten cycles or drops, the run; and beyond it."""
    schedule, events = _parts(scheduled)
    warmup, total = schedule.warmup_steps, schedule.total_steps
    begins = [warmup, total, *(event.step for event in events)]
    if isinstance(schedule, StepSchedule):
        begins += [warmup + number * schedule.every_steps for number in range(10)]
    if isinstance(schedule, CosineSchedule) and schedule.cycle_steps:
        lengths = [schedule.cycle_steps * schedule.cycle_mult**number for number in range(10)]
        begins += [warmup + sum(lengths[:number]) for number in range(10)]
    around = {begin + offset for begin in begins for offset in (-1, 0, 1)} | {0, total + 1, 2 * total, 10**15}
    return sorted(step for step in around if step >= 0)


@st.composite
def schedules(draw: st.DrawFn, curves: list[type[Curve]] = CURVES) -> Curve:
    """Schedules of every length, with rates far apart and close to one another."""
    curve = draw(st.sampled_from(curves))
    total = draw(st.integers(1, 500) | st.sampled_from([10_000, MILLION, MILLION + 7]))
    lr0 = draw(st.floats(1e-9, 1e3) | st.sampled_from([0.1, 1e-3]))
    # Rates that lie close to one another are where a difference loses its digits.
    close = st.floats(0.999999999, 1).map(lr0.__mul__)
    lr_min = draw(st.floats(0, lr0, exclude_min=True) | close)
    if curve is not ExponentialSchedule:
        lr_min = draw(st.sampled_from([0.0, lr_min]))
    warmup = draw(st.just(0) | st.integers(0, total - 1))
    start = draw(st.just(0.0) | st.floats(0, 1e3) | close)
    floor, ceiling = draw(st.sampled_from([(0.0, math.inf), (lr0 / 100, lr0 / 2)]))
    shared = (lr0, total, lr_min, warmup, start, floor, ceiling)
    if curve is StepSchedule:
        return StepSchedule(*shared, draw(st.integers(1, total)), draw(st.floats(1e-3, 1, exclude_max=True)))
    if curve is not CosineSchedule:
        return curve(*shared)
    cycle = draw(st.none() | st.integers(max(1, total // 200), total))
    ramp = draw(st.integers(0, cycle - 1)) if cycle else 0
    mult, scale = draw(st.integers(1, 4)), draw(st.just(1.0) | st.floats(0.5, 1) | st.floats(0.999999, 1))
    return CosineSchedule(*shared, cycle, mult, scale, ramp)


@st.composite
def eventful(draw: st.DrawFn, curves: list[type[Curve]] = CURVES) -> Curve | EventfulSchedule:
    """Such schedules with up to six events of the kinds that they can have."""
    schedule = draw(schedules(curves))
    after, end = schedule.warmup_steps + 1, schedule.total_steps + 5
    events = [st.builds(ScheduleEvent, st.integers(0, end), st.just("rollback"), FACTORS)]
    if isinstance(schedule, PlateauSchedule):
        events.append(st.builds(ScheduleEvent, st.integers(after, end), st.just("reduce"), FACTORS))
    if isinstance(schedule, CosineSchedule) and schedule.cycle_steps:
        near = st.sampled_from([edge for edge in edges(schedule) if after <= edge <= end] or [after])
        events += [st.builds(ScheduleEvent, at, st.just("restart")) for at in (st.integers(after, end), near)]
    return with_events(schedule, draw(st.lists(st.one_of(events), max_size=6)))


def steps(schedule: Curve | EventfulSchedule, count: int) -> st.SearchStrategy[list[int]]:
    """Steps of a schedule, half of them where something begins or ends."""
    one = st.sampled_from(edges(schedule)) | st.integers(0, schedule.total_steps - 1)
    return st.lists(one, min_size=count, max_size=count)
