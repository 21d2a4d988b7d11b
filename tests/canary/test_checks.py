"""Each check of the canary: its exact figure, where it turns, and that no trace makes it raise."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from convergate.canary import checks
from convergate.components.config import Check
from convergate.components.telemetry import StepRecord
from hypothesis import given, settings
from hypothesis import strategies as st

NAN, INF = math.nan, math.inf
COLUMNS = ["attempt", "rank", *StepRecord._fields]


def trace(
    losses: list[float], norms: list[float] | None = None, num_ranks: int = 2, attempt: int = 1, first_step: int = 0
) -> pd.DataFrame:
    """What `read_trace` gives of a run with these losses and gradient norms on each rank, on plan."""
    norms = norms or [1.0] * len(losses)
    rows = [
        (attempt, rank, first_step + step, 0.1, 0.1, loss, norm, 0.01, 32, True)
        for rank in range(num_ranks)
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def changed(frame: pd.DataFrame, rank: int, step: int, **values: float | bool) -> pd.DataFrame:
    """With other values in one record."""
    frame = frame.copy()
    for name, value in values.items():
        frame.loc[(frame["rank"] == rank) & (frame["step"] == step), name] = value
    return frame


def told(check: Check) -> tuple[str, str, str]:
    assert bool(check.reason) == (check.verdict != "PASS")
    return check.verdict, check.figure, check.reason


FALLING = [2.0, 1.8, 1.5, 1.2, 1.0, 0.9, 0.8, 0.7]


@pytest.mark.parametrize(
    ("frame", "figure", "step"),
    [
        (trace(FALLING), "0 of 16 records not finite", None),
        (changed(trace(FALLING), 1, 5, loss=NAN), "1 of 16 records not finite", 5),
        (changed(changed(trace(FALLING), 0, 6, loss=INF), 1, 4, grad_norm=-INF), "2 of 16 records not finite", 4),
        (trace([NAN] * 8, [NAN] * 8), "16 of 16 records not finite", 0),
        (trace([NAN], num_ranks=1), "1 of 1 records not finite", 0),
        (changed(trace(FALLING), 1, 5, grad_norm=INF, applied=False), "0 of 16 records not finite", None),
        (changed(trace(FALLING), 1, 5, loss=NAN, applied=False), "1 of 16 records not finite", 5),
    ],
)
def test_finite(frame: pd.DataFrame, figure: str, step: int | None) -> None:
    where = f"at step {step} under lr 0.1"
    reason = f"loss or gradient is not finite {where}: the learning rate is too high, or the data is broken"
    found = checks.finite(frame, "first steps")
    assert told(found) == (("PASS", figure, "") if step is None else ("FAIL", figure, reason))
    assert (found.name, found.threshold) == ("finite, first steps", "0")


@pytest.mark.parametrize(
    ("losses", "verdict", "figure"),
    [
        (FALLING, "PASS", "1.9 → 0.75"),
        ([1.0] * 8, "PASS", "1 → 1"),
        ([2.0, 2.0, 9.0, 9.0, 9.0, 9.0, 2.2, 2.2], "PASS", "2 → 2.2"),
        ([2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.3, 2.3], "FAIL", "2 → 2.3"),
        ([-1.0, -1.0, -1.0, -1.0], "PASS", "-1 → -1"),
        ([-1.0, -1.1, -1.2, -2.0], "PASS", "-1 → -2"),
        ([-1.0, -1.0, -1.0, -0.95], "PASS", "-1 → -0.95"),
        ([-1.0, -1.0, -1.0, -0.85], "FAIL", "-1 → -0.85"),
        ([0.0, 0.0, 0.0, 0.0], "PASS", "0 → 0"),
        ([0.0, 0.0, 0.0, 0.1], "FAIL", "0 → 0.1"),
        ([1.0, 1.0, 1.0, NAN], "FAIL", "1 → nan"),
        ([NAN, 1.0, 1.0, 1.0], "FAIL", "nan → 1"),
        ([1.0, 1.0, 1.0, INF], "FAIL", "1 → inf"),
        ([INF, 1.0, 1.0, 1.0], "PASS", "inf → 1"),
        ([5.0], "PASS", "5 → 5"),
        ([5.0, 6.0], "FAIL", "5 → 6"),
    ],
)
def test_falling_loss(losses: list[float], verdict: str, figure: str) -> None:
    first, last = figure.split(" → ")
    reason = f"the loss rises from {first} to {last} over {len(losses)} steps: the learning rate is too high"
    found = checks.falling_loss(trace(losses))
    assert told(found) == (verdict, figure, "" if verdict == "PASS" else reason)
    assert found.threshold == "rise ≤ 10% of the first quarter's"


@pytest.mark.parametrize(
    ("losses", "start", "verdict", "threshold"),
    [
        ([0.01, 0.02, 0.03, 1.0], 2.0, "PASS", "≤ 1.005, half of the way to 2, untrained"),
        ([0.01, 0.02, 0.03, 1.01], 2.0, "FAIL", "≤ 1.005, half of the way to 2, untrained"),
        ([-3.0, -3.0, -3.0, -2.0], -1.0, "PASS", "≤ -2, half of the way to -1, untrained"),
        ([1.0, 1.0, 1.0, 1.1], 1.0, "PASS", "≤ 1.1, half of the way to 1, untrained"),
        ([2.0, 2.0, 2.0, 2.3], 1.0, "FAIL", "≤ 2.2, half of the way to 1, untrained"),
        ([0.5, 0.5, 0.5, 0.5], NAN, "PASS", "≤ 0.55, half of the way to nan, untrained"),
        ([0.5, 0.5, 0.5, INF], 2.0, "FAIL", "≤ 1.25, half of the way to 2, untrained"),
    ],
)
def test_weights_that_are_trained_may_rise_half_of_the_way_back(
    losses: list[float], start: float, verdict: str, threshold: str
) -> None:
    found = checks.falling_loss(trace(losses), trace([start]))
    assert (found.verdict, found.threshold) == (verdict, threshold)


@pytest.mark.parametrize(
    ("norms", "start", "verdict"),
    [
        ([0.01, 0.01, 3.0, 2.0], 2.0, "PASS"),
        ([0.01, 0.01, 201.0, 2.0], 2.0, "FAIL"),
        ([5.0, 5.0, 500.0, 5.0], 2.0, "PASS"),
        ([0.01, 0.01, NAN, 2.0], 2.0, "FAIL"),
        ([0.01, 0.01, 2.0, 2.0], NAN, "FAIL"),
    ],
)
def test_their_gradients_are_held_to_an_untrained_models(norms: list[float], start: float, verdict: str) -> None:
    found = checks.bounded_gradient(trace([1.0] * len(norms), norms), trace([1.0], [start]))
    assert (found.verdict, found.threshold) == (verdict, "≤ 100 × an untrained model's")


def test_one_bad_batch_is_no_rising_loss() -> None:
    """Medians of quarters, over the mean of the ranks."""
    losses = [2.0, 90.0, 2.0, 2.0, *[1.5] * 8, 1.0, 1.0, 90.0, 1.0]
    frame = trace(losses)
    frame.loc[frame["rank"] == 1, "loss"] += 1.0
    assert told(checks.falling_loss(frame))[:2] == ("PASS", "2.5 → 1.5")


@pytest.mark.parametrize(
    ("norms", "verdict", "figure"),
    [
        ([1.0, 2.0, 3.0, 4.0], "PASS", "largest 4, at first 1"),
        ([1.0, 1.0, 100.0, 1.0], "PASS", "largest 100, at first 1"),
        ([1.0, 1.0, 101.0, 1.0], "FAIL", "largest 101, at first 1"),
        ([1.0, 1.0, INF, 1.0], "FAIL", "largest inf, at first 1"),
        ([1.0, 1.0, NAN, 1.0], "FAIL", "largest nan, at first 1"),
        ([NAN, 1.0, 1.0, 1.0], "FAIL", "largest nan, at first nan"),
        ([0.0, 0.0, 0.0, 0.0], "PASS", "largest 0, at first 0"),
        ([3.0], "PASS", "largest 3, at first 3"),
    ],
)
def test_bounded_gradient(norms: list[float], verdict: str, figure: str) -> None:
    found = checks.bounded_gradient(trace([1.0] * len(norms), norms))
    assert told(found)[:2] == (verdict, figure)
    assert found.threshold == "≤ 100 × the first quarter's median"
    assert ("gradients explode → lower lr0, or clip" in found.reason) == (verdict == "FAIL")


@pytest.mark.parametrize(("changes", "verdict"), [({"applied": False}, "PASS"), ({"applied": True}, "FAIL")])
def test_an_overflow_that_was_skipped_is_no_gradient(changes: dict[str, bool], verdict: str) -> None:
    frame = changed(trace([1.0] * 4, num_ranks=1), 0, 1, grad_norm=INF, **changes)
    assert checks.bounded_gradient(frame).verdict == verdict


def test_on_plan() -> None:
    good = trace(FALLING)
    assert told(checks.on_plan(good, "first steps")) == ("PASS", "0 of 16 off", "")
    off = changed(changed(good, 1, 5, lr=0.1 + 1e-16), 0, 6, lr=NAN)
    planned, applied = 0.1, 0.1 + 1e-16
    assert told(checks.on_plan(off, "x")) == (
        "FAIL",
        "2 of 16 off",
        f"rank 1 step 5: {applied!r} instead of {planned!r}",
    )
    assert told(checks.on_plan(changed(good, 0, 0, lr=NAN), "x"))[2] == "rank 0 step 0: nan instead of 0.1"


@pytest.mark.parametrize(
    ("frame", "world_size", "figure"),
    [
        (trace(FALLING), 2, "2 ranks, 0 steps differ"),
        (trace(FALLING, num_ranks=1), 1, "1 ranks, 0 steps differ"),
        (trace([1.0]), 2, "2 ranks, 0 steps differ"),
        (changed(trace(FALLING), 1, 5, loss=7.0), 2, "2 ranks, 0 steps differ"),
        (trace([NAN], [NAN]), 2, "2 ranks, 0 steps differ"),
    ],
    ids=["two", "one", "one-step", "own-losses", "nan-on-both"],
)
def test_ranks_that_agree(frame: pd.DataFrame, world_size: int, figure: str) -> None:
    assert told(checks.ranks_agree(frame, world_size)) == ("PASS", figure, "")


@pytest.mark.parametrize(
    ("frame", "world_size", "figure"),
    [
        (changed(trace(FALLING), 1, 5, lr=0.1 + 1e-16), 2, "2 ranks, 1 steps differ"),
        (changed(trace(FALLING), 0, 2, grad_norm=1 + 1e-15), 2, "2 ranks, 1 steps differ"),
        (changed(trace(FALLING), 0, 2, grad_norm=NAN), 2, "2 ranks, 1 steps differ"),
        (trace(FALLING)[:-2], 2, "2 ranks, 2 steps differ"),
        (trace(FALLING, num_ranks=1), 2, "1 ranks, 8 steps differ"),
        (trace(FALLING, num_ranks=3), 2, "3 ranks, 8 steps differ"),
    ],
    ids=["rate", "norm", "nan-on-one", "cut-short", "missing", "too-many"],
)
def test_ranks_that_differ(frame: pd.DataFrame, world_size: int, figure: str) -> None:
    verdict, found, reason = told(checks.ranks_agree(frame, world_size))
    assert (verdict, found) == ("FAIL", figure)
    assert reason.startswith(f"{figure.split()[2]} of 8 steps differ between ranks")


def test_whole_schedule() -> None:
    assert told(checks.whole_schedule(trace([1.0] * 40), 40)) == ("PASS", "40 steps", "")
    short = told(checks.whole_schedule(trace([1.0] * 39), 40))
    assert short == ("FAIL", "39 steps", "the compressed schedule ended after 39 of 40 steps")


def test_restored_when_every_repeated_step_is_the_same_bit_for_bit() -> None:
    first, again = trace(FALLING[:7]), trace(FALLING[4:], attempt=2, first_step=4)
    assert told(checks.restored(first, again, 4, 7)) == ("PASS", "6 of 6 repeated steps equal", "")


AGAIN = trace(FALLING[4:], attempt=2, first_step=4)


@pytest.mark.parametrize(
    ("again", "figure"),
    [
        (changed(AGAIN, 1, 5, loss=FALLING[5] * (1 + 2**-52)), "5 of 6 repeated steps equal"),
        (changed(AGAIN, 0, 6, grad_norm=NAN), "5 of 6 repeated steps equal"),
        (changed(AGAIN, 0, 4, lr=0.2), "5 of 6 repeated steps equal"),
        (AGAIN[AGAIN["step"] > 4], "4 of 6 repeated steps equal"),
        (AGAIN[AGAIN["rank"] == 0], "3 of 6 repeated steps equal"),
        (AGAIN[:0], "0 of 6 repeated steps equal"),
    ],
    ids=["loss", "norm", "rate", "a-step-lost", "a-rank-lost", "nothing"],
)
def test_not_restored_when_one_differs_or_is_missing(again: pd.DataFrame, figure: str) -> None:
    reason = "after the restore at step 4 the run is another one: a resume forgets state"
    assert told(checks.restored(trace(FALLING[:7]), again, 4, 7)) == ("FAIL", figure, reason)


def test_not_restored_when_the_workers_were_not_started_again() -> None:
    reason = "the workers were not started again after the kill"
    assert told(checks.restored(trace(FALLING), trace([]), None, 7)) == ("FAIL", "not resumed", reason)


@pytest.mark.parametrize(
    ("hours", "verdict", "figure"),
    [(0.0, "PASS", "0 GPU-h"), (2.0, "PASS", "2 GPU-h"), (2.001, "FAIL", "2 GPU-h"), (NAN, "FAIL", "nan GPU-h")],
)
def test_within_budget(hours: float, verdict: str, figure: str) -> None:
    found = checks.within_budget(hours, 2.0)
    assert told(found)[:2] == (verdict, figure)
    assert found.threshold == "≤ 2 GPU-h (budget.max_gpu_hours)"


ALL: dict[str, Callable[[pd.DataFrame], Check]] = {
    "finite": lambda frame: checks.finite(frame, "x"),
    "falling": checks.falling_loss,
    "bounded": checks.bounded_gradient,
    "on plan": lambda frame: checks.on_plan(frame, "x"),
    "ranks": lambda frame: checks.ranks_agree(frame, 2),
    "whole": lambda frame: checks.whole_schedule(frame, 40),
    "restored": lambda frame: checks.restored(frame, frame, 0, 3),
}


@pytest.mark.parametrize("check", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("frame", [trace([]), pd.DataFrame(columns=COLUMNS)], ids=["typed", "untyped"])
def test_an_empty_trace_proves_nothing(check: Callable[[pd.DataFrame], Check], frame: pd.DataFrame) -> None:
    assert told(check(frame))[0] == "FAIL"


numbers: Any = st.floats() | st.sampled_from([NAN, INF, -INF, 0.0])
records = st.tuples(
    *(st.just(1), st.integers(0, 2), st.integers(0, 4)),
    *(numbers, numbers, numbers, numbers, st.just(0.1), st.just(8), st.booleans()),
)


@settings(deadline=None)
@given(st.lists(records, max_size=12, unique_by=lambda one: one[1:3]))
def test_no_trace_makes_a_check_raise(rows: list[tuple[Any, ...]]) -> None:
    frame = pd.DataFrame(rows, columns=COLUMNS)
    found = [check(frame) for check in ALL.values()]
    assert {check.verdict for check in found} <= {"PASS", "FAIL"}
    whole = all(math.isfinite(row[5]) and (math.isfinite(row[6]) or not row[9]) for row in rows)
    assert (found[0].verdict == "PASS") == (whole and len(rows) > 0)
