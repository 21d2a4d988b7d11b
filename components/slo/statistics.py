"""The statistics of few runs: exact, and honest about what is not known yet.

Bounds are one-sided 95 % Clopper-Pearson (Biometrika 26, 1934): PASS when the lower one reaches the target,
FAIL when the upper one is below it, else INSUFFICIENT. They are for one look; the alarm that is looked at
after every run is an e-process (Ville 1939; arXiv:2210.01948), whose false alarms stay below 5 % over any
number of looks.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

SliVerdict = Literal["PASS", "FAIL", "INSUFFICIENT"]
CONFIDENCE = 0.95
ALARM_E_VALUE = 1 / (1 - CONFIDENCE)
BURN_RULES = (("page", 4, 5), ("page", 6, 10), ("ticket", 5, 10), ("ticket", 9, 20))
"""(severity, failures, of the last n runs): at a target of 80 % burn rates cannot reach the usual 14.4."""
_LARGEST_EXPONENT = 700.0
"""Above e^709 a double overflows; far beyond any alarm."""
_SMALLEST_SHARE = 1e-290
"""Below 2e-308 doubles lose digits, and then vanish."""
_NEGLIGIBLE = 1e-17


def lower_bound(successes: int, trials: int) -> float:
    """The one-sided 95 % lower bound on a success rate; 0 where there was none.

    Raises:
        ValueError: when the two are not counts.
    """
    from scipy.stats import beta

    _require_counts(successes, trials)
    return 0.0 if successes == 0 else float(beta.ppf(1 - CONFIDENCE, successes, trials - successes + 1))


def upper_bound(successes: int, trials: int) -> float:
    """The one-sided 95 % upper bound on a success rate; 1 where nothing failed.

    Raises:
        ValueError: when the two are not counts.
    """
    from scipy.stats import beta

    _require_counts(successes, trials)
    return 1.0 if successes == trials else float(beta.ppf(CONFIDENCE, successes + 1, trials - successes))


def rate_verdict(successes: int, trials: int, target: float) -> SliVerdict:
    """Whether a success rate is proven to be at least `target`, proven to be below it, or neither."""
    if lower_bound(successes, trials) >= target:
        return "PASS"
    return "FAIL" if upper_bound(successes, trials) < target else "INSUFFICIENT"


def ceiling_verdict(events: int, trials: int, limit: float) -> SliVerdict:
    """Whether the rate of unwanted events is proven to be within `limit`, proven above it, or neither."""
    if trials and upper_bound(events, trials) <= limit:
        return "PASS"
    return "FAIL" if lower_bound(events, trials) > limit else "INSUFFICIENT"


def runs_needed(outcomes: Sequence[bool], target: float, window: int) -> int | None:
    """How many successes in a row, from here on, prove the rate; None where the window is too short ever to.

    Args:
        outcomes: Whether each run succeeded, newest first.
        target: The rate to be proven.
        window: The runs that are looked at: each further run pushes out the oldest.
    """

    def proven(more: int) -> bool:
        return rate_verdict(*after_successes(outcomes, more, window), target) == "PASS"

    # A success more never lowers the bound, so the first that proves is found by bisection.
    found = bisect_left(range(window + 1), True, key=proven)
    return found if found <= window else None


def after_successes(outcomes: Sequence[bool], more: int, window: int) -> tuple[int, int]:
    """(successes, trials) of the window after `more` successes in a row; `outcomes` are newest first."""
    kept = outcomes[: window - more]
    return more + sum(kept), more + len(kept)


def log_e_value(successes: int, trials: int, target: float) -> float:
    """The natural logarithm of the evidence against 'the success rate is at least `target`'.

    `E = B(k+1, n-k+1)·I_p0(k+1, n-k+1) / (p0·p0^k·(1-p0)^(n-k))`: the likelihood averaged over rates
    below the target, over the likelihood at it. 0 after no runs.

    Raises:
        ValueError: when the counts are none, or the target is not within (0, 1).
    """
    from scipy.special import betainc, betaln

    _require_counts(successes, trials)
    if not 0 < target < 1:
        raise ValueError(f"target {target} is not within (0, 1)")
    failures = trials - successes
    below = float(betainc(successes + 1, failures + 1, target))
    if below < _SMALLEST_SHARE:
        return _log_e_value_of_good_runs(successes, trials, target)
    log_e = float(betaln(successes + 1, failures + 1)) + math.log(below)
    return log_e - (successes + 1) * math.log(target) - failures * math.log1p(-target)


def _log_e_value_of_good_runs(successes: int, trials: int, target: float) -> float:
    """As `log_e_value`, for a rate so far above the target that `I_p0` leaves the doubles.

    `E = (1-p0)/(k+1) · 2F1(n+2, 1; k+2; p0)` (DLMF 8.17.8), whose terms fall where k/n is above the target.
    """
    total, term, place = 0.0, 1.0, 0
    while term > _NEGLIGIBLE * total:
        total += term
        term *= target * (trials + 2 + place) / (successes + 2 + place)
        place += 1
    return math.log1p(-target) - math.log(successes + 1) + math.log(total)


def e_value(successes: int, trials: int, target: float) -> float:
    """Evidence as `log_e_value`, valid at every look; an alarm at 20 and above. Always finite."""
    return math.exp(min(log_e_value(successes, trials, target), _LARGEST_EXPONENT))


def burning(converged: Sequence[bool]) -> list[str]:
    """Which count windows burn, newest run first: for example `page: 4 of the last 5 failed`."""
    found = []
    for severity, threshold, window in BURN_RULES:
        failures = sum(1 for good in converged[:window] if not good)
        if failures >= threshold:
            found.append(f"{severity}: {failures} of the last {min(window, len(converged))} failed")
    return found


def cost_per_converged(gpu_hours: float, converged: int) -> float | Literal["unbounded"]:
    """GPU-hours of all runs over the converged ones, a ratio of sums; `unbounded` where none converged."""
    return gpu_hours / converged if converged else "unbounded"


def _require_counts(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: not counts")
