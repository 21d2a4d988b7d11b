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

    @property
    def reason(self) -> str:
        """The first check that did not pass, in words."""
        return next((f"{check.name}: {check.reason}" for check in self.checks if not check.passed), "")

    def to_markdown(self) -> str:
        """The checks as a person reads them in the UI."""
        rows = [f"| {c.name} | {c.verdict} | {c.figure} | {c.threshold} | {c.reason} |" for c in self.checks]
        head = ["| check | verdict | figure | threshold | reason |", "|---|---|---|---|---|"]
        return "\n".join([f"**{self.verdict}** {self.summary}", "", *head, *rows]) + "\n"
