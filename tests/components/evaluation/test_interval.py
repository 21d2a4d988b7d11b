"""The interval of a metric: exact where the metric counts, a bootstrap that is the same each time elsewhere."""

import math
from math import comb

import numpy as np
import pytest
from convergate.components.evaluation.interval import binomial_interval, mean_interval
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 1, 0.0, 0.975),
        (1, 1, 0.025, 1.0),
        (0, 10, 0.0, 0.308497),
        (1, 10, 0.002529, 0.445016),
        (5, 10, 0.187086, 0.812914),
        (8, 10, 0.443905, 0.974789),
        (10, 10, 0.691503, 1.0),
        (45, 50, 0.781864, 0.966725),
        (95, 100, 0.887165, 0.983568),
    ],
)
def test_clopper_and_pearsons_table(successes: int, trials: int, low: float, high: float) -> None:
    assert binomial_interval(successes, trials) == pytest.approx((low, high), abs=1e-6)


def at_least(successes: int, trials: int, rate: float) -> float:
    """The probability of as many successes or more."""
    return math.fsum(comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(successes, trials + 1))


@given(st.integers(1, 60).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_each_bound_leaves_a_tail_of_two_and_a_half_percent(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = binomial_interval(successes, trials)
    assert low <= successes / trials <= high
    if successes > 0:
        assert at_least(successes, trials, low) == pytest.approx(0.025, rel=1e-6)
    if successes < trials:
        assert 1 - at_least(successes + 1, trials, high) == pytest.approx(0.025, rel=1e-6)
    mirrored = binomial_interval(trials - successes, trials)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


def test_zeros_and_ones_get_the_exact_interval() -> None:
    assert mean_interval(np.array([1.0] * 8 + [0.0] * 2)) == binomial_interval(8, 10)
    assert mean_interval(np.zeros(10)) == binomial_interval(0, 10)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, 0.0, math.nan], [0.5, math.inf], [-math.inf]])
def test_what_is_not_finite_has_no_interval(values: list[float]) -> None:
    assert all(math.isnan(bound) for bound in mean_interval(np.array(values)))


def test_a_bootstrap_is_near_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(1).exponential(2.0, 2_000)
    half = 1.96 * values.std() / math.sqrt(values.size)
    low, high = mean_interval(values)
    assert (values.mean() - low, high - values.mean()) == pytest.approx((half, half), rel=0.1)


def test_a_bootstrap_is_the_same_each_time_and_disturbs_nobody() -> None:
    values = np.random.default_rng(1).normal(size=200)
    before = np.random.get_state()[1].tolist()
    assert mean_interval(values) == mean_interval(values.copy())
    assert np.random.get_state()[1].tolist() == before


@settings(max_examples=30)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=10))
def test_the_interval_lies_within_the_values(values: list[float]) -> None:
    found = np.array(values)
    low, high = mean_interval(found)
    if not np.isin(found, (0.0, 1.0)).all():
        assert found.min() - 1e-9 <= low <= high <= found.max() + 1e-9
