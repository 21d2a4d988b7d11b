"""Evaluation: the candidate against its target and the champion."""

from ..config.document import Check, Document, Verdict


class Evaluation(Document):
    """What is known about a candidate, measured on the test split."""

    verdict: Verdict
    checks: list[Check]
    metric: str
    value: float
    low: float
    """Lower bound of the 95 % interval."""
    high: float
    """Upper bound of the 95 % interval."""
    target: float
    num_samples: int
    metrics: dict[str, float]
    """Every score's mean on the test split."""
    champion_uri: str | None = None
    champion_value: float | None = None
    """The champion on the same samples; None where there is none yet."""
    checkpoint_uri: str
    checkpoint_digest: str
    reached_target: bool
