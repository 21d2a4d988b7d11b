"""Documents of runs, each as small as its test needs it."""

from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from convergate.components.config import Check, RunConfig, config_digests, derive_seed, parse_config
from convergate.components.config.plan import RunPlan
from convergate.components.evaluation.result import Evaluation
from convergate.components.slo import EndRecord, LedgerRun, StartRecord
from convergate.components.training.result import TrainingResult

CONFIG = """
schema_version: 1
experiment: digits
owner: {team: vision, contact: vision@example.org}
task: {factory: "convergate.components.task.digits:DigitsTask"}
schedule: {lr0: 0.1, total_steps: 40}
training: {batch_size: 64}
evaluation: {metric: accuracy, target: 0.95}
promotion: {model: digits}
"""
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
_number = count()


def make_start(run_id: str = "", **changes: Any) -> StartRecord:
    number = next(_number)
    fields = {"run_id": run_id or f"run-{number}", "created": NOW, "experiment": "digits", "model": "digits"}
    return StartRecord.model_validate(fields | {"deadline": NOW + timedelta(days=36500)} | changes)


def make_end(run_class: str = "converged", run_id: str = "run", **changes: Any) -> EndRecord:
    trained = run_class != "rejected"
    fields = {"run_id": run_id, "run_class": run_class, "reached_training": trained, "attempts": int(trained)}
    return EndRecord.model_validate(fields | {"reached_target": run_class == "converged"} | changes)


def make_run(run_class: str = "converged", kind: str = "retrain", **changes: Any) -> LedgerRun:
    start = make_start(kind=kind)
    return LedgerRun(start, make_end(run_class, start.run_id, **changes))


def make_history(pattern: str, **changes: Any) -> list[LedgerRun]:
    """Newest first: C converged, N not, R rejected, I infrastructure, X interrupted."""
    classes = {
        "C": "converged",
        "N": "not_converged",
        "R": "rejected",
        "I": "infrastructure",
        "X": "interrupted",
    }
    return [make_run(classes[letter], **changes) for letter in pattern]


def make_config(text: str = "") -> RunConfig:
    return parse_config(CONFIG + text)


def make_plan(config: RunConfig, run_id: str = "run", **changes: Any) -> RunPlan:
    digests = config_digests(config)
    fields = {"run_id": run_id, "verdict": "PASS", "num_checks": 1, "experiment": "digits", "model": "digits"}
    fields |= {"training_digest": digests.training, "policy_digest": digests.policy}
    fields |= {
        "seed": str(derive_seed(config, run_id)),
        "total_steps": 40,
        "world_size": 1,
        "commit": "c0ffee",
    }
    return RunPlan.model_validate(fields | changes)


def make_training(run_id: str = "run", **changes: Any) -> TrainingResult:
    fields = {"run_id": run_id, "verdict": "PASS", "reason": "", "status": "completed", "attempts": 1}
    fields |= {"final_step": 40, "total_steps": 40, "train_loss": 0.1, "val_metrics": {}, "world_size": 1}
    fields |= {"max_lr_deviation": 0.0, "lr_sync_errors": 0, "anomalous": False, "untreated": [], "device": "cpu"}
    fields |= {
        "checkpoint_uri": "s3://convergate/c/40",
        "checkpoint_digest": "ab" * 32,
        "trace_uri": "s3://b/t",
    }
    return TrainingResult.model_validate(fields | {"train_seconds": 1.0, "gpu_hours": 0.5} | changes)


def make_evaluation(run_id: str = "run", **changes: Any) -> Evaluation:
    names = ("finite scores", "target", "champion")
    checks = [Check(name=name, verdict="PASS", figure="", threshold="", reason="") for name in names]
    fields = {"run_id": run_id, "verdict": "PASS", "checks": checks, "metric": "accuracy", "value": 0.98}
    fields |= {"low": 0.96, "high": 0.99, "target": 0.95, "num_samples": 360, "metrics": {"accuracy": 0.98}}
    fields |= {
        "checkpoint_uri": "s3://convergate/c/40",
        "checkpoint_digest": "ab" * 32,
        "reached_target": True,
    }
    return Evaluation.model_validate(fields | changes)


@pytest.fixture
def make() -> SimpleNamespace:
    """The makers of documents."""
    return SimpleNamespace(
        config_text=CONFIG,
        start=make_start,
        end=make_end,
        run=make_run,
        history=make_history,
        config=make_config,
        plan=make_plan,
        training=make_training,
        evaluation=make_evaluation,
    )
