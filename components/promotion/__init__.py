"""Promotion: the candidate becomes a registered model, and an alias is set when the decision says so.

- `registry`: MLflow with bounded time; the run's mirror for people.
- `candidate`: a checkpoint as a self-contained MLflow model, and how to use it.
- `champion`: who is champion: a record on S3, written by compare and swap; the MLflow alias follows it.
- `promote`: `promote_run`, `roll_back`, `reconcile`.
"""

from .champion import ChampionChangedError, ChampionRecord, Release, read_champion
from .promote import Promotion, PromotionError

__all__ = [
    "ChampionChangedError",
    "ChampionRecord",
    "Promotion",
    "PromotionError",
    "Release",
    "read_champion",
]
