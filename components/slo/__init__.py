"""The convergence SLO: runs are few, so they are counted honestly.

- `statistics`: exact binomial bounds, the verdict on a rate, the anytime-valid alarm, burn windows.
- `ledger`: create-only records on S3, a start and an end for every run.
- `standing`: where the SLO stands: each SLI's verdict over the window.
- `decision`: REJECT, HOLD, CHALLENGER or PROMOTE, with every reason, signed.
- `gate`: `open_run` and `run_gate`, what the steps call.
"""

from .decision import Decision, decide
from .ledger import EndRecord, Ledger, LedgerRun, StartRecord
from .standing import Sli, Standing, take_standing

__all__ = ["Decision", "EndRecord", "Ledger", "LedgerRun", "Sli", "Standing", "StartRecord", "decide", "take_standing"]
