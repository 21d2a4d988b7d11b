"""Opening a run in the ledger, and deciding over it: what the steps and the command line call."""

import getpass
from collections import Counter
from datetime import UTC, datetime
from time import perf_counter
from typing import cast, get_args

from ..config import RunConfig
from ..config.identity import identity
from ..config.plan import RunPlan
from ..errors import UserError
from ..evaluation.result import Evaluation
from ..storage import RunStore
from ..training.result import TrainingResult
from .decision import Decision, classify, decide
from .ledger import EndRecord, Ledger, RunKind, StartRecord, deadline
from .standing import take_standing


def open_run(config_text: str, run_id: str, kind: str = "retrain", submitter: str = "") -> StartRecord:
    """Record a start, as soon as the text parses as YAML and names an experiment and a model.

    A config that is YAML and otherwise wrong is opened too: it will end as rejected, and is counted. A run
    that is open already stays as it was opened: a retried step is the same run.

    Raises:
        UserError: for a text without experiment or model, an unknown kind, or another config's run id.
        S3Error: when the record cannot be written.
    """
    if kind not in get_args(RunKind):
        raise UserError(f"kind = {kind!r}: no kind of run → {', '.join(get_args(RunKind))}")
    named = identity(config_text)
    now = datetime.now(UTC)
    start = StartRecord(
        run_id=run_id,
        created=now,
        kind=cast(RunKind, kind),
        experiment=named.experiment,
        model=named.model,
        submitter=submitter or _user(),
        team=named.team,
        training_digest=named.digests[0],
        policy_digest=named.digests[1],
        deadline=now + deadline(named.budget_hours),
    )
    store = RunStore(named.root, run_id)
    store.store.ensure_bucket(store.prefix)
    opened = Ledger(named.root, named.experiment, named.model).open(start)
    store.store.write(store.prefix / "config.yaml", config_text.encode(), "application/yaml")
    return opened


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def run_gate(config: RunConfig, plan: RunPlan, training: TrainingResult, evaluation: Evaluation) -> Decision:
    """Decide over a run; stores and returns the decision, signed where a key is configured.

    The run itself counts in the standing: with the end that it has in the ledger, or would have now.

    Raises:
        S3Error: when the ledger cannot be read, or the decision not be written.
        UserError: when the key file is no private key.
    """
    started = perf_counter()
    ledger = Ledger(config.storage.uri, config.experiment, config.promotion.model)
    run_class, reason = classify(training_started=True, training=training, evaluation=evaluation, interrupted=False)
    current = end_record(plan.run_id, run_class, reason, training, evaluation)
    standing = take_standing(config.slo, ledger.runs(), current)
    decision = decide(config, plan, training, evaluation, standing)
    decision = decision.model_copy(update={"seconds": perf_counter() - started}).signed()
    RunStore(config.storage.uri, plan.run_id).put("decision", decision)
    return decision


def end_record(
    run_id: str,
    run_class: str,
    reason: str,
    training: TrainingResult | None,
    evaluation: Evaluation | None,
    *,
    decision: Decision | None = None,
    extra_gpu_hours: float = 0.0,
    reached_training: bool = True,
) -> EndRecord:
    """The end of a run, from its documents."""
    return EndRecord.model_validate(
        {
            "run_id": run_id,
            "run_class": run_class,
            "reached_training": reached_training,
            "reason": reason,
            "decision": decision.decision if decision else "",
            "attempts": training.attempts if training else 0,
            "reached_target": bool(evaluation and evaluation.reached_target),
            "lr_sync_errors": training.lr_sync_errors if training else 0,
            "anomalous": bool(training and training.anomalous),
            "events": dict(Counter(event.kind for event in training.events)) if training else {},
            "gpu_hours": (training.gpu_hours if training else 0.0) + extra_gpu_hours,
        }
    )
