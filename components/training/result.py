"""TrainingResult: what `train` gives to evaluation, the ledger and the report."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..config.document import Document, Verdict

DEFAULT_GRACE_SECONDS = 30
"""Of a Kubernetes pod."""
UPDATE_SECONDS = 10
"""For what comes before and after a save: the update in flight, the trace, the result."""


def grace_seconds(save_seconds: float) -> int:
    """What a pod has to be given after SIGTERM, whose longest save took so long.

    Twice that, `UPDATE_SECONDS`, and never less than Kubernetes' own default.
    """
    return max(DEFAULT_GRACE_SECONDS, math.ceil(2 * save_seconds) + UPDATE_SECONDS)


class Event(BaseModel):
    """Something worth a mark on the report's plots."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    kind: str
    """For example `resumed`, `non_finite_loss`, `lr_sync_error`, `interrupted`."""
    detail: str


class TrainingResult(Document):
    """How a training ended. Losses may be non-finite: JSON holds them as the strings `NaN` and `Infinity`."""

    verdict: Verdict
    """PASS when all steps ran and the loss stayed finite."""
    reason: str
    status: Literal["completed", "diverged", "lr_sync_error", "interrupted", "failed"]
    failure: Literal["", "user", "outside"] = ""
    """Whose a failure is that no rank could agree on: the config's or task's, or that of S3 or the machines."""
    training_digest: str = ""
    seed: str = ""
    """The run's derived seed, in decimal; with the digest, what makes a training the same one."""
    attempts: int
    """Starts of the worker processes and rollbacks; the first is 1."""
    final_step: int
    total_steps: int
    train_loss: float
    """Mean over the last steps of rank 0, `telemetry.detectors.WINDOW` at most."""
    val_metrics: dict[str, float]
    """The last validation's metrics by name, `loss` among them."""
    max_lr_deviation: float
    """Largest |applied - planned| / planned over all steps and ranks; 0 is on plan."""
    lr_sync_errors: int
    anomalous: bool
    """Whether any attempt saw an anomaly: `ANOMALIES` of `progress`; what the SLO counts."""
    untreated: list[str]
    """Kinds of anomalies in the candidate's own weights: neither rolled back nor skipped, as the config allows."""
    checkpoint_uri: str
    """The committed checkpoint to evaluate."""
    checkpoint_digest: str
    """SHA-256 of its manifest, 64 hex digits."""
    init_uri: str = ""
    """The checkpoint whose weights the training began with, in its first attempt; empty where they were random."""
    init_digest: str = ""
    """SHA-256 of its manifest."""
    trace_uri: str
    """The prefix of the trace."""
    world_size: int
    device: str
    train_seconds: float
    """Time inside the loop of the last attempt, in seconds."""
    gpu_hours: float
    """Device-hours of all attempts: the time that the processes ran / 3600, without that in a cluster's queue."""
    save_seconds: float = 0.0
    """The longest checkpoint save, in seconds; sizes the grace period on a cluster."""
    events: list[Event] = Field(default_factory=list)

    @property
    def grace_seconds(self) -> int:
        """What `terminationGracePeriodSeconds` has to be at least, for a SIGTERM to end in a checkpoint."""
        return grace_seconds(self.save_seconds)

    def to_markdown(self) -> str:
        """How the training ended, as a person reads it in the UI."""
        lines = [f"**{self.status}** {self.summary}", ""]
        lines += [f"- val {name}: {value:.4g}" for name, value in self.val_metrics.items()]
        lines += [f"- step {event.step}: {event.kind}, {event.detail}" for event in self.events]
        lines += [f"- checkpoint: `{self.checkpoint_uri}`", f"- trace: `{self.trace_uri}`"]
        return "\n".join(lines) + "\n"
