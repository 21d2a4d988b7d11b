"""The canary: a short run on the real data and launcher that judges a config before a GPU is paid for.

- `run`: `run_canary`, what the step and the command line call.
- `checks`: what is judged, each with its figure, threshold and reason.
- `report`: `CanaryReport`.
"""

from .report import CanaryReport

__all__ = ["CanaryReport"]
