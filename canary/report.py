"""CanaryReport: the verdict over the short run, with every check's figure, threshold and reason."""

from ..components.config.document import Check, Document, Verdict


class CanaryReport(Document):
    """What the canary measured, and what the full run is projected to cost."""

    verdict: Verdict
    checks: list[Check]
    steps: int
    """Steps of the real schedule that were run."""
    world_size: int
    """Processes that ran them, on all nodes."""
    device: str
    seconds_per_step: float
    """Median over the steps after the first tenth."""
    projected_seconds: float
    projected_gpu_hours: float
    """Device-hours of the full run: projected seconds × processes / 3600."""
    trace_uri: str
    gpu_hours: float = 0.0
    """Device-hours of the canary: the time that its processes ran / 3600, without that in a cluster's queue."""
    save_seconds: float = 0.0
    """The longest checkpoint save, in seconds; sizes the training's grace period on a cluster."""

    @property
    def reason(self) -> str:
        """Why the verdict is not PASS: the first check's reason that made it so."""
        failing = [check for check in self.checks if check.verdict == self.verdict != "PASS"]
        return f"{failing[0].name}: {failing[0].reason}" if failing else ""

    def to_markdown(self) -> str:
        """The checks as a person reads them in the UI."""
        rows = [f"| {c.name} | {c.verdict} | {c.figure} | {c.threshold} | {c.reason} |" for c in self.checks]
        return (
            "\n".join(
                [
                    f"**{self.summary}**",
                    "",
                    "| check | verdict | figure | threshold | reason |",
                    "|---|---|---|---|---|",
                    *rows,
                ]
            )
            + "\n"
        )
