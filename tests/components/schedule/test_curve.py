"""The rates themselves: by hand, against 50 digits, and against torch."""

import math
import sys

import mpmath
import pytest
import torch
from convergate.components.errors import UserError
from convergate.components.schedule import CosineSchedule, Schedule, ScheduleConfig, build_schedule
from convergate.components.schedule.curve import LinearSchedule
from hypothesis import given, settings
from hypothesis import strategies as st

MILLION = 1_000_000


def rates(schedule: Schedule, end: int) -> list[float]:
    return [schedule.lr(step) for step in range(end)]


def close(expected: object, rel: float = 1e-14, within: float = 0.0) -> object:
    """Within a relative error alone, unless told: pytest adds an absolute one of 1e-12."""
    return pytest.approx(expected, rel=rel, abs=within)


def exact(schedule: CosineSchedule | LinearSchedule, step: int) -> mpmath.mpf:
    """The rate as it is defined, in 50 digits; the cycle is found by walking through all of them."""
    with mpmath.workdps(50):
        lr0, lr_min = mpmath.mpf(schedule.lr0), mpmath.mpf(schedule.lr_min)
        start, warmup = mpmath.mpf(schedule.start_lr), schedule.warmup_steps
        if step >= schedule.total_steps:
            rate = lr_min
        elif step < warmup:
            rate = start + (lr0 - start) * step / warmup
        elif isinstance(schedule, LinearSchedule):
            rate = lr0 + (lr_min - lr0) * (step - warmup) / (schedule.total_steps - warmup)
        else:
            index, begin, length = 0, warmup, schedule.cycle_steps or schedule.total_steps - warmup
            while step >= begin + length:
                index, begin, length = index + 1, begin + length, length * schedule.cycle_mult
            amplitude, ramp = (lr0 - lr_min) * mpmath.mpf(schedule.scale) ** index, schedule.ramp_steps if index else 0
            position = step - begin
            if position < ramp:
                rate = lr_min + amplitude * position / ramp
            else:
                rate = lr_min + amplitude * (1 + mpmath.cos(mpmath.pi * (position - ramp) / (length - ramp))) / 2
        return min(max(rate, mpmath.mpf(schedule.floor)), mpmath.mpf(schedule.ceiling))


@st.composite
def schedules(draw: st.DrawFn, linear: bool = False) -> CosineSchedule | LinearSchedule:
    total = draw(st.integers(1, 500) | st.sampled_from([10_000, MILLION, MILLION + 7]))
    lr0 = draw(st.floats(1e-9, 1e3) | st.sampled_from([0.1, 1e-3]))
    # Rates that lie close to one another are where a difference loses its digits.
    close = st.floats(0.999999999, 1).map(lr0.__mul__)
    lr_min = draw(st.just(0.0) | st.floats(0, lr0) | close)
    warmup = draw(st.just(0) | st.integers(0, total - 1))
    start = draw(st.just(0.0) | st.floats(0, 1e3) | close)
    floor, ceiling = draw(st.sampled_from([(0.0, math.inf), (lr0 / 100, lr0 / 2)]))
    if linear:
        return LinearSchedule(lr0, total, lr_min, warmup, start, floor, ceiling)
    cycle = draw(st.none() | st.integers(max(1, total // 200), total))
    ramp = draw(st.integers(0, cycle - 1)) if cycle else 0
    mult, scale = draw(st.integers(1, 4)), draw(st.just(1.0) | st.floats(0.5, 1) | st.floats(0.999999, 1))
    return CosineSchedule(lr0, total, lr_min, warmup, start, floor, ceiling, cycle, mult, scale, ramp)


@pytest.mark.parametrize("linear", [False, True])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_every_rate_has_twelve_digits(linear: bool, data: st.DataObject) -> None:
    schedule = data.draw(schedules(linear))
    total, warmup = schedule.total_steps, schedule.warmup_steps
    edges = [0, warmup - 1, warmup, warmup + 1, total - 2, total - 1, total]
    for step in {max(0, step) for step in edges} | {data.draw(st.integers(0, total - 1), "step")}:
        rate, reference = schedule.lr(step), exact(schedule, step)
        assert abs(rate - reference) <= 1e-12 * reference + sys.float_info.min, (step, rate)


@settings(max_examples=300)
@given(schedule=schedules() | schedules(linear=True))
def test_the_ends_are_exact(schedule: CosineSchedule | LinearSchedule) -> None:
    def clipped(rate: float) -> float:
        return min(max(rate, schedule.floor), schedule.ceiling)

    total, warmup = schedule.total_steps, schedule.warmup_steps
    assert schedule.lr(warmup) == clipped(schedule.lr0)
    assert schedule.lr(0) == clipped(schedule.start_lr if warmup else schedule.lr0)
    assert {schedule.lr(step) for step in (total, total + 1, 2 * total, 10**15)} == {clipped(schedule.lr_min)}


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


@pytest.mark.parametrize("schedule", [CosineSchedule(0.1, 10), LinearSchedule(0.1, 10, warmup_steps=3)])
def test_a_negative_step_is_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="step -1 is negative; steps count from 0"):
        schedule.lr(-1)


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
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(lr0), T_max=total, eta_min=lr_min)
    theirs.last_epoch = step
    ours = CosineSchedule(lr0, total, lr_min).lr(step)
    # Theirs adds 1 to a cosine: an absolute error of a few units in the last place of lr0.
    assert ours == close(theirs._get_closed_form_lr()[0], rel=0, within=4 * sys.float_info.epsilon * lr0)


def test_torch_agrees_step_by_step() -> None:
    stepped = optimizer(0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(stepped, T_max=300, eta_min=0.001)
    ours = CosineSchedule(0.1, 300, 0.001)
    for step in range(301):
        assert ours.lr(step) == close(stepped.param_groups[0]["lr"], rel=1e-12)
        stepped.step()
        theirs.step()


BASE = {"lr0": 0.1, "total_steps": 100}


def built(config: dict[str, object], total_steps: int = 100, batch_size: int = 64) -> Schedule:
    return build_schedule(ScheduleConfig.model_validate(config), total_steps=total_steps, batch_size=batch_size)


def test_every_key_of_the_config_reaches_the_curve() -> None:
    config = BASE | {
        "kind": "cosine_restarts",
        "lr_min": 0.01,
        "warmup": {"steps": 10, "start_lr": 0.02},
        "restarts": {"cycle_steps": 20, "cycle_mult": 2, "scale": 0.5, "ramp_steps": 3},
        "clip": {"floor": 0.03, "ceiling": 0.09},
    }
    assert built(config) == CosineSchedule(0.1, 100, 0.01, 10, 0.02, 0.03, 0.09, 20, 2, 0.5, 3)


def test_a_cosine_without_restarts_is_one_cycle() -> None:
    schedule = built(BASE | {"warmup": {"steps": 10}})
    assert isinstance(schedule, CosineSchedule)
    assert schedule.cycle(99) == (0, 89, 90)


def test_a_line_by_hand() -> None:
    schedule = built({"kind": "linear", "lr0": 0.5, "lr_min": 0.1, "total_steps": 8, "warmup": {"steps": 4}}, 8)
    assert rates(schedule, 10) == close([0, 0.125, 0.25, 0.375, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1])


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


@pytest.mark.parametrize("kind", ["exponential", "step", "one_cycle", "plateau"])
def test_a_kind_without_a_curve_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=f"schedule.kind = {kind}: not available in this version → one of cosine,"):
        built(BASE | {"kind": kind})


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
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
        built({"kind": kind, "lr0": 0.1, "total_epochs": 2} | config, total_steps)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_that_scales_the_peak_below_the_minimum_is_refused() -> None:
    config = BASE | {"lr_min": 0.05, "scale_with_batch": {"base_batch_size": 256}}
    with pytest.raises(UserError, match=r"lr0 = 0.025, lr_min = 0.05"):
        built(config, batch_size=64)
