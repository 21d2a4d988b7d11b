"""RunPage: everything that is known of a run; what has not happened is None."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ...canary.report import CanaryReport
from ..config import RunConfig, parse_config
from ..config.plan import RunPlan
from ..data.report import DataReport
from ..errors import ConvergateError
from ..evaluation.result import Evaluation
from ..slo.decision import Decision
from ..slo.ledger import EndRecord, StartRecord
from ..training.result import TrainingResult

if TYPE_CHECKING:
    import pandas as pd


class Promoted(Protocol):
    """What the page reads of a promotion; the promotion room stands on the same floor and is not imported."""

    @property
    def seconds(self) -> float:
        """Wall time of the step."""
        ...

    @property
    def summary(self) -> str:
        """One line."""
        ...

    @property
    def model(self) -> str:
        """The registered model."""
        ...

    @property
    def version(self) -> str:
        """Its version."""
        ...

    @property
    def alias(self) -> str:
        """The alias that was set."""
        ...

    @property
    def uri(self) -> str:
        """The released checkpoint."""
        ...

    @property
    def digest(self) -> str:
        """Its digest."""
        ...

    @property
    def audit_uri(self) -> str:
        """The champion record; empty for a challenger."""
        ...


@dataclass(frozen=True)
class RunPage:
    """The documents of one run.

    `trace` has the columns attempt, rank, step, lr, lr_planned, loss, grad_norm, step_seconds and samples; of
    a run that never reached training it may be the canary's. `validations` has the columns step, metric and
    value.
    """

    run_id: str
    start: StartRecord | None = None
    end: EndRecord | None = None
    plan: RunPlan | None = None
    data: DataReport | None = None
    canary: CanaryReport | None = None
    training: TrainingResult | None = None
    evaluation: Evaluation | None = None
    decision: Decision | None = None
    promotion: Promoted | None = None
    trace: "pd.DataFrame | None" = None
    validations: "pd.DataFrame | None" = None
    config_text: str = ""
    written: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When the page is written; a run without an end is held against its deadline at this time."""

    @cached_property
    def config(self) -> RunConfig | None:
        """The config, where its text is valid."""
        try:
            return parse_config(self.config_text)
        except ConvergateError:
            return None

    @property
    def total_steps(self) -> int | None:
        """Updates of the whole run, where they are known."""
        if self.training is not None and self.training.total_steps:
            return self.training.total_steps
        return self.plan.total_steps if self.plan is not None else None

    @property
    def experiment(self) -> str:
        """The experiment's name; empty where no document says it."""
        named = self.start or self.plan
        return named.experiment if named is not None else ""
