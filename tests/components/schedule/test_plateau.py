"""When a metric has stopped improving: by hand, beside torch's rule, and from a saved state."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from convergate.components.schedule import (
    Plateau,
    PlateauWatch,
    ScheduleConfig,
    ScheduleEvent,
    build_schedule,
    build_watch,
    metric_name,
)
from convergate.components.schedule.torch_adapter import ScheduleLR
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

BASE: dict[str, Any] = {"lr0": 0.1, "lr_min": 0.001, "total_steps": 100}
RULE: dict[str, Any] = {"metric": "val_loss", "patience": 2}
NAN, INF = math.nan, math.inf
# Eighths, so that a difference is exact and no rule decides by its rounding.
METRICS = st.integers(-20, 20).map(lambda eighths: eighths / 8)


def config(kind: str, **sections: Any) -> ScheduleConfig:
    return ScheduleConfig.model_validate(BASE | {"kind": kind} | sections)


def watch(kind: str, batch_size: int = 64, **sections: Any) -> PlateauWatch:
    made = build_watch(config(kind, **sections), batch_size=batch_size)
    assert made is not None
    return made


def seen(monitor: Plateau, values: Sequence[float]) -> list[int]:
    """The observations, counted from 0, that made a plateau."""
    return [index for index, value in enumerate(values) if monitor.observe(value)]


def optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    made = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    made.step()
    return made


@pytest.mark.parametrize(
    ("settings_", "values", "plateaus"),
    [
        ({}, [3, 2, 1, 1, 1, 1, 1], [4, 6]),
        ({}, [3, 2, 4, 1, 4, 4], [5]),
        ({"patience": 1}, [1, 1, 1], [1, 2]),
        ({"mode": "max"}, [1, 2, 3, 2, 3], [4]),
        # Better by no more than the threshold is no better, however often.
        ({"threshold": 0.5}, [3, 2.5, 2.5, 1.75, 1.5], [2]),
        ({"threshold": 0.5, "mode": "max"}, [1, 1.5, 1.5, 2.25], [2]),
        # In the cooldown nothing counts as bad, and a new best still counts as the best.
        ({"cooldown": 2}, [1, 1, 1, 1, 0, 0.5, 0.5, 1], [2, 6]),
        ({"patience": 1, "cooldown": 1}, [1] * 7, [1, 3, 5]),
        # The means: 4, 3, 3, 3, 2.5; and 6, 3, 3, 2, 1, 5.
        ({"smoothing": 2}, [4, 2, 4, 2, 3], [3]),
        ({"smoothing": 3}, [6, 0, 3, 3, -3, 15], []),
        ({"smoothing": 3}, [6, 0, 3, 6, 6], [3]),
        # The first value sets the mark; without one there is no improvement.
        ({}, [NAN, NAN, NAN, NAN], [1, 3]),
        ({}, [2, NAN, INF, 1, -INF, NAN], [2, 5]),
        ({"mode": "max"}, [2, INF, NAN], [2]),
        # A value that is not finite stays out of the mean: 4, 3, -, 1.
        ({"smoothing": 2}, [4, 2, NAN, 0, 0], []),
    ],
)
def test_a_plateau_by_hand(settings_: dict[str, Any], values: list[float], plateaus: list[int]) -> None:
    assert seen(Plateau(**({"patience": 2} | settings_)), values) == plateaus


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(METRICS | st.just(NAN), max_size=60),
    patience=st.integers(1, 4),
    mode=st.sampled_from(["min", "max"]),
    cooldown=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 0.125, 1.0]),
)
def test_it_decides_as_torchs_rule_with_one_less_patience(
    values: list[float], patience: int, mode: Any, cooldown: int, threshold: float
) -> None:
    theirs = ReduceLROnPlateau(
        optimizer(1.0), mode, 0.5, patience - 1, threshold, threshold_mode="abs", cooldown=cooldown, eps=0.0
    )
    reduced = []
    for index, value in enumerate(values):
        before = theirs.optimizer.param_groups[0]["lr"]
        theirs.step(value)
        if theirs.optimizer.param_groups[0]["lr"] < before:
            reduced.append(index)
    assert seen(Plateau(patience, mode, cooldown=cooldown, threshold=threshold), values) == reduced


@settings(max_examples=100, deadline=None)
@given(values=st.lists(METRICS, max_size=40), smoothing=st.integers(2, 5))
def test_smoothing_is_the_rule_over_the_means(values: list[float], smoothing: int) -> None:
    windows = [values[max(0, end - smoothing) : end] for end in range(1, len(values) + 1)]
    means = [math.fsum(window) / len(window) for window in windows]
    assert seen(Plateau(2, smoothing=smoothing), values) == seen(Plateau(2), means)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(METRICS, min_size=1, max_size=40), patience=st.integers(1, 4), cooldown=st.integers(0, 3))
def test_kind_plateau_sets_the_rates_of_torchs(values: list[float], patience: int, cooldown: int) -> None:
    """A factor of a half is exact however often."""
    theirs = ReduceLROnPlateau(
        optimizer(), factor=0.5, patience=patience - 1, threshold=0, cooldown=cooldown, min_lr=0.001, eps=0.0
    )
    rule = RULE | {"patience": patience, "cooldown": cooldown, "factor": 0.5}
    watching = watch("plateau", plateau=rule)
    schedule = build_schedule(config("plateau", plateau=rule), total_steps=100, batch_size=64)
    ours = ScheduleLR(optimizer(), schedule)
    for step, value in enumerate(values, start=1):
        theirs.step(value)
        ours.step()
        event = watching.observe(step, value)
        if event is not None:
            ours.add(event)
        assert ours.get_last_lr() == [theirs.optimizer.param_groups[0]["lr"]], step


@pytest.mark.parametrize(
    "wrong", [{"patience": 0}, {"smoothing": 0}, {"cooldown": -1}, {"threshold": -1.0}, {"threshold": NAN}]
)
def test_settings_that_make_no_monitor_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="patience ≥ 1, smoothing ≥ 1, cooldown ≥ 0, threshold ≥ 0: they are"):
        Plateau(**({"patience": 2} | wrong))


def test_nothing_counts_before_the_end_of_warmup() -> None:
    watching = watch("plateau", plateau=RULE, warmup={"steps": 20})
    assert [watching.observe(step, 1.0) for step in (5, 10, 15, 20, 25, 30)] == [None] * 6
    assert watching.observe(35, 1.0) == ScheduleEvent(35, "reduce", 0.1)


def test_restarts_end_with_their_maximum() -> None:
    watching = watch("cosine_restarts", restarts={"cycle_steps": 30, "on_plateau": RULE | {"max": 2}})
    events = [watching.observe(step, 1.0) for step in range(10, 100, 10)]
    assert [event for event in events if event] == [ScheduleEvent(30, "restart"), ScheduleEvent(50, "restart")]


@pytest.mark.parametrize(
    ("sections", "batch_size", "count"),
    [
        ({}, 64, 2),  # 0.1, 0.01, 0.001
        ({"plateau": RULE | {"factor": 0.5}}, 64, 7),
        ({"clip": {"floor": 0.01}}, 64, 1),
        ({"clip": {"floor": 0.2}}, 64, 0),
        ({"lr_min": 0.1}, 64, 0),
        ({"scale_with_batch": {"base_batch_size": 64}}, 640, 3),
        ({"lr_min": 0.0}, 64, 24),  # as long as it runs
    ],
)
def test_reductions_end_where_the_rate_cannot_fall(sections: dict[str, Any], batch_size: int, count: int) -> None:
    watching = watch("plateau", batch_size, **({"plateau": RULE} | sections))
    events = [watching.observe(step, 1.0) for step in range(1, 50)]
    assert len([event for event in events if event]) == count


def test_the_watch_says_why() -> None:
    watching = watch("plateau", plateau=RULE)
    for step, value in enumerate([0.5, 0.25, 0.75, NAN], start=1):
        event = watching.observe(step, value)
    assert event == ScheduleEvent(4, "reduce", 0.1)
    assert watching.reason == "val_loss did not improve on 0.25 in 2 evaluations"
    nothing = watch("plateau", plateau=RULE)
    assert [nothing.observe(1, NAN), nothing.observe(2, NAN)] == [None, ScheduleEvent(2, "reduce", 0.1)]
    assert nothing.reason == "val_loss did not improve on nothing finite in 2 evaluations"


@pytest.mark.parametrize(
    ("kind", "sections"), [("cosine", {}), ("constant", {}), ("cosine_restarts", {"restarts": {"cycle_steps": 9}})]
)
def test_a_schedule_without_a_rule_has_no_watch(kind: str, sections: dict[str, Any]) -> None:
    assert build_watch(config(kind, **sections), batch_size=64) is None


def test_every_key_of_the_rule_reaches_the_monitor() -> None:
    rule = {"metric": "accuracy", "patience": 3, "mode": "max", "smoothing": 4, "cooldown": 5, "threshold": 0.25}
    on_plateau = watch("cosine_restarts", restarts={"cycle_steps": 30, "on_plateau": rule | {"max": 2}})
    plateau = watch("plateau", plateau=rule | {"factor": 0.3})
    assert on_plateau.monitor == plateau.monitor == Plateau(3, "max", 4, 5, 0.25)
    assert on_plateau.metric == plateau.metric == "accuracy"


@pytest.mark.parametrize(
    ("written", "name"), [("val_loss", "loss"), ("loss", "loss"), ("val_val_loss", "val_loss"), ("eval_f1", "eval_f1")]
)
def test_a_metric_has_its_prefix_taken_off_once(written: str, name: str) -> None:
    assert metric_name(written) == name


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(METRICS | st.sampled_from([NAN, INF]), min_size=2, max_size=30),
    patience=st.integers(1, 3),
    smoothing=st.integers(1, 3),
    cooldown=st.integers(0, 2),
    warmup=st.integers(0, 10),
    restarts=st.booleans(),
    data=st.data(),
)
def test_a_run_that_was_saved_and_restored_decides_and_goes_on_alike(
    values: list[float],
    patience: int,
    smoothing: int,
    cooldown: int,
    warmup: int,
    restarts: bool,
    data: st.DataObject,
) -> None:
    rule = RULE | {"patience": patience, "smoothing": smoothing, "cooldown": cooldown}
    schedule = config("plateau", plateau=rule | {"factor": 0.7}, warmup={"steps": warmup})
    if restarts:
        cycles = {"cycle_steps": 20, "cycle_mult": 2, "scale": 0.5, "ramp_steps": 2}
        schedule = config(
            "cosine_restarts", restarts=cycles | {"on_plateau": rule | {"max": 3}}, warmup={"steps": warmup}
        )
    curve = build_schedule(schedule, total_steps=100, batch_size=64)

    def run(saved_after: int | None) -> list[list[float]]:
        """The rates of each update; a validation after every third."""
        watching, scheduler = build_watch(schedule, batch_size=64), ScheduleLR(optimizer(), curve)
        assert watching is not None
        used = []
        for step in range(1, 3 * len(values) + 1):
            used.append(scheduler.get_last_lr())
            scheduler.step()
            event = watching.observe(step, values[step // 3 - 1]) if step % 3 == 0 else None
            if event is not None:
                scheduler.add(event)
            if step == saved_after:
                states = json.loads(json.dumps([watching.to_state(), scheduler.state_dict()], allow_nan=False))
                watching, scheduler = build_watch(schedule, batch_size=64), ScheduleLR(optimizer(), curve)
                assert watching is not None
                watching.load_state(states[0])
                scheduler.load_state_dict(states[1])
        return [*used, scheduler.get_last_lr(), [event.step for event in scheduler.events]]

    assert run(saved_after=data.draw(st.integers(1, 3 * len(values)))) == run(saved_after=None)
