"""Where the SLO stands: each SLI over the window, with its verdict, interval and one line in words.

The window is the last runs of kind `retrain` that ended. The denominator is those that reached training, less those
that the infrastructure ended, of which at most a tenth of the window is excused; raw counts stand beside. A run
converged when its first attempt finished and reached its target without an LR sync error; one interrupted in training
did not. Cost counts the GPU-hours of every kind and attempt.
"""

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ..config.models import SloConfig
from .ledger import EndRecord, LedgerRun
from .statistics import (
    ALARM_E_VALUE,
    SliVerdict,
    at_least,
    at_most,
    burning,
    e_value,
    lower_bound,
    successes_until_proven,
    upper_bound,
)

EXCUSED_FRACTION = 0.1


class Sli(BaseModel):
    """One indicator over the window."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    verdict: SliVerdict
    count: float
    """Converged runs, anomalous runs, sync errors, or GPU-hours."""
    total: int
    low: float | None = None
    """One-sided 95 % bounds of a rate."""
    high: float | None = None
    target: float
    line: str


class Standing(BaseModel):
    """The SLO of one (experiment, model) now."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    slis: list[Sli]
    classes: dict[str, int]
    """Runs of the window by class; every class is shown."""
    raw_converged: int
    raw_total: int
    """Before any was excused."""
    allowed_failures: int
    """The window's error budget, in runs."""
    failures: int
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


def take_standing(policy: SloConfig, history: Sequence[LedgerRun], current: EndRecord | None = None) -> Standing:
    """The standing over the ledger's runs, newest first, and over the run that is being decided."""
    ended = [run for run in history if run.start.kind == "retrain" and run.run_class != "running"]
    if current is not None:
        ended = [run for run in ended if run.start.run_id != current.run_id]
    ends = ([current] if current else []) + [run.end or _vanished(run) for run in ended]
    window = ends[: policy.window_runs]
    trained = [end for end in window if end.reached_training]
    excused = int(EXCUSED_FRACTION * len(window))
    counted = []
    for end in trained:
        if end.run_class == "infrastructure" and excused > 0:
            excused -= 1
        else:
            counted.append(end)
    converged = [end.run_class == "converged" for end in counted]
    hours = sum(end.gpu_hours for end in window)
    hours += sum(run.end.gpu_hours for run in history if run.end is not None and run.start.kind != "retrain")
    slis = [_convergence(policy, converged), _anomalous(policy, counted), _sync_errors(policy, counted)]
    if policy.cost_per_converged_gpu_hours is not None:
        slis.append(_cost(policy.cost_per_converged_gpu_hours, hours, sum(converged)))
    return Standing(
        slis=slis,
        classes=dict(Counter(end.run_class for end in window)),
        raw_converged=sum(end.run_class == "converged" for end in trained),
        raw_total=len(trained),
        allowed_failures=round((1 - policy.convergence_rate) * policy.window_runs),
        failures=converged.count(False),
        alarm=e_value(sum(converged), len(converged), policy.convergence_rate) >= ALARM_E_VALUE,
        burning=burning(converged),
    )


def _vanished(run: LedgerRun) -> EndRecord:
    """What stands for the end of a run that never wrote one by its deadline."""
    return EndRecord(
        run_id=run.start.run_id, run_class="not_converged", reached_training=True, reason="no end by its deadline"
    )


def _convergence(policy: SloConfig, converged: list[bool]) -> Sli:
    good, total, target = sum(converged), len(converged), policy.convergence_rate
    verdict = at_least(good, total, target)
    line = f"{good} of {total} runs converged"
    if verdict == "INSUFFICIENT":
        k, n = successes_until_proven(good, total, target)
        decided = f"; decided from {policy.min_runs} runs on" if total < policy.min_runs else ""
        line += f"{decided}, proven at {k} of {n}"
    return Sli(
        name="convergence_rate",
        verdict=verdict,
        count=good,
        total=total,
        low=lower_bound(good, total),
        high=upper_bound(good, total),
        target=target,
        line=line,
    )


def _anomalous(policy: SloConfig, counted: list[EndRecord]) -> Sli:
    bad, total, limit = sum(end.anomalous for end in counted), len(counted), policy.anomalous_rate
    return Sli(
        name="anomalous_rate",
        verdict=at_most(bad, total, limit),
        count=bad,
        total=total,
        low=lower_bound(bad, total),
        high=upper_bound(bad, total),
        target=limit,
        line=f"{bad} of {total} runs anomalous, allowed {limit:.0%}",
    )


def _sync_errors(policy: SloConfig, counted: list[EndRecord]) -> Sli:
    errors, total = sum(end.lr_sync_errors for end in counted), len(counted)
    breached = errors > policy.lr_sync_errors
    return Sli(
        name="lr_sync_errors",
        verdict="FAIL" if breached else "PASS" if total else "INSUFFICIENT",
        count=errors,
        total=total,
        high=upper_bound(min(errors, total), total),
        target=policy.lr_sync_errors,
        line=f"{errors} LR sync errors in {total} runs, allowed {policy.lr_sync_errors}",
    )


def _cost(limit: float, hours: float, converged: int) -> Sli:
    if converged == 0:
        verdict: SliVerdict = "FAIL" if hours > limit else "INSUFFICIENT"
        line = f"unbounded: {hours:.3g} GPU-hours and no converged run, allowed {limit:g} each"
    else:
        verdict = "PASS" if hours / converged <= limit else "FAIL"
        line = f"{hours / converged:.3g} GPU-hours a converged run, allowed {limit:g}"
    return Sli(
        name="cost_per_converged_gpu_hours", verdict=verdict, count=hours, total=converged, target=limit, line=line
    )
