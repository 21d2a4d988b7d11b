"""Where the SLO stands: who is counted, what is excused, what it costs."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from convergate.components.config.models import SloConfig
from convergate.components.slo.ledger import LedgerRun
from convergate.components.slo.standing import Standing, allowed_failures, take_standing


def test_three_of_three_as_a_terminal_shows_it(make: SimpleNamespace) -> None:
    standing = take_standing(SloConfig(), make.history("CC"), make.end())
    assert standing.verdict == "INSUFFICIENT"
    assert standing.line == "3 of 3 runs converged; decided from 5 runs on, proven at 14 of 14"
    assert standing.runs_needed == 11


def test_no_runs_at_all() -> None:
    standing = take_standing(SloConfig(cost_per_converged_gpu_hours=1), [])
    assert {sli.verdict for sli in standing.slis} == {"INSUFFICIENT"}
    assert (standing.total, standing.classes, standing.budget_spent, standing.alarm) == (0, {}, False, False)


@pytest.mark.parametrize(
    ("pattern", "converged", "total", "raw"),
    [
        ("CCRRNX", 2, 4, 4),  # rejected before training: not in it; interrupted in training: a failure
        ("C" * 9 + "I", 9, 9, 10),  # one of ten is excused
        ("C" * 8 + "I", 8, 9, 9),  # of nine none
        ("C" * 18 + "IIII", 18, 20, 22),  # of 22 two; the rest are failures
        ("C" * 9 + "I" + "R" * 20, 9, 9, 10),  # rejections raise no cap
    ],
)
def test_the_denominator(make: SimpleNamespace, pattern: str, converged: int, total: int, raw: int) -> None:
    standing = take_standing(SloConfig(), make.history(pattern))
    assert (standing.slis[0].count, standing.total) == (converged, total)
    assert (standing.raw_converged, standing.raw_total) == (converged, raw)
    assert sum(standing.classes.values()) == len(pattern)


def test_canaries_and_sweeps_count_in_the_cost_alone(make: SimpleNamespace) -> None:
    policy = SloConfig(cost_per_converged_gpu_hours=2)
    history = [make.run("not_converged", "sweep", gpu_hours=3.0, anomalous=True, lr_sync_errors=1)]
    history += [make.run("converged", "canary", gpu_hours=0.5), make.run("rejected", gpu_hours=0.5)]
    history += make.history("CC", gpu_hours=1.0)
    standing = take_standing(policy, history)
    assert standing.total == 2
    cost = standing.slis[-1]
    assert (cost.count, cost.total, cost.verdict) == (6.0, 2, "FAIL")
    assert cost.line == "3 GPU-hours a converged run, allowed 2"
    assert [sli.count for sli in standing.slis[1:3]] == [0, 0]


def test_cost_without_a_converged_run_is_unbounded(make: SimpleNamespace) -> None:
    policy = SloConfig(cost_per_converged_gpu_hours=2)
    cheap = take_standing(policy, make.history("N", gpu_hours=1.5)).slis[-1]
    dear = take_standing(policy, make.history("NN", gpu_hours=1.5)).slis[-1]
    assert (cheap.verdict, dear.verdict) == ("INSUFFICIENT", "FAIL")
    assert dear.line == "unbounded: 3 GPU-hours and no converged run, allowed 2 each"


def test_rejected_runs_push_no_failure_out_of_the_window(make: SimpleNamespace) -> None:
    policy = SloConfig(window_runs=5)
    standing = take_standing(policy, make.history("R" * 30 + "NNN" + "CC" + "NNNN"))
    assert (standing.slis[0].count, standing.total) == (2, 5)
    assert standing.classes == {"rejected": 30, "not_converged": 3, "converged": 2}


def test_cost_is_of_the_window(make: SimpleNamespace) -> None:
    policy = SloConfig(window_runs=2, cost_per_converged_gpu_hours=2)
    old = [make.run("not_converged", "sweep", gpu_hours=1000.0)]
    assert take_standing(policy, make.history("CCC", gpu_hours=1.0) + old).slis[-1].count == 2.0


@pytest.mark.parametrize(
    ("target", "window", "allowed"), [(0.8, 50, 10), (0.9, 50, 5), (0.85, 50, 7), (0.7, 10, 3), (0.8, 4, 0)]
)
def test_the_error_budget_is_exact(target: float, window: int, allowed: int) -> None:
    assert allowed_failures(SloConfig(convergence_rate=target, window_runs=window)) == allowed


def test_the_budget_is_spent_by_one_failure_more_than_it_allows(make: SimpleNamespace) -> None:
    assert not take_standing(SloConfig(), make.history("C" * 40 + "N" * 10)).budget_spent
    assert take_standing(SloConfig(), make.history("C" * 39 + "N" * 11)).budget_spent


@pytest.mark.parametrize(
    ("pattern", "verdict", "line"),
    [
        ("C" * 14, "PASS", "14 of 14 runs converged, proven at least 80.7%, target 80%"),
        ("C" + "N" * 4, "FAIL", "1 of 5 runs converged, at most 65.7%, target 80%"),
        ("C" * 6, "INSUFFICIENT", "6 of 6 runs converged, proven at 14 of 14"),
        (
            "C" * 9 + "I",
            "INSUFFICIENT",
            "9 of 9 runs converged (10 with those that the infrastructure ended)",
        ),
    ],
)
def test_the_convergence_rate(make: SimpleNamespace, pattern: str, verdict: str, line: str) -> None:
    sli = take_standing(SloConfig(), make.history(pattern)).slis[0]
    assert sli.verdict == verdict
    assert sli.line.startswith(line)


def test_a_window_that_can_prove_nothing_says_so(make: SimpleNamespace) -> None:
    standing = take_standing(SloConfig(window_runs=10), make.history("CCCCC"))
    assert standing.runs_needed is None
    assert standing.line == "5 of 5 runs converged, not to be proven within 10 runs"


def test_one_lr_sync_error_vetoes_and_infrastructure_does_not_excuse_it(make: SimpleNamespace) -> None:
    history = [make.run("infrastructure", lr_sync_errors=1), *make.history("C" * 20)]
    standing = take_standing(SloConfig(), history)
    assert standing.slis[0].verdict == "PASS"
    assert (standing.slis[2].verdict, standing.slis[2].count) == ("FAIL", 1)
    assert standing.verdict == "FAIL"
    assert standing.line == "1 LR sync errors in 21 runs, allowed 0"


def test_without_sync_errors_the_bound_is_shown(make: SimpleNamespace) -> None:
    sli = take_standing(SloConfig(), make.history("C" * 30)).slis[2]
    assert (sli.verdict, sli.low) == ("PASS", 0.0)
    assert sli.high == pytest.approx(1 - 0.05 ** (1 / 30))


def test_six_anomalous_of_fifty_veto(make: SimpleNamespace) -> None:
    calm, wild = make.history("C" * 45), make.history("C" * 6, anomalous=True)
    assert take_standing(SloConfig(), wild[:5] + calm).slis[1].verdict == "INSUFFICIENT"
    assert take_standing(SloConfig(), wild + calm[:44]).slis[1].verdict == "FAIL"


def test_a_run_in_the_ledger_is_counted_once_and_its_recorded_end_stands(make: SimpleNamespace) -> None:
    history = make.history("CNC")
    recorded = history[1].start.run_id
    standing = take_standing(SloConfig(), history, make.end("converged", recorded))
    assert (standing.slis[0].count, standing.total) == (2, 3)


def test_a_run_that_is_open_counts_with_the_end_that_it_would_have(make: SimpleNamespace) -> None:
    running = LedgerRun(make.start("now"), None)
    assert take_standing(SloConfig(), [running]).total == 0
    assert take_standing(SloConfig(), [running], make.end("converged", "now")).total == 1


def test_a_run_without_an_end_by_its_deadline_has_failed(make: SimpleNamespace) -> None:
    lost = LedgerRun(make.start(deadline=datetime.now(UTC) - timedelta(seconds=1)), None)
    standing = take_standing(SloConfig(), [lost, *make.history("C")])
    assert (standing.failures, standing.total) == (1, 2)


def test_eventual_success_stands_beside_first_attempts(make: SimpleNamespace) -> None:
    history = [make.run("not_converged", attempts=2, reached_target=True), *make.history("CN")]
    standing = take_standing(SloConfig(), history)
    assert (standing.slis[0].count, standing.reached_target) == (1, 2)


def test_the_alarm_is_over_all_runs_and_burning_over_the_last(make: SimpleNamespace) -> None:
    standing = take_standing(SloConfig(window_runs=20), make.history("N" * 5))
    assert standing.alarm
    assert standing.e_value > 20
    assert standing.burning[0] == "page: 5 of the last 5 failed"
    # A long good history outweighs five failures, though a short window shows nothing else.
    mixed = take_standing(SloConfig(window_runs=5), make.history("N" * 5 + "C" * 60))
    assert (mixed.alarm, mixed.slis[0].verdict) == (False, "FAIL")


def test_it_survives_json(make: SimpleNamespace) -> None:
    standing = take_standing(SloConfig(cost_per_converged_gpu_hours=1), make.history("CNIRX"))
    assert Standing.model_validate_json(standing.model_dump_json()) == standing
