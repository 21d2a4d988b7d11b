"""A canary for real: worker processes, a kill -9 and a restore, on the digits, with checkpoints on S3."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import yaml
from convergate.canary import CanaryReport
from convergate.canary.run import COMPRESSED_STEPS, accumulation, run_canary
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.config import RunConfig, parse_config
from convergate.components.config.models import MIN_DRILL_STEPS
from convergate.components.config.plan import make_plan
from convergate.components.config.preflight import Facts, InitialWeights
from convergate.components.errors import ExitCode, UserError
from convergate.components.storage import RunStore, S3Error, S3Store
from convergate.components.task.digits import DigitsTask
from convergate.components.telemetry import read_trace
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ..checkpoints import commit

NUM_TRAIN = 1258
CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "digits",
    "seed": 3,
    "task": {"factory": "convergate.components.task.digits:DigitsTask", "params": {"width": 4}},
    "optimizer": {"kind": "sgd", "grad_clip_norm": 1.0},
    "schedule": {"lr0": 0.1, "lr_min": 0.001, "total_steps": 400, "warmup": {"steps": 4}},
    "training": {"batch_size": 32, "eval_every_steps": 1000},
    "distributed": {"procs_per_node": 4},
    "canary": {"min_steps": 9, "procs_per_node": 2},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "digits"},
}


def config_text(root: str, **changes: dict[str, Any]) -> str:
    config = copy.deepcopy(CONFIG)
    config |= {"storage": {"uri": root}, "checkpoint": {"uri": f"{root}/checkpoints"}}
    for section, values in changes.items():
        config[section] = {name: value for name, value in (config[section] | values).items() if value != "none"}
    return yaml.safe_dump(config)


def canary(root: str, run_id: str = "run-1", **changes: dict[str, Any]) -> CanaryReport:
    text = config_text(root, **changes)
    config = parse_config(text)
    return run_canary(config, text, make_plan(config, run_id), on_line=lambda _: None)


def verdicts(report: CanaryReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


PASSING = {
    "finite, first steps": "PASS",
    "falling loss": "PASS",
    "bounded gradient": "PASS",
    "LR on plan, first steps": "PASS",
    "LR on plan, compressed schedule": "PASS",
    "whole schedule runs, compressed": "PASS",
    "ranks agree": "PASS",
    "save, kill -9, restore": "PASS",
    "projected cost": "PASS",
}


def test_a_good_config_passes_also_when_the_step_is_tried_again(s3: str) -> None:
    """An odd number of steps, counted in epochs, over what an earlier try of the step left."""
    prefix = RunStore(s3, "run-1").prefix / "canary"
    S3Store().create(prefix / "earlier/first-steps/result.json.attempts/001.json", b"{}")
    report = canary(s3, schedule={"total_steps": "none", "total_epochs": 5})
    assert verdicts(report) == PASSING
    assert (report.verdict, report.reason, report.steps, report.world_size) == ("PASS", "", 9, 2)
    assert report.device == "cpu"

    trace = read_trace(report.trace_uri, every_attempt=True)
    assert trace.groupby(["attempt", "rank"])["step"].agg(["min", "max"]).to_numpy().tolist() == [
        [0, 7],
        [0, 7],
        [5, 8],
        [5, 8],
    ]
    assert set(trace["samples"]) == {16}
    drill = next(check for check in report.checks if check.name == "save, kill -9, restore")
    assert drill.figure == "6 of 6 repeated steps equal"
    mechanics = read_trace(report.trace_uri.replace("first-steps", "compressed"))
    assert sorted(mechanics["step"].unique()) == list(range(COMPRESSED_STEPS))

    total_steps = 5 * (NUM_TRAIN // 32)
    assert report.projected_gpu_hours == pytest.approx(report.seconds_per_step * total_steps * 2 / 3600)
    assert report.projected_seconds == pytest.approx(report.seconds_per_step * total_steps * 2 / 4)
    assert report.summary.startswith("PASS   projected: ")
    assert report.seconds > 0
    assert RunStore(s3, "run-1").get("canary", CanaryReport) == report
    assert report.save_seconds > 0
    assert 0 < report.gpu_hours < report.seconds * 2 / 3600
    left = [place.key.removeprefix(prefix.key) for place in S3Store().list(prefix)]
    assert not any("checkpoints" in key or "earlier" in key for key in left)


def trained(root: str) -> InitialWeights:
    """A checkpoint of a model that was trained for 60 steps."""
    task = DigitsTask(width=4)
    torch.manual_seed(0)
    model: Any = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data: Any = task.dataset("train")
    batches = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    for _, batch in zip(range(60), itertools.chain.from_iterable(itertools.repeat(batches)), strict=False):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    ref = commit(f"{root}/checkpoints", "other", tensors, step=60)
    return InitialWeights(ref.uri, read_manifest(ref.uri)[1])


def test_the_first_steps_begin_with_the_runs_own_weights(s3: str) -> None:
    """And are held to where random ones begin, as the compressed schedule does; they go on after the kill."""
    initial = trained(s3)
    text = config_text(s3, training={"init_from": initial.uri})
    config = parse_config(text)
    report = run_canary(config, text, make_plan(config, "run-1", Facts(initial=initial)), on_line=lambda _: None)
    assert verdicts(report) == PASSING
    mechanics = read_trace(report.trace_uri.replace("first-steps", "compressed"))
    first, untrained = (trace[trace["step"] == 0]["loss"].mean() for trace in (read_trace(report.trace_uri), mechanics))
    assert first < untrained / 4
    falling = next(check for check in report.checks if check.name == "falling loss")
    assert falling.threshold.endswith(f"half of the way to {untrained:.4g}, untrained")


ONE_PROCESS = {"procs_per_node": 1}


def test_a_rate_that_diverges_fails(s3: str) -> None:
    report = canary(
        s3,
        task={"params": {"width": 8}},
        optimizer={"grad_clip_norm": None},
        schedule={"lr0": 50, "warmup": {"steps": 0}},
        canary=ONE_PROCESS,
    )
    found = verdicts(report)
    assert (
        report.verdict == found["finite, first steps"] == found["falling loss"] == found["bounded gradient"] == "FAIL"
    )
    assert found["LR on plan, first steps"] == found["ranks agree"] == "PASS"
    assert found["save, kill -9, restore"] == "INCONCLUSIVE"
    assert "loss or gradient is not finite at step" in report.reason
    assert report.summary == f"FAIL   {report.reason.partition(': ')[2]}"
    assert "the run ended before the kill: " in report.to_markdown()
    assert math.isfinite(report.projected_gpu_hours)
    assert RunStore(s3, "run-1").get("canary", CanaryReport).verdict == "FAIL"


def test_workers_that_s3_refuses_leave_it_undecided(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process keeps the client that it has; its workers get a secret that is wrong."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    report = canary(s3, canary=ONE_PROCESS)
    assert (report.verdict, verdicts(report)) == ("INCONCLUSIVE", {"workers run": "INCONCLUSIVE"})
    assert "permission denied" in report.reason
    assert "wrong" not in report.reason
    assert (report.projected_gpu_hours, report.device) == (0, "unknown")


def test_an_s3_that_refuses_from_the_start_is_an_outside_failure(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(S3Error, match="permission denied") as caught:
        canary(s3)
    assert caught.value.exit_code == ExitCode.OUTSIDE


def parsed(batch_size: int, world_size: int, procs: int, grad_accumulation: int = 1) -> RunConfig:
    text = config_text(
        "s3://bucket",
        training={"batch_size": batch_size, "grad_accumulation": grad_accumulation},
        distributed={"procs_per_node": world_size},
        canary={"procs_per_node": procs},
    )
    return parse_config(text)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8))
def test_accumulation_keeps_the_global_batch_and_the_micro_batch(
    world_size: int, accumulated: int, procs: int, micro: int
) -> None:
    batch_size = world_size * accumulated * micro * procs
    found = accumulation(parsed(batch_size, world_size, procs, accumulated))
    assert batch_size % (procs * found) == 0
    assert batch_size // (procs * found) <= batch_size // (world_size * accumulated)


def test_a_batch_that_does_not_divide_is_said_and_is_not_looped_over(s3: str) -> None:
    message = "canary.procs_per_node = 4: training.batch_size = 9 does not divide over them → at most 3"
    with pytest.raises(UserError) as caught:
        canary(s3, training={"batch_size": 9}, distributed={"procs_per_node": 1}, canary={"procs_per_node": 4})
    assert str(caught.value) == message


def test_a_run_too_short_for_the_drill_is_undecided_and_told_why(s3: str) -> None:
    schedule = {"total_steps": MIN_DRILL_STEPS - 1, "warmup": {"steps": 0}}
    report = canary(s3, schedule=schedule, canary=ONE_PROCESS)
    assert (report.steps, report.verdict) == (MIN_DRILL_STEPS - 1, "INCONCLUSIVE")
    assert report.reason == ("save, kill -9, restore: 3 steps are too few for it → canary.min_steps: 4 or more")
