"""The convergence SLO: runs are few, so they are counted honestly.

- `statistics`: exact binomial bounds, the verdict on a rate, the anytime-valid alarm, burn windows.
- `ledger`: create-only records on S3, a start and an end for every run.
- `standing`: where the SLO stands: each SLI's verdict over the window.
- `decision`: REJECT, HOLD, CHALLENGER or PROMOTE, with every reason, signed; the class in which a run ended.
- `gate`: `open_run` and `run_gate`, what the steps call.
"""

from .decision import Decision, classify, decide
from .ledger import EndRecord, Ledger, LedgerError, LedgerRun, StartRecord, find_run
from .standing import Sli, Standing, take_standing

__all__ = [
    "Decision",
    "EndRecord",
    "Ledger",
    "LedgerError",
    "LedgerRun",
    "Sli",
    "Standing",
    "StartRecord",
    "classify",
    "decide",
    "find_run",
    "take_standing",
]
