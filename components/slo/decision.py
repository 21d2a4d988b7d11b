"""The decision: REJECT, HOLD, CHALLENGER or PROMOTE, bound to digests of config, policy and checkpoint."""

import json
import os
from pathlib import Path
from typing import Literal

from ..config import Check, RunConfig, config_digests, derive_seed
from ..config.document import Document, Verdict, overall
from ..config.plan import RunPlan
from ..config.signature import SignatureError, sign, verify
from ..evaluation.result import Evaluation
from ..training.result import TrainingResult
from .ledger import RunClass
from .standing import Standing

Outcome = Literal["REJECT", "HOLD", "CHALLENGER", "PROMOTE"]
KEY_VARIABLE = "CONVERGATE_DECISION_KEY"
"""Names the Ed25519 key file that signs decisions."""
LR_TOLERANCE = 1e-12
"""Largest relative deviation of an applied rate that is rounding."""


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
    init_uri: str = ""
    """The checkpoint whose weights the training began with; empty where they were random."""
    init_digest: str = ""
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
        return [
            f"candidate  {overall(self.checks):<14}{passed} of {len(self.checks)} checks",
            f"SLO        {self.standing.verdict:<14}{self.standing.line}",
            *(f"{self.decision:<25}{reason}" for reason in self.reasons),
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
        # Without defaults, as in the config's digests: a key added later breaks no old signature.
        return json.loads(self.model_copy(update={"signature": None}).model_dump_json(exclude_defaults=True))


def decide(
    config: RunConfig, plan: RunPlan, training: TrainingResult, evaluation: Evaluation, standing: Standing
) -> Decision:
    """Decide, by the policy of the config; nothing outside the arguments is looked at. Not signed yet."""
    checks = [*candidate_checks(config, plan, training, evaluation), *evaluation.checks]
    outcome, reasons = _outcome(config, checks, evaluation, standing)
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
        init_uri=training.init_uri,
        init_digest=training.init_digest,
        champion_uri=evaluation.champion_uri,
        seed=plan.seed,
        commit=plan.commit,
        team=config.owner.team,
        contact=config.owner.contact,
    )


def _outcome(
    config: RunConfig, checks: list[Check], evaluation: Evaluation, standing: Standing
) -> tuple[Outcome, list[str]]:
    failed = _reasons("FAIL", checks, evaluation)
    if failed:
        return "REJECT", failed
    held = _reasons("INCONCLUSIVE", checks, evaluation)
    held += [f"{sli.name}: {sli.line}" for sli in standing.slis if sli.verdict == "FAIL"]
    if standing.budget_spent:
        held.append(f"error budget: {standing.failures} failures, {standing.allowed_failures} allowed in the window")
    if held:
        return "HOLD", held
    if standing.total < config.slo.min_runs:
        return "CHALLENGER", [f"history is short: {standing.total} of at least {config.slo.min_runs} runs"]
    unproven = [f"{sli.name} is not proven yet: {sli.line}" for sli in standing.slis if sli.verdict != "PASS"]
    if config.slo.require == "proven" and unproven:
        return "CHALLENGER", unproven
    return "PROMOTE", [f"the candidate passes, and the SLO is {'proven' if not unproven else 'not breached'}"]


def _reasons(verdict: Verdict, checks: list[Check], evaluation: Evaluation) -> list[str]:
    """Why the candidate is not PASS, of one verdict."""
    found = [f"{check.name}: {check.reason or check.figure}" for check in checks if check.verdict == verdict]
    return found or ([f"evaluation {verdict}"] if evaluation.verdict == verdict else [])


def candidate_checks(config: RunConfig, plan: RunPlan, training: TrainingResult, evaluation: Evaluation) -> list[Check]:
    """What plan and training say of the candidate, beside what evaluation says."""
    parted = _parted(config, plan, training, evaluation)
    deviation, errors, hours = training.max_lr_deviation, training.lr_sync_errors, training.gpu_hours
    limit, untreated = config.budget.max_gpu_hours, ", ".join(training.untreated)
    off_plan = f"the applied rate was off plan by up to {deviation:g}"
    return [
        _check("one run", not parted, config_digests(config).short, plan.training_digest[:4], "; ".join(parted)),
        _check(
            "training completed",
            training.status == "completed",
            training.status,
            "completed",
            training.reason,
        ),
        _check("LR on plan", deviation <= LR_TOLERANCE, f"{deviation:g}", f"≤ {LR_TOLERANCE:g}", off_plan),
        _check("no LR sync errors", errors == 0, str(errors), "0", f"ranks disagreed {errors} times"),
        _check("no anomaly", not untreated, untreated or "none", "none", f"a detector saw {untreated}"),
        _check(
            "within budget",
            hours <= limit,
            f"{hours:.3g} GPU-h",
            f"≤ {limit:g}",
            "the run cost more than its budget",
        ),
    ]


def _parted(config: RunConfig, plan: RunPlan, training: TrainingResult, evaluation: Evaluation) -> list[str]:
    """Where the documents are not of one config, one run and one checkpoint."""
    digests = config_digests(config)
    agreements = {
        "the config is not the one that ran": plan.training_digest == digests.training,
        "the policy is not the one that ran": plan.policy_digest == digests.policy,
        "the seed is not the run's own": plan.seed == str(derive_seed(config, plan.run_id)),
        "the training is another run's": training.run_id == plan.run_id,
        "the training began with other weights than the plan's": (
            (training.init_uri, training.init_digest) == (plan.init_uri, plan.init_digest)
        ),
        "the evaluation is another run's": evaluation.run_id == plan.run_id,
        "the checkpoint evaluated is not the one trained": (
            (evaluation.checkpoint_uri, evaluation.checkpoint_digest)
            == (training.checkpoint_uri, training.checkpoint_digest)
        ),
    }
    return [reason for reason, agree in agreements.items() if not agree]


def _check(name: str, good: bool, figure: str, threshold: str, reason: str) -> Check:
    verdict: Literal["PASS", "FAIL"] = "PASS" if good else "FAIL"
    return Check(name=name, verdict=verdict, figure=figure, threshold=threshold, reason="" if good else reason)


def classify(
    *,
    training_started: bool,
    training: TrainingResult | None,
    evaluation: Evaluation | None,
    interrupted: bool,
    infrastructure_evidence: str | None = None,
) -> tuple[RunClass, str]:
    """The class in which a run ended, and why, from what it left behind.

    Args:
        training_started: Whether worker processes were ever started.
        training: What training left, if anything.
        evaluation: What evaluation left, if anything.
        interrupted: Whether somebody stopped the run.
        infrastructure_evidence: What a machine said of its own failure (a lost node, an eviction). It
            explains why there is no result, and never excuses a result that is there.
    """
    completed = training is not None and training.status == "completed"
    if infrastructure_evidence and not (completed and evaluation is not None):
        return "infrastructure", infrastructure_evidence
    if interrupted or (training is not None and training.status == "interrupted"):
        return "interrupted", "interrupted"
    if training is None:
        return (
            ("not_converged", "training left no result")
            if training_started
            else ("rejected", "stopped before training")
        )
    return _class_of_trained(training, evaluation)


def _class_of_trained(training: TrainingResult, evaluation: Evaluation | None) -> tuple[RunClass, str]:
    if training.status != "completed":
        return "not_converged", training.reason or training.status
    if evaluation is None:
        return "not_converged", "not evaluated"
    if not evaluation.reached_target:
        return "not_converged", f"{evaluation.metric} {evaluation.value:.4g}, target {evaluation.target:g}"
    if training.attempts > 1:
        rollbacks = sum(event.kind == "rolled_back" for event in training.events)
        after = f" after {rollbacks} rollback{'s' * (rollbacks > 1)}" if rollbacks else ""
        return "not_converged", f"converged in attempt {training.attempts}{after}; first attempts count"
    if training.lr_sync_errors:
        return "not_converged", f"{training.lr_sync_errors} LR sync errors"
    return "converged", ""
