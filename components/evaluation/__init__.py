"""Evaluation: the candidate against its target and the champion, on the test split.

- `evaluate`: `evaluate_candidate`.
- `interval`: the 95 % interval of a metric.
- `result`: `Evaluation`.
"""

from .result import Evaluation

__all__ = ["Evaluation"]
