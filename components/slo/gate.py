"""Opening a run in the ledger, and deciding over it: what the steps and the command line call."""

import getpass
from time import perf_counter

import yaml

from ..config import ProblemsError, RunConfig, config_digests, parse_config
from ..config.models import StorageConfig
from ..config.plan import RunPlan
from ..errors import UserError
from ..evaluation.result import Evaluation
from ..storage import RunStore, S3Location
from ..training.result import TrainingResult
from .decision import Decision, classify, decide
from .ledger import EndRecord, Ledger, RunKind, StartRecord
from .standing import take_standing


def open_run(config_text: str, run_id: str, kind: RunKind = "retrain", submitter: str = "") -> StartRecord:
    """Record a start, as soon as the text parses as YAML and names an experiment and a model.

    A config that is YAML and otherwise wrong is opened too: it will end as rejected, and is counted.

    Raises:
        UserError: when the text names no experiment or model.
    """
    root, experiment, model, team, digests = identity(config_text)
    start = StartRecord(
        run_id=run_id,
        kind=kind,
        experiment=experiment,
        model=model,
        submitter=submitter or _user(),
        team=team,
        training_digest=digests[0],
        policy_digest=digests[1],
    )
    ledger = Ledger(root, experiment, model)
    RunStore(root, run_id).store.ensure_bucket(S3Location.parse(root))
    ledger.open(start)
    store = RunStore(root, run_id)
    store.store.write(store.prefix / "config.yaml", config_text.encode(), "application/yaml")
    return start


def identity(config_text: str) -> tuple[str, str, str, str, tuple[str, str]]:
    """Root, experiment, model, team and digests, of a valid config or of whatever YAML names them."""
    try:
        config = parse_config(config_text)
    except ProblemsError:
        pass
    else:
        digests = config_digests(config)
        names = (config.storage.uri, config.experiment, config.promotion.model, config.owner.team)
        return *names, (digests.training, digests.policy)
    try:
        raw = yaml.safe_load(config_text)
        experiment, model = str(raw["experiment"]), str(raw["promotion"]["model"])
        root = str((raw.get("storage") or {}).get("uri", StorageConfig().uri))
        team = str((raw.get("owner") or {}).get("team", ""))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError("the config names no experiment and promotion.model → convergate validate CONFIG") from error
    return root, experiment, model, team, ("", "")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def run_gate(config: RunConfig, plan: RunPlan, training: TrainingResult, evaluation: Evaluation) -> Decision:
    """Decide over a run; stores and returns the decision. The run itself counts in the standing."""
    started = perf_counter()
    ledger = Ledger(config.storage.uri, config.experiment, config.promotion.model)
    run_class, reason = classify(training_started=True, training=training, evaluation=evaluation, interrupted=False)
    current = end_record(plan.run_id, run_class, reason, training, evaluation)
    standing = take_standing(config.slo, ledger.runs(), current)
    decision = decide(config, plan, training, evaluation, standing)
    decision = decision.model_copy(update={"seconds": perf_counter() - started, "signature": None}).signed()
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
            "gpu_hours": (training.gpu_hours if training else 0.0) + extra_gpu_hours,
        }
    )
