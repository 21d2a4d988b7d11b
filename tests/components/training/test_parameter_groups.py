"""Groups of parameters with a rate and a decay of their own: who is in which, what is refused, and a real resume."""

from typing import Any

import pytest
import torch
import yaml
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.config.optimizer import OptimizerConfig
from convergate.components.errors import UserError
from convergate.components.storage import S3Location, S3Store
from convergate.components.telemetry import read_trace
from convergate.components.training.job import Job
from convergate.components.training.launch import launch
from convergate.components.training.optimizer import build_optimizer
from convergate.components.training.result import TrainingResult
from torch import nn


def model() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.ModuleDict({"stem": nn.Linear(3, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    parts["body"].bias.requires_grad_(False)
    return parts


def config(groups: list[dict[str, Any]], kind: str = "sgd") -> OptimizerConfig:
    return OptimizerConfig.model_validate({"kind": kind, "weight_decay": 0.1, "groups": groups})


def names(whole: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of each group's parameters."""
    known = {id(parameter): name for name, parameter in whole.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_first_group_that_matches_a_whole_name_takes_it(kind: str) -> None:
    groups = [
        {"match": "head.*", "lr_scale": 10.0, "weight_decay": 0.0},
        {"match": r".*\.bias", "weight_decay": 0.0},
        {"match": "body.weight", "lr_scale": 0.5},
    ]
    whole = model()
    optimizer = build_optimizer(whole, config(groups, kind), lr=0.2)
    assert names(whole, optimizer) == [["stem.weight"], ["head.weight", "head.bias"], ["stem.bias"], ["body.weight"]]
    found = [(group.get("lr_scale"), group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(None, 0.1), (10.0, 0.0), (1.0, 0.0), (0.5, 0.1)]


def test_without_groups_all_that_train_are_in_one() -> None:
    whole = model()
    (found,) = names(whole, build_optimizer(whole, config([]), lr=0.2))
    assert found == ["stem.weight", "stem.bias", "body.weight", "head.weight", "head.bias"]


def test_groups_for_everything_leave_the_first_empty() -> None:
    whole = model()
    optimizer = build_optimizer(whole, config([{"match": "head.*", "lr_scale": 3.0}, {"match": ".*"}]), lr=0.2)
    assert [len(group) for group in names(whole, optimizer)] == [0, 2, 3]
    sum(parameter.sum() for parameter in whole.parameters()).backward()
    before = whole["head"].bias.clone()
    optimizer.step()
    assert not torch.equal(whole["head"].bias, before)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["head.*", "heads.*"],
            "optimizer.groups.1.match = 'heads.*': matches no parameter that trains"
            " → the whole name of one, such as stem.weight",
        ),
        (["head"], "optimizer.groups.0.match = 'head': matches no parameter that trains"),
        (["body.bias"], "optimizer.groups.0.match = 'body.bias': matches no parameter that trains"),
        (
            [".*", "head.*"],
            "optimizer.groups.1.match = 'head.*': groups before it take all that it matches"
            " → put it before them, or leave it out",
        ),
        (
            ["head.weight", "head.bias", "head.*"],
            "optimizer.groups.2.match = 'head.*': groups before it take all that it matches",
        ),
    ],
)
def test_a_group_that_gets_nothing_is_one_line(patterns: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_optimizer(model(), config([{"match": pattern} for pattern in patterns]), lr=0.2)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


RUN: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "digits",
    "task": {"factory": "convergate.components.task.digits:DigitsTask", "params": {"width": 8}},
    "optimizer": {
        "kind": "adamw",
        "groups": [{"match": "head.*", "lr_scale": 5.0, "weight_decay": 0.0}, {"match": ".*bias"}],
    },
    "schedule": {
        "kind": "one_cycle",
        "lr0": 0.01,
        "lr_min": 0.0001,
        "total_steps": 16,
        "warmup": {"steps": 6},
        "momentum": {"cycle": True},
    },
    "training": {"batch_size": 64, "eval_every_steps": 8},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "digits"},
}


def run(s3: str, run_id: str, **options: Any) -> TrainingResult:
    job = Job(
        run_id=run_id,
        config_text=yaml.safe_dump(RUN),
        seed=5,
        checkpoint_uri=f"{s3}/checkpoints",
        trace_uri=f"{s3}/{run_id}/trace",
        result_uri=f"{s3}/{run_id}/training.json",
        checkpoint_every=4,
        **options,
    )
    launch([job], 1, max_restarts=1, on_line=lambda line: None)
    return TrainingResult.from_json(S3Store().read(S3Location.parse(job.result_uri)))


def test_after_kill_9_groups_and_momentum_go_on_as_if_nothing_had_happened(s3: str) -> None:
    whole, killed = run(s3, "whole"), run(s3, "killed", kill_at_step=10)
    assert (whole.attempts, killed.attempts, whole.max_lr_deviation) == (1, 2, 0)
    manifests = [read_manifest(one.checkpoint_uri)[0] for one in (whole, killed)]
    checksums = [[stored.crc64nvme for stored in manifest.objects] for manifest in manifests]
    assert checksums[0] == checksums[1]
    fields = manifests[0].state["scheduler"]["schedule"]
    assert (fields["kind"], fields["momentum.kind"], fields["momentum.high"]) == (
        "OneCycleSchedule",
        "MomentumCycle",
        "0.9",
    )
    columns = ["step", "lr", "loss", "grad_norm"]
    assert read_trace(killed.trace_uri)[columns].equals(read_trace(whole.trace_uri)[columns])
