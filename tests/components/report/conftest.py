"""Runs as their documents would tell of them, for the tests of the page."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from convergate.canary.report import CanaryReport
from convergate.components.config import Check, parse_config
from convergate.components.config.plan import RunPlan
from convergate.components.data.report import DataReport, ExpectationResult
from convergate.components.evaluation.result import Evaluation
from convergate.components.promotion.promote import Promotion
from convergate.components.report import RunPage
from convergate.components.schedule import build_schedule
from convergate.components.slo import Decision, EndRecord, LedgerRun, Standing, StartRecord, take_standing
from convergate.components.training.result import Event, TrainingResult

RUN = "digits-20261124-0311"
NOW = datetime(2026, 11, 24, 3, 20, tzinfo=UTC)
CHECKPOINT = f"s3://convergate/checkpoints/{RUN}/attempt-001/000000400"
CONFIG = """\
schema_version: 1
experiment: digits
seed: 17
owner: {team: vision, contact: vision@example.org}
task: {factory: "convergate.components.task.digits:DigitsTask", params: {}}
optimizer: {kind: sgd, momentum: 0.9, weight_decay: 1.0e-4, grad_clip_norm: 1.0}
schedule:
  kind: cosine_restarts
  lr0: 0.1
  lr_min: 0.001
  total_steps: 400
  warmup: {steps: 20, start_lr: 0.0}
  restarts: {cycle_steps: 120, cycle_mult: 2, scale: 0.8, ramp_steps: 5}
training: {batch_size: 64, eval_every_steps: 50}
distributed: {launcher: local, nodes: 1, procs_per_node: 2}
evaluation: {metric: accuracy, mode: max, target: 0.95}
slo: {window_runs: 50, convergence_rate: 0.80, cost_per_converged_gpu_hours: 0.02}
budget: {max_gpu_hours: 2.0, gpu_hour_price: 2.5}
promotion: {model: digits, alias: champion}
"""
SHARED = {"run_id": RUN, "created": NOW}


def make_trace(num_steps: int = 400, ranks: int = 2, nan_from: int | None = None) -> pd.DataFrame:
    """A trace with a falling loss, one spike, and nothing finite from `nan_from` on."""
    config = parse_config(CONFIG)
    schedule = build_schedule(config.schedule, total_steps=max(num_steps, 400), batch_size=64)
    random = np.random.default_rng(7)
    steps = np.arange(num_steps)
    lr = np.array([schedule.lr(int(step)) for step in steps])
    norm = 0.35 + 2.2 * np.exp(-steps / (num_steps / 6)) * (1 + 0.4 * random.standard_normal(num_steps))
    norm = np.abs(norm) + 0.25 * random.random(num_steps)
    frames = []
    for rank in range(ranks):
        loss = 0.07 + 2.25 * np.exp(-steps / (num_steps / 9)) + 0.05 * np.abs(random.standard_normal(num_steps))
        loss = loss * (1 + 0.12 * random.standard_normal(num_steps))
        frames.append(
            pd.DataFrame(
                {
                    "attempt": 1,
                    "rank": rank,
                    "step": steps,
                    "lr": lr,
                    "lr_planned": lr,
                    "loss": loss,
                    "grad_norm": norm,
                    "step_seconds": 0.021,
                    "samples": 32,
                    "applied": True,
                }
            )
        )
    trace = pd.concat(frames, ignore_index=True)
    if nan_from is not None:
        trace.loc[trace["step"] >= nan_from, ["loss", "grad_norm"]] = np.nan
    return trace


def make_validations(num_steps: int = 400) -> pd.DataFrame:
    rows = []
    for step in range(50, num_steps + 1, 50):
        rows += [
            (step, "accuracy", 0.985 - 0.5 * np.exp(-step / 60)),
            (step, "loss", 0.08 + 1.9 * np.exp(-step / 55)),
        ]
    return pd.DataFrame(rows, columns=["step", "metric", "value"])


def check(name: str, verdict: str = "PASS", figure: str = "0", threshold: str = "0", reason: str = "") -> Check:
    return Check.model_validate(
        {"name": name, "verdict": verdict, "figure": figure, "threshold": threshold, "reason": reason}
    )


def start(**changes: object) -> StartRecord:
    fields = {
        "experiment": "digits",
        "model": "digits",
        "submitter": "ada",
        "team": "vision",
        "deadline": NOW + timedelta(1),
        "training_digest": "3f9a" * 16,
        "policy_digest": "77c2" * 16,
    }
    return StartRecord.model_validate(SHARED | fields | changes)


def end(run_class: str = "converged", **changes: object) -> EndRecord:
    fields = {"run_class": run_class, "reached_training": True, "attempts": 1, "gpu_hours": 0.0091}
    return EndRecord.model_validate(SHARED | fields | changes)


def plan(**changes: object) -> RunPlan:
    fields = {
        "seconds": 0.4,
        "summary": "12 checks",
        "verdict": "PASS",
        "num_checks": 12,
        "experiment": "digits",
        "model": "digits",
        "training_digest": "3f9a" * 16,
        "policy_digest": "77c2" * 16,
        "seed": "2891336453",
        "total_steps": 400,
        "world_size": 2,
        "commit": "4ba2bab0c1d2",
        "image": "convergate@sha256:ab12",
    }
    return RunPlan.model_validate(SHARED | fields | changes)


def data(**changes: object) -> DataReport:
    names = ["columns and types", "number of rows", "no null or non-finite cell", "splits do not overlap"]
    fields = {
        "seconds": 3.1,
        "summary": "1,797 rows, 4 expectations",
        "verdict": "PASS",
        "num_rows": 1797,
        "expectations": [ExpectationResult(name=name, passed=True, observed="0 of 1797 rows") for name in names],
        "rows_by_split": {"train": 1257, "val": 270, "test": 270},
        "classes_by_split": {},
        "data_digest": "d1" * 32,
    }
    return DataReport.model_validate(SHARED | fields | changes)


def bad_data() -> DataReport:
    broken = ExpectationResult(
        name="no null or non-finite cell",
        passed=False,
        observed="3 of 1797 rows",
        rows=[4, 8, 9],
        num_rows=3,
        reason="cells are null, NaN or infinite in 3 rows: 4, 8, 9",
    )
    return data(verdict="FAIL", summary="1,797 rows, 2 expectations, 1 failed", expectations=[broken])


def canary(**changes: object) -> CanaryReport:
    checks = [
        check("finite, first steps", figure="0 of 40 records not finite"),
        check("falling loss", figure="2.31 → 1.02", threshold="rise ≤ 10% of the first quarter's"),
        check(
            "bounded gradient",
            figure="largest 3.1, at first 2.2",
            threshold="≤ 100 × the first quarter's median",
        ),
        check("LR on plan, first steps", figure="0 of 40 off"),
        check("save, kill -9, restore", figure="18 of 18 repeated steps equal", threshold="equal bit for bit"),
        check("projected cost", figure="0.005 GPU-h", threshold="≤ 2 GPU-h (budget.max_gpu_hours)"),
    ]
    fields = {
        "seconds": 6.0,
        "summary": "PASS   projected: 9 s, 0.005 GPU-h",
        "verdict": "PASS",
        "checks": checks,
        "steps": 20,
        "world_size": 2,
        "device": "cpu",
        "seconds_per_step": 0.0225,
        "projected_seconds": 9.0,
        "projected_gpu_hours": 0.005,
        "trace_uri": f"s3://convergate/runs/{RUN}/canary/trace",
    }
    return CanaryReport.model_validate(SHARED | fields | changes)


def failed_canary(verdict: str = "FAIL") -> CanaryReport:
    reason = "the loss rises from 2.31 to 41.7 over the first 20 steps: the learning rate is too high"
    checks = [
        check("finite, first steps", figure="0 of 40 records not finite"),
        check("falling loss", verdict, "2.31 → 41.7", "rise ≤ 10% of the first quarter's", reason),
    ]
    return canary(verdict=verdict, checks=checks, summary=f"{verdict}   {reason}")


def training(**changes: object) -> TrainingResult:
    fields = {
        "seconds": 10.2,
        "summary": "400 steps, val_loss 0.081, LR on plan",
        "verdict": "PASS",
        "reason": "",
        "status": "completed",
        "attempts": 1,
        "final_step": 400,
        "total_steps": 400,
        "train_loss": 0.09,
        "val_metrics": {"accuracy": 0.983, "loss": 0.081},
        "max_lr_deviation": 0.0,
        "lr_sync_errors": 0,
        "anomalous": False,
        "untreated": [],
        "checkpoint_uri": CHECKPOINT,
        "checkpoint_digest": "c4" * 32,
        "trace_uri": f"s3://convergate/runs/{RUN}/trace",
        "world_size": 2,
        "device": "cpu",
        "train_seconds": 8.7,
        "gpu_hours": 0.0057,
    }
    return TrainingResult.model_validate(SHARED | fields | changes)


def evaluation(**changes: object) -> Evaluation:
    fields = {
        "seconds": 1.1,
        "summary": "accuracy 0.981 [0.957, 0.994], target 0.95, no champion yet",
        "verdict": "PASS",
        "checks": [check("finite scores"), check("target", figure="0.9815", threshold="≥ 0.95")],
        "metric": "accuracy",
        "value": 0.9815,
        "low": 0.957,
        "high": 0.994,
        "target": 0.95,
        "num_samples": 270,
        "metrics": {"accuracy": 0.9815},
        "checkpoint_uri": CHECKPOINT,
        "checkpoint_digest": "c4" * 32,
        "reached_target": True,
    }
    return Evaluation.model_validate(SHARED | fields | changes)


def standing(converged: int = 3, total: int = 3) -> Standing:
    """The standing after `total` runs, counted by the real code."""
    history = [
        LedgerRun(start(run_id=f"r{i}"), end("converged" if i < converged else "not_converged", run_id=f"r{i}"))
        for i in range(total)
    ]
    return take_standing(parse_config(CONFIG).slo, history)


def decision(outcome: str = "CHALLENGER", *reasons: str, slo: Standing | None = None, **changes: object) -> Decision:
    reasons = reasons or ("history is short: 3 of at least 5 runs",)
    fields = {
        "seconds": 0.3,
        "summary": f"{outcome}: {reasons[0]}",
        "decision": outcome,
        "reasons": list(reasons),
        "checks": [
            check("training completed", figure="completed", threshold="completed"),
            check("LR on plan"),
            *evaluation().checks,
        ],
        "standing": slo or standing(),
        "training_digest": "3f9a" * 16,
        "policy_digest": "77c2" * 16,
        "checkpoint_uri": CHECKPOINT,
        "checkpoint_digest": "c4" * 32,
        "seed": "2891336453",
        "commit": "4ba2bab0c1d2",
        "team": "vision",
        "contact": "vision@example.org",
    }
    return Decision.model_validate(SHARED | fields | changes)


def promotion(alias: str = "challenger") -> Promotion:
    return Promotion.model_validate(
        SHARED
        | {
            "seconds": 2.4,
            "summary": f"digits v3 is `{alias}`",
            "model": "digits",
            "version": "3",
            "alias": alias,
            "uri": f"s3://convergate/releases/digits/{RUN}",
            "digest": "c4" * 32,
        }
    )


def passing(**changes: object) -> RunPage:
    """A run that ends as challenger, with every document."""
    fields = {
        "start": start(),
        "end": end(),
        "plan": plan(),
        "data": data(),
        "canary": canary(),
        "training": training(),
        "evaluation": evaluation(),
        "decision": decision(),
        "promotion": promotion(),
        "trace": make_trace(),
        "validations": make_validations(),
        "config_text": CONFIG,
    }
    return RunPage(RUN, written=NOW, **(fields | changes))  # type: ignore[arg-type]


def canary_rejected() -> RunPage:
    trace = make_trace(20)
    trace["loss"] = 2.3 * np.exp(trace["step"] / 7)
    trace["grad_norm"] = 2.0 * np.exp(trace["step"] / 6)
    closing = end("rejected", reached_training=False, reason="stopped before training", gpu_hours=0.003, attempts=0)
    return stopped(canary=failed_canary(), trace=trace, end=closing)


def stopped(**changes: object) -> RunPage:
    """A run that stopped after the canary, unless told otherwise."""
    nothing = dict.fromkeys(["training", "evaluation", "decision", "promotion", "trace", "validations"])
    return passing(**(nothing | changes))


def interrupted() -> RunPage:
    events = [
        Event(step=200, kind="resumed", detail="attempt 2 from step 200"),
        Event(step=260, kind="interrupted", detail="SIGTERM on rank 1"),
    ]
    result = training(
        verdict="FAIL",
        reason="interrupted by SIGTERM",
        status="interrupted",
        final_step=260,
        attempts=2,
        events=events,
        summary="interrupted at step 260 of 400",
    )
    return stopped(
        training=result,
        trace=make_trace(260),
        validations=make_validations(250),
        end=end("interrupted", attempts=2),
    )


def diverged() -> RunPage:
    trace = make_trace(214)
    late = trace["step"] > 170
    growth = np.exp((trace.loc[late, "step"] - 170) / 5)
    trace.loc[late, "loss"] *= growth
    trace.loc[late, "grad_norm"] *= growth**1.5
    trace.loc[trace["step"] >= 212, ["loss", "grad_norm"]] = np.nan
    events = [
        Event(step=190, kind="exploding_gradient", detail="gradient norm 219, 360 × its median"),
        Event(step=213, kind="non_finite_loss", detail="loss nan, gradient norm nan at lr 0.0312"),
    ]
    result = training(
        verdict="FAIL",
        reason="loss nan, gradient norm nan on rank 0",
        status="diverged",
        final_step=213,
        events=events,
        train_loss=float("nan"),
        anomalous=True,
        summary="diverged at step 213",
    )
    return stopped(
        training=result,
        trace=trace,
        validations=make_validations(200),
        end=end("not_converged", anomalous=True),
    )


@pytest.fixture(scope="session")
def runs() -> SimpleNamespace:
    """Everything of this module: runs and the documents that they are made of."""
    return SimpleNamespace(**globals())
