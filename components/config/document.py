"""The base of the small typed JSON documents that steps take in and give out."""

from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


class Document(BaseModel):
    """A step's result: immutable, versioned, JSON. `name` is its file's name in the run's prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    run_id: str
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    seconds: float = 0.0
    """Wall time of the step that made it, in seconds."""
    summary: str = ""
    """One line for a terminal, a UI or a report."""

    def to_json(self) -> bytes:
        """The document as indented UTF-8 JSON."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: str | bytes) -> Self:
        """Parse and validate a document.

        Raises:
            pydantic.ValidationError: when `data` is not a document of this kind and version.
        """
        return cls.model_validate_json(data)


class Check(BaseModel):
    """One check of a verdict, with the figure it looked at, its threshold, and the reason in words."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    verdict: Verdict
    figure: str
    threshold: str
    reason: str

    @property
    def passed(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict == "PASS"


def overall(checks: list[Check]) -> Verdict:
    """FAIL if any check failed, else INCONCLUSIVE if any could not tell, else PASS."""
    verdicts = {check.verdict for check in checks}
    return "FAIL" if "FAIL" in verdicts else "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"
