"""The schedule's section: what it refuses, where and why; and its short form for a canary."""

import math
from typing import Any

import pytest
from convergate.components.schedule import ScheduleConfig, build_schedule
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

BASE: dict[str, Any] = {"lr0": 0.1, "total_steps": 400}
PLATEAU: dict[str, Any] = {"metric": "val_loss", "patience": 3}
RESTARTS: dict[str, Any] = BASE | {"kind": "cosine_restarts", "restarts": {"cycle_steps": 100}}


def schedule(fields: dict[str, Any]) -> ScheduleConfig:
    return ScheduleConfig.model_validate(fields)


def found(fields: dict[str, Any]) -> dict[str, str]:
    """Path to message of everything that is wrong."""
    with pytest.raises(ValidationError) as caught:
        schedule(fields)
    return {
        ".".join(map(str, item["loc"])): item["msg"].removeprefix("Value error, ") for item in caught.value.errors()
    }


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"lr0": 0}, "lr0", "greater than 0"),
        ({"lr0": -0.1}, "lr0", "greater than 0"),
        ({"lr0": float("nan")}, "lr0", "finite"),
        ({"lr0": float("inf")}, "lr0", "finite"),
        ({"lr0": 10**400}, "lr0", "valid number"),
        ({"lr0": True}, "lr0", "valid number"),
        ({"lr0": "0.1"}, "lr0", "valid number"),
        ({"lr0": None}, "lr0", "valid number"),
        ({"lr_min": -1e-9}, "lr_min", "greater than or equal to 0"),
        ({"lr_min": 0.2}, "lr_min", "is above lr0 = 0.1 → at most 0.1; lr0/100, 0.001, is usual"),
        ({"total_steps": 0}, "total_steps", "greater than or equal to 1"),
        ({"total_steps": 10.0}, "total_steps", "valid integer"),
        ({"total_steps": True}, "total_steps", "valid integer"),
        ({"total_steps": 2**53}, "total_steps", "less than or equal to 9007199254740991"),
        ({"total_steps": None}, "total_steps", "the run has no length → give total_steps or total_epochs"),
        (
            {"total_epochs": 3},
            "total_steps",
            "the run has two lengths: total_epochs is 3 → leave one out; it is derived",
        ),
        (
            {"warmup": {"steps": 500}},
            "warmup.steps",
            "not shorter than the run: total_steps is 400 → at most 399; 5 % of the run, 20, is usual",
        ),
        ({"warmup": {"steps": 400}}, "warmup.steps", "not shorter than the run: total_steps is 400"),
        ({"warmup": {"steps": 1}, "total_steps": 1}, "warmup.steps", "total_steps is 1 → at most 0"),
        ({"warmup": {"steps": -1}}, "warmup.steps", "greater than or equal to 0"),
        ({"warmup": {"start_lr": -1}}, "warmup.start_lr", "greater than or equal to 0"),
        ({"warmup": None}, "warmup", "valid dictionary"),
        ({"kind": "cosin"}, "kind", "Input should be 'cosine', 'cosine_restarts'"),
        ({"kind": "cosine_restarts"}, "restarts", "needs its cycles → restarts: {cycle_steps: …}"),
        (
            {"kind": "exponential"},
            "lr_min",
            "an exponential never reaches 0 → a rate above it; lr0/100, 0.001, is usual",
        ),
        ({"kind": "step"}, "step", "kind step needs its drops → step: {every_steps: …}"),
        ({"step": {"every_steps": 10}}, "step", "has no effect under kind cosine → kind: step"),
        ({"kind": "step", "step": {"every_steps": 0}}, "step.every_steps", "greater than or equal to 1"),
        ({"kind": "step", "step": {"every_steps": 9, "factor": 1}}, "step.factor", "less than 1"),
        ({"kind": "step", "step": {"every_steps": 9, "factor": 0}}, "step.factor", "greater than 0"),
        ({"kind": "step", "step": {"factor": 0.5}}, "step.every_steps", "Field required"),
        ({"restarts": {"cycle_steps": 10}}, "restarts", "has no effect under kind cosine → kind: cosine_restarts"),
        ({"kind": "plateau"}, "plateau", "needs its metric → plateau: {metric: val_loss, patience: …}"),
        ({"plateau": PLATEAU}, "plateau", "has no effect under kind cosine → kind: plateau"),
        ({"kind": "plateau", "plateau": {"metric": "val_loss"}}, "plateau.patience", "Field required"),
        ({"kind": "plateau", "plateau": PLATEAU | {"patience": 0}}, "plateau.patience", "greater than or equal to 1"),
        ({"kind": "plateau", "plateau": PLATEAU | {"metric": ""}}, "plateau.metric", "at least 1 character"),
        ({"kind": "plateau", "plateau": PLATEAU | {"mode": "low"}}, "plateau.mode", "'min' or 'max'"),
        ({"kind": "plateau", "plateau": PLATEAU | {"smoothing": 0}}, "plateau.smoothing", "greater than or equal to 1"),
        ({"kind": "plateau", "plateau": PLATEAU | {"cooldown": -1}}, "plateau.cooldown", "greater than or equal to 0"),
        ({"kind": "plateau", "plateau": PLATEAU | {"threshold": math.inf}}, "plateau.threshold", "finite"),
        ({"kind": "plateau", "plateau": PLATEAU | {"factor": 1.0}}, "plateau.factor", "less than 1"),
        ({"kind": "plateau", "plateau": PLATEAU | {"max": 2}}, "plateau.max", "Extra inputs"),
        ({"clip": {"floor": 0.2, "ceiling": 0.1}}, "clip.ceiling", "is below floor = 0.2 → at least 0.2"),
        ({"clip": {"ceiling": 0}}, "clip.ceiling", "greater than 0"),
        ({"momentum": {"start": 1.0}}, "momentum.start", "less than 1"),
        ({"momentum": {"cycle": 1}}, "momentum.cycle", "valid boolean"),
        (
            {"momentum": {"cycle": True, "warmup_steps": 5}},
            "momentum.cycle",
            "moves the momentum from step 0 on, and so does warmup_steps = 5 → leave one out",
        ),
        (
            {"momentum": {"warmup_steps": 400}},
            "momentum.warmup_steps",
            "not shorter than the run: total_steps is 400 → at most 399; 5 % of the run, 20, is usual",
        ),
        ({"scale_with_batch": {"base_batch_size": 0}}, "scale_with_batch.base_batch_size", "greater than or equal"),
        ({"warm_up": {}}, "warm_up", "Extra inputs"),
    ],
)
def test_a_wrong_value_is_refused_under_its_own_path(fields: dict[str, Any], path: str, message: str) -> None:
    problems = found(BASE | fields)
    assert problems.keys() == {path}
    assert message in problems[path]


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"cycle_steps": 10, "ramp_steps": 10}, "ramp_steps", "fills the cycle of 10 steps → at most 9"),
        ({"cycle_steps": 0}, "cycle_steps", "greater than or equal to 1"),
        ({"cycle_steps": 10, "cycle_mult": 1.5}, "cycle_mult", "valid integer"),
        ({"cycle_steps": 10, "cycle_mult": 0}, "cycle_mult", "greater than or equal to 1"),
        ({"cycle_steps": 10, "scale": 0}, "scale", "greater than 0"),
        ({"cycle_steps": 10, "scale": 1.01}, "scale", "less than or equal to 1"),
        ({"cycle_mult": 2}, "cycle_steps", "Field required"),
        ({"cycle_steps": 9, "on_plateau": PLATEAU}, "on_plateau.max", "Field required"),
        ({"cycle_steps": 9, "on_plateau": PLATEAU | {"max": 0}}, "on_plateau.max", "greater than or equal to 1"),
    ],
)
def test_wrong_restarts_are_refused_under_their_own_path(fields: dict[str, Any], path: str, message: str) -> None:
    problems = found(RESTARTS | {"restarts": fields})
    assert problems.keys() == {f"restarts.{path}"}
    assert message in problems[f"restarts.{path}"]


def test_everything_wrong_is_found_at_once() -> None:
    wrong = {
        "lr0": 0.1,
        "lr_min": 0.5,
        "total_steps": 400,
        "warmup": {"steps": 500},
        "restarts": {"cycle_steps": 10},
        "clip": {"floor": 1, "ceiling": 0.5},
        "scale_with_batch": {"base_batch_size": "256"},
        "lrmin": 0,
    }
    assert found(wrong).keys() == {
        "lr_min",
        "warmup.steps",
        "restarts",
        "clip.ceiling",
        "scale_with_batch.base_batch_size",
        "lrmin",
    }


def test_a_wrong_value_raises_no_second_problem_about_what_depends_on_it() -> None:
    assert found({"lr0": -1, "lr_min": 0.5, "total_steps": "400", "warmup": {"steps": 500}}).keys() == {
        "lr0",
        "total_steps",
    }
    assert found({"lr0": -1, "kind": "cosin", "total_steps": 400, "step": {"every_steps": 5}}).keys() == {"lr0", "kind"}
    assert found({"lr0": -1, "kind": "exponential", "total_steps": 400})["lr_min"].endswith("→ a rate above it")


def test_a_section_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        schedule(BASE).lr0 = 1.0  # type: ignore[misc]


def test_compressed_by_hand() -> None:
    whole = schedule(
        RESTARTS
        | {
            "warmup": {"steps": 20, "start_lr": 0.01},
            "restarts": {
                "cycle_steps": 100,
                "cycle_mult": 2,
                "scale": 0.8,
                "ramp_steps": 5,
                "on_plateau": PLATEAU | {"max": 2, "cooldown": 1},
            },
            "lr_min": 0.001,
            "clip": {"ceiling": 0.05},
            "momentum": {"warmup_steps": 30, "start": 0.5},
        }
    )
    short = whole.compressed(40)
    assert (short.total_steps, short.warmup.steps) == (40, 2)
    assert short.restarts is not None
    assert (short.restarts.cycle_steps, short.restarts.ramp_steps) == (10, 1)
    changed = {"total_steps", "total_epochs", "warmup", "restarts", "momentum"}
    assert short.model_dump(exclude=changed) == whole.model_dump(exclude=changed)
    assert (short.warmup.start_lr, short.restarts.cycle_mult, short.restarts.scale) == (0.01, 2, 0.8)
    assert whole.restarts is not None
    assert short.restarts.on_plateau == whole.restarts.on_plateau
    assert (short.momentum.warmup_steps, short.momentum.start) == (3, 0.5)


@pytest.mark.parametrize(
    ("total", "warmup", "cycle", "short", "expected"),
    [
        (400, 0, 390, 20, (0, 19)),  # 19.5 would round to the end
        (400, 390, 5, 20, (17, 2)),  # warmup makes room for a cycle and a restart
        (420, 50, 370, 21, (2, 19)),  # 2.5 and 18.5, both rounded down, would leave room for a restart
        (400, 20, 1, 400, (20, 1)),
        (400, 20, 1, 40, (2, 1)),
        (400, 200, 100, 2, (1, 1)),
        (400, 200, 100, 1, (0, 1)),
    ],
)
def test_it_restarts_where_the_whole_schedule_does(
    total: int, warmup: int, cycle: int, short: int, expected: tuple[int, int]
) -> None:
    lengths = {"total_steps": total, "warmup": {"steps": warmup}, "restarts": {"cycle_steps": cycle}}
    compressed = schedule(RESTARTS | lengths).compressed(short)
    assert compressed.restarts is not None
    assert (compressed.warmup.steps, compressed.restarts.cycle_steps) == expected


@pytest.mark.parametrize(
    ("total", "warmup", "every", "short", "expected"),
    [
        (400, 20, 100, 40, (2, 10)),
        (400, 0, 399, 20, (0, 19)),  # one step after its only drop; 20 would round it away
        (400, 20, 380, 40, (2, 38)),  # none in the whole schedule, none in the short one
        (400, 20, 1000, 40, (2, 100)),
        (400, 390, 5, 20, (18, 1)),  # warmup makes room for a drop
        (400, 20, 1, 400, (20, 1)),
        (400, 200, 100, 2, (1, 1)),
    ],
)
def test_it_drops_where_the_whole_schedule_does(
    total: int, warmup: int, every: int, short: int, expected: tuple[int, int]
) -> None:
    whole = BASE | {"kind": "step", "total_steps": total, "warmup": {"steps": warmup}}
    compressed = schedule(whole | {"step": {"every_steps": every, "factor": 0.5}}).compressed(short)
    assert compressed.step is not None
    assert (compressed.warmup.steps, compressed.step.every_steps) == expected
    assert compressed.step.factor == 0.5


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleConfig:
    total = draw(st.integers(2, 10_000))
    kind = draw(st.sampled_from(["cosine", "exponential", "one_cycle", "plateau", "step", "cosine_restarts"]))
    fields = {"kind": kind, "lr0": 0.1, "lr_min": 0.01, "total_steps": total}
    fields |= {"warmup": {"steps": draw(st.integers(0, total - 1))}}
    if draw(st.booleans()):
        fields |= {"momentum": {"warmup_steps": draw(st.integers(0, total - 1))}}
    if kind == "plateau":
        fields |= {"plateau": PLATEAU}
    if kind == "step":
        fields |= {"step": {"every_steps": draw(st.integers(1, total + 10)), "factor": 0.5}}
    if kind == "cosine_restarts":
        cycle = draw(st.integers(1, total + 10))
        restarts = {"cycle_steps": cycle, "ramp_steps": draw(st.integers(0, cycle - 1))}
        fields |= {"restarts": restarts | {"cycle_mult": draw(st.integers(1, 3))}}
    return schedule(fields)


def turns(config: ScheduleConfig) -> bool:
    """Whether the run reaches a restart or a drop."""
    assert config.total_steps is not None
    period = config.restarts.cycle_steps if config.restarts else config.step.every_steps if config.step else math.inf
    return config.warmup.steps + period < config.total_steps


@settings(max_examples=500)
@given(whole=schedules(), data=st.data())
def test_a_compressed_schedule_fits_and_no_part_disappears(whole: ScheduleConfig, data: st.DataObject) -> None:
    assert whole.total_steps is not None
    total = data.draw(st.integers(1, whole.total_steps))
    short = whole.compressed(total)
    assert ScheduleConfig.model_validate(short.model_dump()) == short
    curve = build_schedule(short, total_steps=total, batch_size=1)
    assert curve.lr(short.warmup.steps) == whole.lr0
    assume(total >= 4)  # a step of warmup, a cycle with a ramp, and a step of the next cycle
    assert bool(short.warmup.steps) == bool(whole.warmup.steps)
    assert bool(short.momentum.warmup_steps) == bool(whole.momentum.warmup_steps)
    assert turns(short) == turns(whole)
    if whole.restarts and turns(whole):
        assert short.restarts is not None
        assert bool(short.restarts.ramp_steps) == bool(whole.restarts.ramp_steps)


@given(whole=schedules())
def test_compressing_to_its_own_length_changes_nothing(whole: ScheduleConfig) -> None:
    assert whole.total_steps is not None
    assert whole.compressed(whole.total_steps) == whole


@given(cycle=st.integers(1, 200), warmup=st.integers(0, 200), total=st.integers(1, 100))
def test_a_schedule_in_epochs_keeps_its_steps_where_they_fit(cycle: int, warmup: int, total: int) -> None:
    restarts = {"kind": "cosine_restarts", "restarts": {"cycle_steps": cycle}}
    whole = schedule({"lr0": 0.1, "total_epochs": 3, "warmup": {"steps": warmup}} | restarts)
    short = whole.compressed(total)
    assert (short.total_steps, short.total_epochs) == (total, None)
    assert short.warmup.steps == min(warmup, total - 1)
    assert short.restarts is not None
    assert short.restarts.cycle_steps == cycle or warmup + cycle > total
    build_schedule(short, total_steps=total, batch_size=1)
