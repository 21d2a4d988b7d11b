"""Promotion: the candidate becomes a registered model, and an alias is set when the decision says so.

- `registry`: MLflow with bounded time; the run's mirror for people.
- `candidate`: a checkpoint as a self-contained MLflow model.
- `champion`: who is champion: a record on S3, written by compare and swap; the MLflow alias follows it.
- `promote`: `promote_run`, `roll_back`.
"""

from .champion import ChampionRecord, read_champion
from .promote import Promotion

__all__ = ["ChampionRecord", "Promotion", "read_champion"]
