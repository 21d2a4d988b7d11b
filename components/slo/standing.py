"""Where the SLO stands: each SLI over the window, with its verdict, interval and one line in words.

The window is the last runs of kind `retrain` that ended and reached training. What lies between them (runs
that were rejected before training, canaries, sweeps) is in the cost, and pushes nothing out. The
denominator leaves out the runs that the infrastructure ended, at most a tenth of the window; raw counts
stand beside. A run converged when its first attempt finished and reached its target without an LR sync
error; one interrupted in training did not.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal

from pydantic import BaseModel, ConfigDict

from ..config.models import SloConfig
from .ledger import EndRecord, LedgerRun, RunKind
from .statistics import (
    ALARM_E_VALUE,
    SliVerdict,
    after_successes,
    burning,
    ceiling_verdict,
    cost_per_converged,
    e_value,
    lower_bound,
    rate_verdict,
    runs_needed,
    upper_bound,
)

ONE_EXCUSED_IN = 10
"""At most one run in so many is excused for its infrastructure; the rest count as failures."""


class Sli(BaseModel):
    """One indicator over the window."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    verdict: SliVerdict
    count: float
    """Converged runs, anomalous runs, sync errors, or GPU-hours."""
    total: int
    low: float | None = None
    """One-sided 95 % bounds of a rate; of sync errors: of the share of runs with any."""
    high: float | None = None
    target: float
    line: str


class Standing(BaseModel):
    """The SLO of one (experiment, model) now."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    slis: list[Sli]
    classes: dict[str, int]
    """Retraining runs since the window's oldest one by class; every class is shown."""
    raw_converged: int
    raw_total: int
    """Before any was excused."""
    reached_target: int = 0
    """Runs of the window that reached their target in whichever attempt."""
    runs_needed: int | None = None
    """Successes in a row until the convergence rate is proven; None where the window is too short ever to."""
    allowed_failures: int
    """The window's error budget, in runs."""
    failures: int
    e_value: float = 1.0
    """Evidence that the convergence rate is below its target, over all that the ledger knows."""
    alarm: bool
    """The anytime-valid alarm: the rate is below its target."""
    burning: list[str]

    @property
    def budget_spent(self) -> bool:
        """Whether the window holds more failures than its budget allows."""
        return self.failures > self.allowed_failures

    @property
    def total(self) -> int:
        """Runs that the convergence rate counts."""
        return self.slis[0].total

    @property
    def verdict(self) -> SliVerdict:
        """FAIL if any SLI is breached, PASS if all are proven, else INSUFFICIENT."""
        verdicts = {sli.verdict for sli in self.slis}
        return "FAIL" if "FAIL" in verdicts else "INSUFFICIENT" if "INSUFFICIENT" in verdicts else "PASS"

    @property
    def line(self) -> str:
        """The line of the first SLI that makes the verdict what it is."""
        return next(sli.line for sli in self.slis if sli.verdict == self.verdict)


def take_standing(policy: SloConfig, history: Sequence[LedgerRun], current: EndRecord | None = None) -> Standing:
    """The standing over the ledger's runs, newest first.

    Args:
        policy: The SLO.
        history: The ledger's runs of the (experiment, model), newest first.
        current: The end that the run being decided would have now; an end in the ledger stands before it.
    """
    ended = list(_ended(history, current))
    everything = [end for kind, end in ended if _trained(kind, end)]
    span = ended[: _window_length(ended, policy.window_runs)]
    trained = [end for kind, end in span if _trained(kind, end)]
    counted = _counted(trained)
    outcomes, all_outcomes = _outcomes(counted), _outcomes(_counted(everything))
    # Over all runs: over a sliding window it would be valid at each look, and not over all looks together.
    evidence = e_value(sum(all_outcomes), len(all_outcomes), policy.convergence_rate)
    needed = runs_needed(outcomes, policy.convergence_rate, policy.window_runs)
    slis = [
        _convergence(policy, outcomes, needed, len(trained)),
        _anomalous(policy, counted),
        _sync_errors(policy, trained),
    ]
    if policy.cost_per_converged_gpu_hours is not None:
        hours = sum(end.gpu_hours for _, end in span)
        slis.append(_cost(policy.cost_per_converged_gpu_hours, hours, sum(outcomes)))
    return Standing(
        slis=slis,
        classes=dict(Counter(end.run_class for kind, end in span if kind == "retrain")),
        raw_converged=sum(_outcomes(trained)),
        raw_total=len(trained),
        reached_target=sum(end.reached_target for end in trained),
        runs_needed=needed,
        allowed_failures=allowed_failures(policy),
        failures=outcomes.count(False),
        e_value=evidence,
        alarm=evidence >= ALARM_E_VALUE,
        burning=burning(outcomes),
    )


def allowed_failures(policy: SloConfig) -> int:
    """The error budget of a full window, in whole runs: ⌊(1 - target)·window⌋, in decimal arithmetic."""
    return int((1 - Decimal(repr(policy.convergence_rate))) * policy.window_runs)


def _ended(history: Sequence[LedgerRun], current: EndRecord | None) -> Iterator[tuple[RunKind, EndRecord]]:
    """Every run that ended, each in its place, newest first."""
    if current is not None and all(run.start.run_id != current.run_id for run in history):
        yield "retrain", current
    for run in history:
        if run.end is not None:
            yield run.start.kind, run.end
        elif current is not None and run.start.run_id == current.run_id:
            yield run.start.kind, current
        elif run.run_class != "running":
            yield run.start.kind, _vanished(run)


def _vanished(run: LedgerRun) -> EndRecord:
    """What stands for the end of a run that never wrote one by its deadline."""
    return EndRecord(
        run_id=run.start.run_id,
        run_class="not_converged",
        reached_training=True,
        reason="no end by its deadline",
    )


def _trained(kind: RunKind, end: EndRecord) -> bool:
    return kind == "retrain" and end.reached_training


def _window_length(ended: list[tuple[RunKind, EndRecord]], window_runs: int) -> int:
    """How many of all that ended lie between now and the oldest run of a full window."""
    places = [place for place, (kind, end) in enumerate(ended) if _trained(kind, end)]
    return places[window_runs - 1] + 1 if len(places) >= window_runs else len(ended)


def _counted(trained: list[EndRecord]) -> list[EndRecord]:
    """The runs without those that are excused, as far as the cap allows."""
    excused = len(trained) // ONE_EXCUSED_IN
    counted = []
    for end in trained:
        if end.run_class == "infrastructure" and excused > 0:
            excused -= 1
        else:
            counted.append(end)
    return counted


def _outcomes(ends: list[EndRecord]) -> list[bool]:
    return [end.run_class == "converged" for end in ends]


def _convergence(policy: SloConfig, outcomes: list[bool], needed: int | None, raw_total: int) -> Sli:
    good, total, target = sum(outcomes), len(outcomes), policy.convergence_rate
    verdict = rate_verdict(good, total, target)
    low, high = lower_bound(good, total), upper_bound(good, total)
    line = f"{good} of {total} runs converged"
    if total < raw_total:
        line += f" ({raw_total} with those that the infrastructure ended)"
    if verdict == "PASS":
        line += f", proven at least {_percent(low)}, target {_percent(target)}"
    elif verdict == "FAIL":
        line += f", at most {_percent(high)}, target {_percent(target)}"
    else:
        line += f"; decided from {policy.min_runs} runs on" if total < policy.min_runs else ""
        line += (
            f", not to be proven within {policy.window_runs} runs"
            if needed is None
            else ", proven at {} of {}".format(*after_successes(outcomes, needed, policy.window_runs))
        )
    return Sli(
        name="convergence_rate",
        verdict=verdict,
        count=good,
        total=total,
        low=low,
        high=high,
        target=target,
        line=line,
    )


def _anomalous(policy: SloConfig, counted: list[EndRecord]) -> Sli:
    bad, total, limit = sum(end.anomalous for end in counted), len(counted), policy.anomalous_rate
    return Sli(
        name="anomalous_rate",
        verdict=ceiling_verdict(bad, total, limit),
        count=bad,
        total=total,
        low=lower_bound(bad, total),
        high=upper_bound(bad, total),
        target=limit,
        line=f"{bad} of {total} runs anomalous, allowed {_percent(limit)}",
    )


def _sync_errors(policy: SloConfig, trained: list[EndRecord]) -> Sli:
    """Counted over all that trained: no infrastructure excuses ranks that disagree."""
    errors, total = sum(end.lr_sync_errors for end in trained), len(trained)
    with_errors = sum(end.lr_sync_errors > 0 for end in trained)
    breached = errors > policy.lr_sync_errors
    return Sli(
        name="lr_sync_errors",
        verdict="FAIL" if breached else "PASS" if total else "INSUFFICIENT",
        count=errors,
        total=total,
        low=lower_bound(with_errors, total),
        high=upper_bound(with_errors, total),
        target=policy.lr_sync_errors,
        line=f"{errors} LR sync errors in {total} runs, allowed {policy.lr_sync_errors}",
    )


def _cost(limit: float, hours: float, converged: int) -> Sli:
    each = cost_per_converged(hours, converged)
    if each == "unbounded":
        verdict: SliVerdict = "FAIL" if hours > limit else "INSUFFICIENT"
        line = f"unbounded: {hours:.3g} GPU-hours and no converged run, allowed {limit:g} each"
    else:
        verdict = "PASS" if each <= limit else "FAIL"
        line = f"{each:.3g} GPU-hours a converged run, allowed {limit:g}"
    return Sli(
        name="cost_per_converged_gpu_hours",
        verdict=verdict,
        count=hours,
        total=converged,
        target=limit,
        line=line,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
