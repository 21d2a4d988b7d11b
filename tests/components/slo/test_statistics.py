"""The statistics against their published tables, an independent computation, and their properties."""

import math

import mpmath
import pytest
from convergate.components.slo.statistics import (
    ALARM_E_VALUE,
    burning,
    ceiling_verdict,
    cost_per_converged,
    e_value,
    log_e_value,
    lower_bound,
    rate_verdict,
    runs_needed,
    upper_bound,
)
from hypothesis import assume, example, given
from hypothesis import strategies as st

TARGETS = st.floats(0.01, 0.99)


@st.composite
def counts(draw: st.DrawFn, largest: int = 300) -> tuple[int, int]:
    trials = draw(st.integers(0, largest))
    return draw(st.integers(0, trials)), trials


@pytest.mark.parametrize(("k", "n"), [(14, 14), (20, 20), (21, 22), (28, 30), (45, 50), (87, 100), (170, 200)])
def test_eighty_percent_is_proven_from_here_and_not_one_fewer(k: int, n: int) -> None:
    assert rate_verdict(k, n, 0.8) == "PASS"
    assert rate_verdict(k - 1, n, 0.8) == "INSUFFICIENT"


@pytest.mark.parametrize("n", range(14))
def test_nothing_is_proven_by_fewer_than_fourteen_runs(n: int) -> None:
    assert rate_verdict(n, n, 0.8) == "INSUFFICIENT"


@pytest.mark.parametrize(("k", "n"), [(1, 5), (5, 10), (8, 15), (12, 20), (19, 30), (34, 50), (72, 100)])
def test_eighty_percent_is_breached_up_to_here_and_not_one_more(k: int, n: int) -> None:
    assert rate_verdict(k, n, 0.8) == "FAIL"
    assert rate_verdict(k + 1, n, 0.8) == "INSUFFICIENT"


@pytest.mark.parametrize(("bad", "n"), [(0, 59), (1, 93), (2, 124)])
def test_a_ceiling_of_five_percent_is_proven_only_here(bad: int, n: int) -> None:
    assert ceiling_verdict(bad, n, 0.05) == "PASS"
    assert ceiling_verdict(bad, n - 1, 0.05) == "INSUFFICIENT"
    assert ceiling_verdict(bad + 1, n, 0.05) == "INSUFFICIENT"


def test_a_ceiling_of_five_percent_is_breached_by_six_of_fifty() -> None:
    assert ceiling_verdict(6, 50, 0.05) == "FAIL"
    assert ceiling_verdict(5, 50, 0.05) == "INSUFFICIENT"


def test_no_runs_prove_nothing() -> None:
    assert rate_verdict(0, 0, 0.8) == "INSUFFICIENT"
    assert ceiling_verdict(0, 0, 1.0) == "INSUFFICIENT"
    assert (lower_bound(0, 0), upper_bound(0, 0)) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 10, 30, 100, 1000, 10**6])
def test_without_an_event_the_upper_bound_is_about_three_in_n(n: int) -> None:
    assert upper_bound(0, n) == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-8)
    assert upper_bound(0, n) <= 3 / n


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_what_is_no_count_is_refused(k: int, n: int) -> None:
    for bound in (lower_bound, upper_bound):
        with pytest.raises(ValueError, match="not counts"):
            bound(k, n)


@given(counts())
def test_the_bounds_have_exactly_five_percent_beyond_them(pair: tuple[int, int]) -> None:
    k, n = pair
    assume(0 < k < n)
    with mpmath.workdps(30):
        low, high = mpmath.mpf(lower_bound(k, n)), mpmath.mpf(upper_bound(k, n))
        at_least_k = mpmath.betainc(k, n - k + 1, 0, low, regularized=True)
        at_most_k = mpmath.betainc(k + 1, n - k, high, 1, regularized=True)
    assert float(at_least_k) == pytest.approx(0.05, rel=1e-6)
    assert float(at_most_k) == pytest.approx(0.05, rel=1e-6)


@given(counts(), TARGETS)
def test_a_success_more_never_makes_a_verdict_worse(pair: tuple[int, int], target: float) -> None:
    order = ["FAIL", "INSUFFICIENT", "PASS"]
    k, n = pair
    now = order.index(rate_verdict(k, n, target))
    assert order.index(rate_verdict(k + 1, n + 1, target)) >= now
    assert order.index(rate_verdict(k, n + 1, target)) <= now


@given(counts(), TARGETS)
def test_a_ceiling_mirrors_a_floor(pair: tuple[int, int], limit: float) -> None:
    events, n = pair
    assume(n > 0)
    assert lower_bound(events, n) == pytest.approx(1 - upper_bound(n - events, n), abs=1e-9)
    mirrored = upper_bound(events, n), 1 - lower_bound(n - events, n)
    assert mirrored[0] == pytest.approx(mirrored[1], abs=1e-9)
    verdict = ceiling_verdict(events, n, limit)
    assert (verdict == "PASS") == (upper_bound(events, n) <= limit)
    assert (verdict == "FAIL") == (lower_bound(events, n) > limit)


@pytest.mark.parametrize(
    ("outcomes", "needed"),
    [([], 14), ([True] * 3, 11), ([True] * 14, 0), ([True] * 10 + [False], 11), ([False] * 10, 45)],
)
def test_runs_needed_at_eighty_percent_in_a_window_of_fifty(outcomes: list[bool], needed: int) -> None:
    assert runs_needed(outcomes, 0.8, 50) == needed


def test_old_failures_leave_the_window_before_the_rate_is_proven() -> None:
    assert runs_needed([False] * 50, 0.8, 50) == 45
    assert runs_needed([False] * 50, 0.8, 14) == 14


def test_a_window_can_be_too_short_to_prove_anything() -> None:
    assert runs_needed([], 0.8, 13) is None
    assert runs_needed([True] * 13, 0.8, 13) is None
    assert runs_needed([], 0.999999, 1000) is None


@given(st.lists(st.booleans(), max_size=40), TARGETS, st.integers(1, 40))
def test_runs_needed_is_the_first_number_that_proves(outcomes: list[bool], target: float, window: int) -> None:
    def proven(more: int) -> bool:
        seen = ([True] * more + outcomes)[:window]
        return rate_verdict(sum(seen), len(seen), target) == "PASS"

    assert runs_needed(outcomes, target, window) == next((more for more in range(window + 1) if proven(more)), None)


@given(counts(200), TARGETS)
@example((156, 157), 0.01)
@example((300, 300), 0.01)
def test_the_e_value_is_the_likelihood_ratio_that_it_says(pair: tuple[int, int], target: float) -> None:
    k, n = pair
    with mpmath.workdps(60):
        p0 = mpmath.mpf(target)
        mixed = mpmath.betainc(k + 1, n - k + 1, 0, p0)
        expected = float(mpmath.log(mixed / (p0 * p0**k * (1 - p0) ** (n - k))))
    assert log_e_value(k, n, target) == pytest.approx(expected, abs=1e-8, rel=1e-9)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
def test_evidence_is_a_supermartingale_where_the_target_is_met(target: float) -> None:
    """At a true rate of the target the next look is worth no more on average than this one (Ville)."""
    for n in range(40):
        for k in range(n + 1):
            after = target * e_value(k + 1, n + 1, target) + (1 - target) * e_value(k, n + 1, target)
            assert after <= e_value(k, n, target) * (1 + 1e-9)


def test_looking_after_every_one_of_a_hundred_runs_gives_few_false_alarms() -> None:
    """Exactly, over all paths: the chance that a process at 80 % is ever alarmed within 100 looks."""
    alive, alarmed = {0: 1.0}, 0.0
    for n in range(1, 101):
        reached: dict[int, float] = {}
        for k, chance in alive.items():
            reached[k + 1] = reached.get(k + 1, 0.0) + 0.8 * chance
            reached[k] = reached.get(k, 0.0) + 0.2 * chance
        alarms = {k for k in reached if e_value(k, n, 0.8) >= ALARM_E_VALUE}
        alarmed += sum(reached[k] for k in alarms)
        alive = {k: chance for k, chance in reached.items() if k not in alarms}
    assert 0.02 < alarmed < 0.03


@pytest.mark.parametrize("n", [0, 1, 50, 2_000, 10**7])
def test_runs_that_all_succeed_divide_the_evidence_by_their_number(n: int) -> None:
    assert e_value(n, n, 0.8) == pytest.approx(1 / (n + 1), rel=1e-8)


def test_no_runs_are_no_evidence() -> None:
    assert e_value(0, 0, 0.8) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("k", "n"), [(600_000, 1_000_000), (0, 10**7), (10**6, 10**6), (800_000, 10**6), (10**7, 10**9)]
)
def test_evidence_of_very_many_runs_is_finite_and_on_the_right_side(k: int, n: int) -> None:
    evidence = e_value(k, n, 0.8)
    assert math.isfinite(evidence)
    assert (evidence >= ALARM_E_VALUE) == (k / n < 0.8)


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, math.nan])
def test_evidence_needs_a_target_within_zero_and_one(target: float) -> None:
    with pytest.raises(ValueError, match="not within"):
        log_e_value(1, 2, target)


def test_failing_always_pages() -> None:
    assert burning([False] * 4) == ["page: 4 of the last 4 failed"]
    assert burning([False] * 10) == [
        "page: 5 of the last 5 failed",
        "page: 10 of the last 10 failed",
        "ticket: 10 of the last 10 failed",
        "ticket: 10 of the last 10 failed",
    ]


@pytest.mark.parametrize(
    ("pattern", "severities"),
    [
        ("", set()),
        ("NNN", set()),
        ("NNNN", {"page"}),
        ("NNNCN", {"page"}),
        ("NNCCNNCCN", {"ticket"}),
        ("NNCCNNCCNN", {"page", "ticket"}),
        ("CCCCCNNNNN", {"ticket"}),
        ("CCCCCNNNNC", set()),
        ("CCNCNCNCNCCNCNCNCNCN", {"ticket"}),
        ("C" * 5 + "N" * 4 + "C" * 11, set()),
        ("C" * 20 + "N" * 20, set()),
    ],
)
def test_count_windows_burn(pattern: str, severities: set[str]) -> None:
    found = burning([letter == "C" for letter in pattern])
    assert {line.split(":")[0] for line in found} == severities


def test_cost_is_a_ratio_of_sums_and_unbounded_without_a_converged_run() -> None:
    assert cost_per_converged(3.0, 2) == 1.5
    assert cost_per_converged(3.0, 0) == "unbounded"
