"""The decision: REJECT, HOLD, CHALLENGER or PROMOTE, bound to the digests of config, policy and checkpoint."""

import json
import os
from pathlib import Path
from typing import Literal

from ..config import Check, RunConfig, config_digests
from ..config.document import Document
from ..config.plan import RunPlan
from ..config.signature import SignatureError, sign, verify
from ..evaluation.result import Evaluation
from ..training.result import TrainingResult
from .ledger import RunClass
from .standing import Standing

Outcome = Literal["REJECT", "HOLD", "CHALLENGER", "PROMOTE"]
KEY_VARIABLE = "CONVERGATE_DECISION_KEY"
"""Names the Ed25519 key file that signs decisions."""


class Decision(Document):
    """What was decided, why, and over exactly what."""

    decision: Outcome
    reasons: list[str]
    checks: list[Check]
    standing: Standing
    training_digest: str
    policy_digest: str
    checkpoint_uri: str
    checkpoint_digest: str
    champion_uri: str | None = None
    seed: str
    commit: str | None = None
    team: str
    contact: str
    signature: str | None = None
    """Ed25519 over the canonical JSON of all the rest; None where no key is configured."""

    @property
    def sets_alias(self) -> bool:
        """Whether an alias may be set."""
        return self.decision in ("PROMOTE", "CHALLENGER")

    def lines(self) -> list[str]:
        """The decision as a terminal shows it."""
        passed = sum(check.passed for check in self.checks)
        candidate = "PASS" if passed == len(self.checks) else "FAIL"
        return [
            f"candidate  {candidate:<13}{passed} of {len(self.checks)} checks",
            f"SLO        {self.standing.verdict:<13}{self.standing.slis[0].line}",
            *(f"{self.decision:<24}{reason}" for reason in self.reasons),
        ]

    def signed(self) -> "Decision":
        """The same decision with a signature, where the environment names a key."""
        key = os.environ.get(KEY_VARIABLE)
        return self.model_copy(update={"signature": sign(self._body(), Path(key))}) if key else self

    def verify(self, key_file: Path) -> None:
        """Check the signature.

        Raises:
            SignatureError: when there is none, or it does not match.
        """
        if self.signature is None:
            raise SignatureError(f"the decision of run {self.run_id} is not signed")
        verify(self._body(), self.signature, key_file)

    def _body(self) -> object:
        return json.loads(self.model_copy(update={"signature": None}).model_dump_json())


def decide(
    config: RunConfig, plan: RunPlan, training: TrainingResult, evaluation: Evaluation, standing: Standing
) -> Decision:
    """Decide, by the policy of the config; nothing outside the arguments is looked at but the signing key."""
    checks = [*candidate_checks(config, plan, training), *evaluation.checks]
    outcome, reasons = _outcome(config, checks, standing)
    digests = config_digests(config)
    return Decision(
        run_id=plan.run_id,
        summary=f"{outcome}: {reasons[0]}",
        decision=outcome,
        reasons=reasons,
        checks=checks,
        standing=standing,
        training_digest=digests.training,
        policy_digest=digests.policy,
        checkpoint_uri=evaluation.checkpoint_uri,
        checkpoint_digest=evaluation.checkpoint_digest,
        champion_uri=evaluation.champion_uri,
        seed=plan.seed,
        commit=plan.commit,
        team=config.owner.team,
        contact=config.owner.contact,
    ).signed()


def _outcome(config: RunConfig, checks: list[Check], standing: Standing) -> tuple[Outcome, list[str]]:
    failed = [f"{check.name}: {check.reason or check.figure}" for check in checks if not check.passed]
    if failed:
        return "REJECT", failed
    breached = [f"{sli.name}: {sli.line}" for sli in standing.slis if sli.verdict == "FAIL"]
    if standing.budget_spent:
        breached.append(f"error budget: {standing.failures} failures, {standing.allowed_failures} allowed in the window")
    if breached:
        return "HOLD", breached
    if standing.total < config.slo.min_runs:
        return "CHALLENGER", [f"history is short: {standing.total} of at least {config.slo.min_runs} runs"]
    unproven = [f"{sli.name} is not proven yet: {sli.line}" for sli in standing.slis if sli.verdict != "PASS"]
    if config.slo.require == "proven" and unproven:
        return "CHALLENGER", unproven
    return "PROMOTE", [f"the candidate passes, and the SLO is {'proven' if not unproven else 'not breached'}"]


def candidate_checks(config: RunConfig, plan: RunPlan, training: TrainingResult) -> list[Check]:
    """What the training says of the candidate, beside what evaluation says."""
    digests = config_digests(config)
    same = (plan.training_digest, plan.policy_digest) == (digests.training, digests.policy)
    limit = config.budget.max_gpu_hours
    return [
        _check("config unchanged", same, digests.short, plan.training_digest[:4], "the config is not the one that ran"),
        _check("training completed", training.status == "completed", training.status, "completed", training.reason),
        _check(
            "LR on plan",
            training.max_lr_deviation == 0,
            f"{training.max_lr_deviation:g}",
            "0",
            f"the applied rate was off plan by up to {training.max_lr_deviation:g}",
        ),
        _check(
            "no LR sync errors", training.lr_sync_errors == 0, str(training.lr_sync_errors), "0", "ranks disagreed"
        ),
        _check("no anomaly", not training.anomalous, str(training.anomalous), "False", "a detector fired"),
        _check(
            "within budget",
            training.gpu_hours <= limit,
            f"{training.gpu_hours:.3g} GPU-h",
            f"≤ {limit:g}",
            "the run cost more than its budget",
        ),
    ]


def _check(name: str, good: bool, figure: str, threshold: str, reason: str) -> Check:
    verdict: Literal["PASS", "FAIL"] = "PASS" if good else "FAIL"
    return Check(name=name, verdict=verdict, figure=figure, threshold=threshold, reason="" if good else reason)


def classify(
    *, training_started: bool, training: TrainingResult | None, evaluation: Evaluation | None, interrupted: bool
) -> tuple[RunClass, str]:
    """The class in which a run ended, and why, from what it left behind."""
    if interrupted or (training is not None and training.status == "interrupted"):
        return "interrupted", "interrupted"
    if not training_started:
        return "rejected", "stopped before training"
    if training is None:
        return "not_converged", "training left no result"
    if training.status != "completed":
        return "not_converged", training.reason or training.status
    if evaluation is None:
        return "not_converged", "not evaluated"
    if not evaluation.reached_target:
        return "not_converged", f"{evaluation.metric} {evaluation.value:.4g}, target {evaluation.target:g}"
    if training.attempts > 1:
        return "not_converged", f"converged in attempt {training.attempts}; first attempts count"
    if training.lr_sync_errors:
        return "not_converged", f"{training.lr_sync_errors} LR sync errors"
    return "converged", ""
