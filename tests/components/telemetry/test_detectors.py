"""Each detector fires at the step and by the rule it names, is quiet on healthy traces, and never raises."""

import math
import statistics

import pytest
from convergate.components.telemetry import Detection, StepRecord, detect
from convergate.components.telemetry.detectors import SMALLEST_NORM, ExplodingGradient, NonFinite, OffPlan, detectors
from hypothesis import given
from hypothesis import strategies as st


def record(
    step: int = 0,
    *,
    norm: float = 1.0,
    loss: float = 1.0,
    lr: float = 0.1,
    planned: float | None = None,
    applied: bool = True,
) -> StepRecord:
    return StepRecord(step, lr, lr if planned is None else planned, loss, norm, 0.01, 32, applied)


def norms(*values: float) -> list[StepRecord]:
    return [record(step, norm=norm) for step, norm in enumerate(values)]


def fired(rule: ExplodingGradient, *values: float) -> list[int]:
    """The steps at which the rule fires on these gradient norms."""
    return [found.step for found in map(rule.observe, norms(*values)) if found is not None]


@pytest.mark.parametrize(
    ("loss", "norm", "detail"),
    [
        (math.nan, 1.0, "loss nan, gradient norm 1.0 at lr 0.1"),
        (math.inf, 1.0, "loss inf, gradient norm 1.0 at lr 0.1"),
        (-math.inf, math.nan, "loss -inf, gradient norm nan at lr 0.1"),
        (0.5, math.inf, "loss 0.5, gradient norm inf at lr 0.1"),
    ],
)
def test_what_is_not_finite_has_diverged(loss: float, norm: float, detail: str) -> None:
    assert NonFinite().observe(record(7, loss=loss, norm=norm)) == Detection(7, "non_finite_loss", detail)
    assert NonFinite().observe(record(7, loss=-1e308, norm=1e308)) is None


def test_an_overflow_of_fp16_is_no_anomaly() -> None:
    """Its update is skipped, and its loss finite; a loss that is not finite is one, skipped or not."""
    overflow = record(7, norm=math.inf, applied=False)
    assert [rule.observe(overflow) for rule in detectors()] == [None, None, None]
    assert NonFinite().observe(record(7, norm=math.inf)) is not None
    assert NonFinite().observe(record(7, loss=math.nan, applied=False)) is not None


def test_a_gradient_explodes_beyond_a_hundred_times_its_median() -> None:
    quiet = [1.0, 3.0, 2.0] * 4
    assert fired(ExplodingGradient(), *quiet, 200.0) == []
    assert fired(ExplodingGradient(), *quiet, 200.0 * (1 + 1e-12)) == [12]
    rule = ExplodingGradient()
    found = [rule.observe(one) for one in norms(*quiet, 1000.0)][-1]
    assert found == Detection(12, "exploding_gradient", "gradient norm 1e+03, 500 × its median")


def test_it_waits_until_it_has_seen_enough() -> None:
    assert fired(ExplodingGradient(warmup=10), *[1.0] * 9, 1e6) == []
    assert fired(ExplodingGradient(warmup=10), *[1.0] * 10, 1e6) == [10]


def test_the_median_is_that_of_the_window() -> None:
    """After a window of larger norms, what was an explosion is usual; one outlier moves nothing."""
    rule = ExplodingGradient(factor=10, window=5, warmup=3)
    assert fired(rule, 1.0, 1.0, 1.0, 50.0, 1.0, 50.0, 50.0, 50.0, 50.0, 50.0) == [3, 5, 6]


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf]) | st.floats(0, 1e6), max_size=80),
    st.integers(1, 12),
)
def test_the_median_is_that_of_a_sort(norms_seen: list[float], window: int) -> None:
    expected, finite = [], []
    for step, norm in enumerate(norms_seen):
        last = finite[-window:]
        if len(last) >= 3 and math.isfinite(norm) and norm > 5 * max(statistics.median_high(last), SMALLEST_NORM):
            expected.append(step)
        finite += [norm] if math.isfinite(norm) else []
    assert fired(ExplodingGradient(factor=5, window=window, warmup=3), *norms_seen) == expected


def test_norms_that_are_not_finite_are_left_to_the_other_rule() -> None:
    rule = ExplodingGradient(warmup=3)
    assert fired(rule, 1.0, math.nan, math.inf, 1.0, math.nan, 1.0, math.inf, 101.0) == [7]


def test_gradients_of_zero_have_a_smallest_median() -> None:
    assert fired(ExplodingGradient(), *[0.0] * 20) == []
    assert fired(ExplodingGradient(), *[0.0] * 10, 99 * SMALLEST_NORM) == []
    assert fired(ExplodingGradient(), *[0.0] * 10, 1e-3) == [10]


@pytest.mark.parametrize("planned", [0.1 * (1 + 1e-15), 0.0, math.nan])
def test_a_rate_that_is_not_the_planned_one_bit_for_bit(planned: float) -> None:
    found = OffPlan().observe(record(3, planned=planned))
    assert found == Detection(3, "lr_off_plan", f"applied 0.1, planned {planned!r}")
    assert OffPlan().observe(record(3)) is None


def test_the_first_of_each_kind_is_kept_in_the_order_of_steps() -> None:
    trace = [
        *norms(*[1.0] * 20),
        record(20, planned=0.2),
        record(21, norm=500.0),
        record(22, loss=math.nan, planned=0.3),
        record(23, loss=math.nan, norm=900.0),
    ]
    assert [(found.kind, found.step) for found in detect(trace)] == [
        ("lr_off_plan", 20),
        ("exploding_gradient", 21),
        ("non_finite_loss", 22),
    ]


def test_an_empty_trace_and_a_healthy_one_are_quiet() -> None:
    assert detect([]) == []
    assert detect([record()]) == []
    assert detect(norms(*(math.exp(-step / 100) for step in range(1000)))) == []


numbers = st.floats() | st.sampled_from([0.0, math.nan, math.inf, -math.inf])


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=30))
def test_online_and_over_a_finished_trace_they_are_the_same_and_never_raise(
    rows: list[tuple[float, float, float, float]],
) -> None:
    trace = [StepRecord(step, lr, planned, loss, norm, 0.01, 32) for step, (lr, planned, loss, norm) in enumerate(rows)]
    rules, online = detectors(), {}
    for one in trace:
        for rule in rules:
            found = rule.observe(one)
            if found is not None:
                assert found.step == one.step
                online.setdefault(found.kind, found)
    assert detect(trace) == list(online.values())
    bad = [one.step for one in trace if not (math.isfinite(one.loss) and math.isfinite(one.grad_norm))]
    assert [found.step for found in detect(trace) if found.kind == "non_finite_loss"] == bad[:1]
