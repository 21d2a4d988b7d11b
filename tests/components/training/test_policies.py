"""What a run does about losses that are not finite, plateaus and an early end, in two real processes."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.checkpoint import CheckpointStore
from convergate.components.checkpoint.reading import load_model_state, read_manifest
from convergate.components.config import parse_config
from convergate.components.schedule import ScheduleEvent, build_schedule, with_events
from convergate.components.storage import S3Location, S3Store
from convergate.components.telemetry import read_events, read_trace
from convergate.components.training.job import Job
from convergate.components.training.launch import launch
from convergate.components.training.result import TrainingResult

CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "policies",
    "task": {"factory": "faulty:Faulty", "params": {}},
    "optimizer": {"kind": "sgd", "grad_clip_norm": 1.0},
    "schedule": {"lr0": 0.1, "lr_min": 0.001, "total_steps": 24, "warmup": {"steps": 4}},
    "training": {"batch_size": 32, "eval_every_steps": 4},
    "distributed": {"procs_per_node": 2},
    "checkpoint": {"every_steps": 8},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "policies"},
}
FAULTY = '''
import os
import time
from convergate.components.checkpoint import CheckpointError, CheckpointRef
from convergate.components.checkpoint.reading import read_marker
from convergate.components.storage import S3Store
from convergate.components.task.tabular import TabularTask

class Faulty(TabularTask):
    """Rank 1 finds NaN in its loss when it is called for the time that `bad` names, counted over rollbacks too.

    Rank 0 spoils a checkpoint, once it is committed, before that of step 12 is gone on from.
    """
    def __init__(self, bad=(), spoils="", **params):
        super().__init__(**params)
        self.bad, self.spoils, self.calls = bad, spoils, -1
    def loss(self, model, batch):
        self.calls += 1
        if os.environ["RANK"] == "0" and self.calls == 12 and self.spoils:
            spoil(CheckpointRef.parse(self.spoils))
        bad = os.environ["RANK"] == "1" and self.calls in self.bad
        return super().loss(model, batch) * (float("nan") if bad else 1.0)

def spoil(ref):
    while True:
        try:
            folder = ref.root / read_marker(ref.uri).folder
        except CheckpointError:
            time.sleep(0.02)
            continue
        return S3Store().write(folder / "rank-00000.bin", b"spoiled")
'''
RESTARTS = {"kind": "cosine_restarts", "restarts": {"cycle_steps": 20}}
CASES: dict[str, dict[str, Any]] = {
    "skipped": {"task.params": {"bad": [5]}, "training.max_skipped_updates": 1},
    "skipped too often": {"task.params": {"bad": [5, 7]}, "training.max_skipped_updates": 1},
    "rolled back": {"task.params": {"bad": [13]}, "training.rollback": {"max": 1, "lr_scale": 0.5}},
    # Call 14 is step 8 again, call 19 step 13.
    "rolled back too often": {"task.params": {"bad": [13, 19]}, "training.rollback": {"max": 1, "lr_scale": 0.5}},
    "rolled back past its own step": {"task.params": {"bad": [16]}, "training.rollback": {"max": 1}},
    "rolled back past a damaged one": {
        "task.params": {
            "bad": [13],
            "spoils": "s3://policies/checkpoints/rolled-back-past-a-damaged-one/attempt-001-step-000000012",
        },
        "training.rollback": {"max": 1, "lr_scale": 0.5},
        "checkpoint.every_steps": 4,
    },
    "nowhere to roll back to": {"task.params": {"bad": [3]}, "training.rollback": {}},
    "ended early": {
        "training.early_stopping": {"metric": "val_accuracy", "mode": "max", "patience": 2, "min_delta": 1.0}
    },
    "restarted": {
        "schedule.kind": "cosine_restarts",
        "schedule.restarts": {
            "cycle_steps": 20,
            "scale": 0.5,
            "on_plateau": {"metric": "val_loss", "patience": 1, "max": 1, "threshold": 100.0},
        },
    },
    "reduced": {
        "schedule.kind": "plateau",
        "schedule.lr_min": 0.03,
        "schedule.plateau": {"metric": "val_loss", "patience": 1, "factor": 0.5, "threshold": 100.0},
    },
    "fp16": {"training.precision": "fp16", "optimizer.grad_clip_norm": None},
}


def _config(changes: dict[str, Any]) -> str:
    config = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        section, _, key = path.partition(".")
        config[section][key] = value
    return yaml.safe_dump(config)


@pytest.fixture(scope="module")
def results(rclone_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingResult]:
    """Every case, one after the other in one launch."""
    folder: Path = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.py").write_text(FAULTY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in rclone_environment.items():
            patch.setenv(name, value)
        S3Store().ensure_bucket(S3Location.parse("s3://policies"))
        jobs = {
            case: Job(
                run_id=case.replace(" ", "-"),
                config_text=_config(changes),
                seed=5,
                checkpoint_uri="s3://policies/checkpoints",
                trace_uri=f"s3://policies/{case.replace(' ', '-')}/trace",
                result_uri=f"s3://policies/{case.replace(' ', '-')}/training.json",
            )
            for case, changes in CASES.items()
        }
        launch(list(jobs.values()), 2, 0, on_line=lambda line: None)
        store = S3Store()
        return {
            case: TrainingResult.from_json(store.read(S3Location.parse(job.result_uri))) for case, job in jobs.items()
        }


@pytest.fixture(autouse=True)
def _server(rclone_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rclone_environment.items():
        monkeypatch.setenv(name, value)


def _weights(result: TrainingResult) -> list[str]:
    """The checksums of everything that was saved: model, optimizer, random state."""
    return [stored.crc64nvme for stored in read_manifest(result.checkpoint_uri)[0].objects]


def _kinds(result: TrainingResult) -> list[tuple[str, int]]:
    return [(event.kind, event.step) for event in result.events]


def test_a_loss_that_is_not_finite_is_skipped_on_every_rank_and_the_rate_goes_on(
    results: dict[str, TrainingResult],
) -> None:
    result = results["skipped"]
    assert (result.status, result.final_step, result.max_lr_deviation) == ("completed", 24, 0)
    assert ("update_skipped", 5) in _kinds(result)
    assert (result.anomalous, result.untreated) == (True, [])
    trace = read_trace(result.trace_uri)
    skipped = trace[~trace["applied"]]
    assert list(zip(skipped["rank"], skipped["step"], strict=True)) == [(0, 5), (1, 5)]
    assert math.isnan(skipped["loss"].iloc[1])
    weights = load_model_state(result.checkpoint_uri)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_more_than_the_config_allows_is_a_divergence(results: dict[str, TrainingResult]) -> None:
    result = results["skipped too often"]
    assert (result.status, result.final_step) == ("diverged", 7)
    assert "loss nan" in result.reason
    assert "rank 1" in result.reason


def test_a_divergence_goes_back_to_the_last_checkpoint_with_lower_rates(results: dict[str, TrainingResult]) -> None:
    result = results["rolled back"]
    assert (result.status, result.final_step, result.attempts) == ("completed", 24, 2)
    assert ("rolled_back", 8) in _kinds(result)
    assert ("non_finite_loss", 13) in _kinds(result)
    assert (result.anomalous, result.untreated) == (True, [])
    plan = build_schedule(parse_config(_config({})).schedule, total_steps=24, batch_size=32)
    trace = read_trace(result.trace_uri, every_attempt=True)
    first, second = (trace[(trace["attempt"] == attempt) & (trace["rank"] == 0)] for attempt in (1, 2))
    assert list(first["lr"]) == [plan.lr(step) for step in range(14)]
    after = with_events(plan, [ScheduleEvent(8, "rollback", 0.5)])
    assert list(second["lr"]) == [after.lr(step) for step in range(8, 24)]
    assert second["lr"].iloc[0] == pytest.approx(plan.lr(8) / 2)
    events = read_events(result.trace_uri)
    assert list(zip(events["step"], events["kind"], strict=True)) == [(8, "rolled_back")]
    assert "attempt-002" in result.checkpoint_uri


def test_a_checkpoint_of_the_very_step_that_diverged_is_no_way_out(results: dict[str, TrainingResult]) -> None:
    result = results["rolled back past its own step"]
    assert (result.status, result.attempts) == ("completed", 2)
    assert ("rolled_back", 8) in _kinds(result)


def test_what_a_rollback_left_is_given_up(results: dict[str, TrainingResult]) -> None:
    result = results["rolled back past its own step"]
    store = CheckpointStore("s3://policies/checkpoints", result.run_id)
    assert [(tombstone.attempt, tombstone.step) for tombstone in store.tombstones()] == [(1, 0), (2, 8)]
    assert (1, 16) in [(ref.attempt, ref.step) for ref in store.committed()]
    assert [(ref.attempt, ref.step) for ref in store.live()] == [(2, 24), (2, 16), (2, 8)]


def test_a_rollback_takes_the_checkpoint_before_a_damaged_one(results: dict[str, TrainingResult]) -> None:
    result = results["rolled back past a damaged one"]
    assert _kinds(result) == [("rolled_back", 8), ("checkpoint_damaged", 12), ("non_finite_loss", 13)]
    assert "rank-00000.bin" in result.events[1].detail
    events = read_events(result.trace_uri)
    assert list(zip(events["attempt"], events["step"], events["kind"], strict=True)) == [
        (1, 12, "checkpoint_damaged"),
        (2, 8, "rolled_back"),
    ]
    assert _weights(result) == _weights(results["rolled back"])


def test_rollbacks_are_bounded(results: dict[str, TrainingResult]) -> None:
    result = results["rolled back too often"]
    assert (result.status, result.final_step, result.attempts) == ("diverged", 13, 2)
    assert [kind for kind, _ in _kinds(result)].count("rolled_back") == 1


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(results: dict[str, TrainingResult]) -> None:
    result = results["nowhere to roll back to"]
    assert (result.status, result.final_step, result.attempts) == ("diverged", 3, 1)


def test_a_metric_that_no_longer_improves_ends_the_training_with_its_last_weights(
    results: dict[str, TrainingResult],
) -> None:
    result = results["ended early"]
    assert (result.status, result.verdict, result.final_step) == ("completed", "PASS", 12)
    assert ("early_stopped", 12) in _kinds(result)
    assert "early at step 12" in result.summary
    assert read_manifest(result.checkpoint_uri)[0].step == 12


@pytest.mark.parametrize(("case", "events"), [("restarted", ["restart"]), ("reduced", ["reduce", "reduce"])])
def test_a_plateau_changes_the_rate_on_all_ranks(
    results: dict[str, TrainingResult], case: str, events: list[str]
) -> None:
    result = results[case]
    assert (result.status, result.max_lr_deviation, result.anomalous) == ("completed", 0, False)
    found = [event for event in result.events if event.kind in ("restart", "reduce")]
    assert [event.kind for event in found] == events
    config = parse_config(_config(CASES[case])).schedule
    base = build_schedule(config, total_steps=24, batch_size=32)
    factor = config.plateau.factor if config.plateau is not None else 1.0
    plan = with_events(base, [ScheduleEvent(event.step, event.kind, factor) for event in found])  # type: ignore[arg-type]
    trace = read_trace(result.trace_uri)
    for rank in (0, 1):
        assert list(trace[trace["rank"] == rank]["lr"]) == [plan.lr(step) for step in range(24)]
    assert any(base.lr(step) != plan.lr(step) for step in range(24))


def test_fp16_saves_its_scale(results: dict[str, TrainingResult]) -> None:
    result = results["fp16"]
    assert (result.status, result.anomalous) == ("completed", False)
    trace = read_trace(result.trace_uri)
    overflows = int((~trace[trace["rank"] == 0]["applied"]).sum())
    scale = read_manifest(result.checkpoint_uri)[0].state["scaler"]["scale"]
    assert scale == 65536.0 / 2**overflows
