"""Documents of runs, each as small as its test needs it; a run over a real checkpoint is `save_run`'s."""

from typing import Any

from convergate.canary.report import CanaryReport
from convergate.components.config import Check, RunConfig, config_digests, derive_seed, parse_config
from convergate.components.config.plan import RunPlan
from convergate.components.data.report import DataReport
from convergate.components.evaluation.result import Evaluation
from convergate.components.promotion.promote import Promotion
from convergate.components.slo.decision import Decision
from convergate.components.slo.gate import end_record, open_run, run_gate
from convergate.components.slo.ledger import EndRecord, Ledger
from convergate.components.slo.standing import take_standing
from convergate.components.storage import RunStore
from convergate.components.training.result import TrainingResult

CONFIG = """\
schema_version: 1
experiment: {name}
owner: {{team: vision, contact: vision@example.org}}
task: {{factory: "convergate.components.task.digits:DigitsTask", params: {{width: 4}}}}
schedule: {{kind: cosine, lr0: 0.1, lr_min: 0.001, total_steps: 40, warmup: {{steps: 4}}}}
training: {{batch_size: 64, eval_every_steps: 20}}
checkpoint: {{uri: "{root}/checkpoints"}}
storage: {{uri: "{root}"}}
evaluation: {{metric: accuracy, target: 0.95}}
promotion: {{model: {name}}}
"""
URI, DIGEST = "s3://convergate/checkpoints/run/attempt-001-step-000000040", "ab" * 32


def config_text(root: str = "s3://convergate", name: str = "digits", more: str = "") -> str:
    return CONFIG.format(root=root, name=name) + more


def make_config(root: str = "s3://convergate", name: str = "digits", more: str = "") -> RunConfig:
    return parse_config(config_text(root, name, more))


def check(verdict: str = "PASS", name: str = "target", reason: str = "") -> Check:
    return Check.model_validate(
        {"name": name, "verdict": verdict, "figure": "0.98", "threshold": "≥ 0.95", "reason": reason}
    )


def make_plan(config: RunConfig | None = None, run_id: str = "run", **changes: Any) -> RunPlan:
    config = config or make_config()
    digests = config_digests(config)
    fields = {"run_id": run_id, "verdict": "PASS", "num_checks": 12, "summary": "12 checks", "seconds": 0.5}
    fields |= {"experiment": config.experiment, "model": config.promotion.model, "total_steps": 40, "world_size": 1}
    fields |= {"training_digest": digests.training, "policy_digest": digests.policy}
    return RunPlan.model_validate(fields | {"seed": str(derive_seed(config, run_id))} | changes)


def make_data(run_id: str = "run", **changes: Any) -> DataReport:
    fields = {"run_id": run_id, "verdict": "PASS", "expectations": [], "num_rows": 1797, "seconds": 3.0}
    fields |= {"rows_by_split": {}, "classes_by_split": {}, "data_digest": DIGEST, "summary": "1,797 rows"}
    return DataReport.model_validate(fields | changes)


def make_canary(verdict: str = "PASS", run_id: str = "run", reason: str = "") -> CanaryReport:
    fields = {"run_id": run_id, "verdict": verdict, "checks": [check(verdict, "falling loss", reason)], "steps": 20}
    fields |= {"world_size": 2, "device": "cpu", "seconds_per_step": 0.1, "projected_seconds": 9.0, "seconds": 6.0}
    return CanaryReport.model_validate(
        fields | {"projected_gpu_hours": 0.005, "gpu_hours": 0.004, "trace_uri": "s3://b/t"}
    )


def make_training(run_id: str = "run", **changes: Any) -> TrainingResult:
    fields = {"run_id": run_id, "verdict": "PASS", "reason": "", "status": "completed", "attempts": 1}
    fields |= {"final_step": 40, "total_steps": 40, "train_loss": 0.1, "val_metrics": {}, "world_size": 1}
    fields |= {
        "max_lr_deviation": 0.0,
        "lr_sync_errors": 0,
        "anomalous": False,
        "untreated": [],
        "device": "cpu",
        "seconds": 10.0,
    }
    fields |= {"checkpoint_uri": URI, "checkpoint_digest": DIGEST, "trace_uri": "s3://convergate/runs/run/trace"}
    return TrainingResult.model_validate(fields | {"train_seconds": 1.0, "gpu_hours": 0.5} | changes)


def make_evaluation(run_id: str = "run", **changes: Any) -> Evaluation:
    fields = {"run_id": run_id, "verdict": "PASS", "checks": [check()], "metric": "accuracy", "value": 0.98}
    fields |= {"low": 0.96, "high": 0.99, "target": 0.95, "num_samples": 360, "metrics": {"accuracy": 0.98}}
    fields |= {"checkpoint_uri": URI, "checkpoint_digest": DIGEST, "reached_target": True, "seconds": 1.0}
    return Evaluation.model_validate(fields | changes)


def make_decision(decision: str = "CHALLENGER", reason: str = "history is short", **changes: Any) -> Decision:
    fields = {"run_id": "run", "summary": f"{decision}: {reason}", "decision": decision, "reasons": [reason]}
    fields |= {"checks": [check()], "standing": take_standing(make_config().slo, []), "seed": "1", "team": "vision"}
    fields |= {"training_digest": DIGEST, "policy_digest": DIGEST, "contact": "vision@example.org", "seconds": 0.2}
    return Decision.model_validate(fields | {"checkpoint_uri": URI, "checkpoint_digest": DIGEST} | changes)


def make_promotion(alias: str = "challenger") -> Promotion:
    fields = {"run_id": "run", "model": "digits", "version": "1", "alias": alias, "uri": URI, "digest": DIGEST}
    return Promotion.model_validate(fields | {"summary": f"digits v1 is `{alias}`", "seconds": 5.0})


def make_end(run_class: str = "converged", run_id: str = "run", **changes: Any) -> EndRecord:
    fields = {"run_id": run_id, "run_class": run_class, "reached_training": run_class != "rejected", "attempts": 1}
    return EndRecord.model_validate(fields | {"reached_target": run_class == "converged"} | changes)


def save_start(text: str, run_id: str) -> RunConfig:
    """Open a run in the ledger, as a pipeline's first step does."""
    open_run(text, run_id)
    return parse_config(text)


def save_run(text: str, run_id: str, checkpoint: tuple[str, str] = (URI, DIGEST), **changes: Any) -> RunConfig:
    """A run that was trained, evaluated, decided and closed, with its documents on S3; its config.

    Args:
        text: Its config.
        run_id: Its id.
        checkpoint: URI and digest of what it trained.
        changes: of its evaluation.
    """
    config = save_start(text, run_id)
    made = {"checkpoint_uri": checkpoint[0], "checkpoint_digest": checkpoint[1]}
    plan, training = make_plan(config, run_id), make_training(run_id, **made)
    evaluation = make_evaluation(run_id, **made | changes)
    store = RunStore(config.storage.uri, run_id)
    for name, document in (("plan", plan), ("training", training), ("evaluation", evaluation)):
        store.put(name, document)
    decision = run_gate(config, plan, training, evaluation)
    run_class = "converged" if evaluation.reached_target else "not_converged"
    end = end_record(run_id, run_class, "", training, evaluation, decision=decision)
    Ledger(config.storage.uri, config.experiment, config.promotion.model).close(end)
    return config
