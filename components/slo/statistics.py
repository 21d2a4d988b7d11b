"""The statistics of few runs: exact, and honest about what is not known yet.

Bounds are one-sided 95 % Clopper-Pearson (Biometrika 26, 1934): PASS when the lower one reaches the target, FAIL when
the upper one is below it, else INSUFFICIENT. They are for one look; the alarm that is looked at after every run is an
e-process (Ville 1939; arXiv:2210.01948), whose false alarms stay below 5 % over any number of looks.
"""

import math
from collections.abc import Sequence
from typing import Literal

SliVerdict = Literal["PASS", "FAIL", "INSUFFICIENT"]
CONFIDENCE = 0.95
ALARM_E_VALUE = 1 / (1 - CONFIDENCE)
BURN_RULES = (("page", 4, 5), ("page", 6, 10), ("ticket", 5, 10), ("ticket", 9, 20))
"""(severity, failures, of the last n runs): burn rates cannot reach the usual 14.4 when the target is 80 %."""
SEARCH_LIMIT = 100_000


def lower_bound(successes: int, trials: int) -> float:
    """The one-sided 95 % lower bound on a success rate; 0 where there was none."""
    from scipy.stats import beta

    _require_counts(successes, trials)
    return 0.0 if successes == 0 else float(beta.ppf(1 - CONFIDENCE, successes, trials - successes + 1))


def upper_bound(successes: int, trials: int) -> float:
    """The one-sided 95 % upper bound on a success rate; 1 where nothing failed."""
    return 1.0 - lower_bound(trials - successes, trials) if trials else 1.0


def at_least(successes: int, trials: int, target: float) -> SliVerdict:
    """Whether a success rate is proven to be at least `target`, proven to be below it, or neither."""
    if lower_bound(successes, trials) >= target:
        return "PASS"
    return "FAIL" if upper_bound(successes, trials) < target else "INSUFFICIENT"


def at_most(events: int, trials: int, limit: float) -> SliVerdict:
    """Whether an event rate is proven to be below `limit`, proven to be above it, or neither."""
    if trials and upper_bound(events, trials) <= limit:
        return "PASS"
    return "FAIL" if lower_bound(events, trials) > limit else "INSUFFICIENT"


def successes_until_proven(successes: int, trials: int, target: float) -> tuple[int, int]:
    """(k, n) at which the rate would be proven if every run from here on succeeded."""
    for more in range(SEARCH_LIMIT):
        if at_least(successes + more, trials + more, target) == "PASS":
            return successes + more, trials + more
    raise ValueError(f"target {target} is not reached within {SEARCH_LIMIT} runs")


def e_value(successes: int, trials: int, target: float) -> float:
    """Evidence against 'the success rate is at least `target`', valid at every look; alarm at 20 and above.

    `E = B(k+1, n-k+1)·I_p0(k+1, n-k+1) / (p0·p0^k·(1-p0)^(n-k))`: the likelihood averaged over rates below the
    target, over the likelihood at it; computed in logarithms.
    """
    from scipy.special import betainc, betaln

    _require_counts(successes, trials)
    failures = trials - successes
    below = float(betainc(successes + 1, failures + 1, target))
    if below == 0.0:
        return 0.0
    log_e = float(betaln(successes + 1, failures + 1)) + math.log(below)
    log_e -= (successes + 1) * math.log(target) + failures * math.log1p(-target)
    return math.exp(min(log_e, 700.0))


def burning(converged: Sequence[bool]) -> list[str]:
    """Which count windows burn, newest run first: for example `page: 4 of the last 5 failed`."""
    found = []
    for severity, threshold, window in BURN_RULES:
        failures = sum(1 for good in converged[:window] if not good)
        if failures >= threshold:
            found.append(f"{severity}: {failures} of the last {min(window, len(converged))} failed")
    return found


def _require_counts(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: not counts")
