import math

import numpy as np
import pytest
from convergate.components.config import parse_config
from convergate.components.report import series
from convergate.components.schedule import build_schedule
from convergate.components.training.result import Event
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst


@given(npst.arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6)), st.integers(3, 60))
def test_thinning_keeps_ends_and_extremes(values, limit):
    steps = np.arange(len(values), dtype=np.float64)
    kept_steps, kept = series.thin(steps, values, limit)
    assert kept.max() == values.max()
    assert kept.min() == values.min()
    assert (kept_steps[0], kept_steps[-1]) == (0, len(values) - 1)
    assert len(kept) <= max(limit, 3) + 2
    assert (np.diff(kept_steps) > 0).all()
    assert (values[kept_steps.astype(int)] == kept).all()


def test_thinning_keeps_gaps_and_turns_infinity_into_one():
    values = np.ones(10_000)
    values[5_000] = np.inf
    steps, kept = series.thin(np.arange(10_000.0), values, 300)
    assert steps[np.isnan(kept)].tolist() == [5_000]


def test_smoothing_is_a_centred_median_with_gaps():
    values = np.array([1.0, 9.0, 1.0, math.nan, 2.0, 3.0, 4.0])
    smooth, window = series.smoothed(values)
    assert window == 3
    np.testing.assert_array_equal(smooth, [5.0, 1.0, 5.0, math.nan, 2.5, 3.0, 3.5])


def test_deviation(runs):
    trace = runs.make_trace(40)
    assert series.deviation(trace) is None
    trace.loc[(trace["rank"] == 1) & trace["step"].isin([10, 11]), "lr"] = [0.07, 0.056]
    found = series.deviation(trace)
    assert found is not None
    assert found.line == (
        "Off plan in 2 of 80 records (rank 1, steps 10 to 11); at worst rank 1 applied 0.07 instead of 0.05 at step 10"
    )


def test_rate_that_is_nan_is_off_plan(runs):
    trace = runs.make_trace(10)
    trace.loc[3, "lr"] = math.nan
    found = series.deviation(trace)
    assert found is not None
    assert (found.num_records, found.worst_step) == (1, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_records_become_marks(runs, value):
    trace = runs.make_trace(100)
    trace.loc[trace["step"].isin([20, 21, 60]), "loss"] = value
    resumed = runs.training(events=[Event(step=50, kind="resumed", detail="attempt 2")])
    found = series.marks(runs.passing(trace=trace, training=resumed))
    assert [(mark.number, mark.step, mark.kind, mark.bad) for mark in found] == [
        (1, 20, "non_finite_loss", True), (2, 50, "resumed", False), (3, 60, "non_finite_loss", True),
    ]  # fmt: skip
    assert found[0].detail.endswith("until step 21")


def test_event_is_not_told_twice(runs):
    marks = series.marks(runs.diverged())
    assert [mark.kind for mark in marks] == ["exploding_gradient", "non_finite_loss"]


def test_an_overflow_of_fp16_is_no_trouble(runs):
    trace = runs.make_trace(40, ranks=1)
    trace.loc[[5, 9], "grad_norm"] = np.inf
    trace.loc[[7], "loss"] = math.nan
    trace.loc[[5, 7], "applied"] = False
    assert series.non_finite_steps(trace).tolist() == [7, 9]


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("rolled_back", "trouble"), ("update_skipped", "trouble"), ("diverged", "trouble"), ("failed", "trouble"),
        ("lr_sync_error", "trouble"), ("lr_off_plan", "trouble"), ("exploding_gradient", "trouble"),
        ("checkpoint_damaged", "trouble"),
        ("restart", "new rates"), ("reduce", "new rates"),
        ("resumed", "run"), ("early_stopped", "run"), ("interrupted", "run"), ("budget", "run"),
        ("save_skipped", "run"),
    ],
)  # fmt: skip
def test_events_are_of_three_groups(kind, group):
    mark = series.Mark(1, 0, kind, "")
    assert (mark.group, mark.bad) == (group, group == "trouble")


def test_a_plan_that_events_changed_is_the_traces(runs):
    trace = runs.make_trace(100)
    schedule = build_schedule(parse_config(runs.CONFIG).schedule, total_steps=400, batch_size=64)
    assert series.follows(trace, schedule)
    trace.loc[trace["step"] >= 60, ["lr", "lr_planned"]] *= 0.5
    assert not series.follows(trace, schedule)
    steps, rates = series.planned(trace)
    assert steps.tolist() == list(range(100))
    assert rates.tolist() == [schedule.lr(step) * (0.5 if step >= 60 else 1) for step in range(100)]
