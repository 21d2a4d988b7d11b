"""Promotion: the candidate becomes a registered model, and an alias is set when the decision says so.

- `registry`: MLflow with bounded time; the run's mirror for people.
- `candidate`: a checkpoint as a self-contained MLflow model, and how to use it.
- `champion`: who is champion: a record on S3, written by compare and swap; the MLflow alias follows it.
- `initial`: the checkpoint that `training.init_from` means, looked up once a run.
- `approval`: a person's approval of a decision, signed and expiring.
- `promote`: `promote_run`, `roll_back`, `reconcile`.
"""

from .approval import Approval, ApprovalError, approve
from .champion import ChampionChangedError, ChampionRecord, Release, read_champion
from .promote import Promotion, PromotionError

__all__ = [
    "Approval",
    "ApprovalError",
    "ChampionChangedError",
    "ChampionRecord",
    "Promotion",
    "PromotionError",
    "Release",
    "approve",
    "read_champion",
]
