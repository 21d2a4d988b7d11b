"""A training that begins with the weights of a checkpoint: those and nothing else, of the right model, as they were."""

import json
from typing import Any

import pytest
import torch
from convergate.components.checkpoint import CheckpointError, CheckpointRef, load_model_state
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.errors import ExitCode, UserError
from convergate.components.storage import S3Location, S3Store
from convergate.components.task.digits import DigitsTask
from convergate.components.task.resnet import ResNet
from convergate.components.telemetry import read_trace
from convergate.components.training.data_order import DataOrder
from convergate.components.training.initial_weights import load_initial_weights
from convergate.components.training.job import Job
from convergate.components.training.launch import LaunchError, launch
from convergate.components.training.result import TrainingResult
from torch import nn
from torch.utils.data import default_collate

from ...checkpoints import blob, folder
from ...checkpoints import commit as commit_checkpoint

Checkpoint = tuple[str, str]
SEED = 5
CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "digits",
    "task": {"factory": "convergate.components.task.digits:DigitsTask", "params": {"width": 4}},
    "optimizer": {"kind": "sgd", "grad_clip_norm": 1.0},
    "schedule": {"lr0": 0.1, "lr_min": 0.001, "total_steps": 8},
    "training": {"batch_size": 64, "eval_every_steps": 8},
    "evaluation": {"metric": "accuracy", "target": 0.9},
    "promotion": {"model": "digits"},
}


def seen(width: int = 4, num_classes: int = 10) -> ResNet:
    """A model whose buffers are no longer those of a new one."""
    model = ResNet(width, num_classes)
    model(torch.randn(16, 1, 8, 8))
    return model


def commit(root: str, model: nn.Module, **others: torch.Tensor) -> Checkpoint:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    ref = commit_checkpoint(f"{root}/checkpoints", "other", tensors | others, step=8)
    return ref.uri, read_manifest(ref.uri)[1]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit, buffers included."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, its) for mine, its in pairs)


def test_parameters_and_buffers_are_loaded_in_place(s3: str) -> None:
    source, model = seen(), seen()
    parameters = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    load_initial_weights(model, *commit(s3, source, **{"optim.head.bias.step": torch.ones(())}))
    assert same(model, source)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == parameters


class Longer(nn.Module):
    """What a ResNet is, with a layer more."""

    def __init__(self) -> None:
        super().__init__()
        inner = ResNet(4, 10)
        self.features, self.head, self.extra = inner.features, inner.head, nn.Linear(2, 2)


OTHERS: dict[str, tuple[Any, str]] = {
    "another head": (
        lambda: seen(num_classes=5),
        "head.weight is [10, 16] there and [5, 16] here; head.bias is [10] there and [5] here",
    ),
    "a layer more": (Longer, "it has no extra.weight; it has no extra.bias"),
    "another altogether": (lambda: nn.Linear(2, 3), "it has no weight; it has no bias; the model has no features."),
}


@pytest.mark.parametrize(("make", "misfits"), OTHERS.values(), ids=OTHERS.keys())
def test_another_model_is_refused_and_stays_as_it_was(s3: str, make: Any, misfits: str) -> None:
    source, model = seen(), make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    uri, digest = commit(s3, source)
    with pytest.raises(UserError) as caught:
        load_initial_weights(model, uri, digest)
    assert caught.value.exit_code == ExitCode.USAGE
    assert str(caught.value).startswith(f"training.init_from: {uri} is another model's: {misfits}")
    assert str(caught.value).endswith(" → a checkpoint of this model, or init_from: null")
    assert len(str(caught.value)) < 600
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _ref(uri: str) -> CheckpointRef:
    ref = CheckpointRef.parse(uri)
    assert ref is not None
    return ref


def changed(uri: str) -> None:
    manifest = folder(_ref(uri)) / "manifest.json"
    S3Store().write(manifest, S3Store().read(manifest).replace(b'"step": 8', b'"step": 9'))


def damaged(uri: str) -> None:
    tensors = blob(_ref(uri))
    data = bytearray(S3Store().read(tensors))
    data[-1] ^= 1
    S3Store().write(tensors, bytes(data))


def incomplete(uri: str) -> None:
    S3Store().delete(blob(_ref(uri)))


def gone(uri: str) -> None:
    S3Store().delete(_ref(uri).marker)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (changed, "it was changed"),
        (damaged, "are not those that were written"),
        (incomplete, "rank-00000.bin does not exist"),
        (gone, "is not committed, or deleted"),
    ],
)
def test_what_was_tampered_with_is_not_loaded(s3: str, spoil: Any, cause: str) -> None:
    model = seen()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    uri, digest = commit(s3, seen())
    spoil(uri)
    with pytest.raises(CheckpointError, match=cause) as caught:
        load_initial_weights(model, uri, digest)
    assert caught.value.exit_code == ExitCode.OUTSIDE
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def job(root: str, run_id: str, weights: Checkpoint = ("", ""), strategy: str = "ddp", **options: Any) -> Job:
    return Job(
        run_id=run_id,
        config_text=json.dumps(CONFIG | {"distributed": {"procs_per_node": 2, "strategy": strategy}}),
        seed=SEED,
        checkpoint_uri=f"{root}/checkpoints",
        trace_uri=f"{root}/{run_id}/trace",
        result_uri=f"{root}/{run_id}/training.json",
        checkpoint_every=4,
        init_uri=weights[0],
        init_digest=weights[1],
        **options,
    )


def run(one: Job, num_procs: int = 2) -> TrainingResult:
    launch([one], num_procs, max_restarts=0, on_line=lambda line: None)
    return TrainingResult.from_json(S3Store().read(S3Location.parse(one.result_uri)))


def tensors(result: TrainingResult) -> list[str]:
    """The checksums of everything that was saved: model, optimizer, random state."""
    return [stored.crc64nvme for stored in read_manifest(result.checkpoint_uri)[0].objects]


def first_loss(weights: Checkpoint, world_size: int = 2) -> float:
    """Of a training that begins with these weights, over all ranks."""
    task = DigitsTask(width=4)
    model: Any = task.model()
    model.load_state_dict(load_model_state(*weights))
    data: Any = task.dataset("train")
    batches = [
        next(iter(DataOrder(len(data), batch_size=64, seed=SEED, rank=rank, world_size=world_size)))
        for rank in range(world_size)
    ]
    losses = [task.loss(model.train(), default_collate([data[index] for index in batch])).item() for batch in batches]
    return sum(losses) / world_size


def test_a_training_begins_with_them_and_its_resume_with_its_own(s3: str) -> None:
    """Optimizer, schedule and data order begin anew. The checkpoint is gone when the training is resumed."""
    weights = commit(s3, seen(), **{"optim.head.bias.momentum_buffer": torch.full((10,), torch.nan)})
    whole = run(job(s3, "whole", weights))
    assert (whole.init_uri, whole.init_digest) == weights
    trace = read_trace(whole.trace_uri)
    assert trace[trace["step"] == 0]["loss"].mean() == pytest.approx(first_loss(weights), rel=1e-5)
    assert sorted(trace["step"].unique()) == list(range(8))
    assert (whole.status, whole.max_lr_deviation) == ("completed", 0)

    half = run(job(s3, "halves", weights, stop_at_step=4))
    gone(weights[0])
    resumed = run(job(s3, "halves", weights))
    assert (half.init_uri, half.init_digest) == (resumed.init_uri, resumed.init_digest) == weights
    assert [(event.kind, event.step) for event in resumed.events] == [("resumed", 4)]
    assert tensors(resumed) == tensors(whole)


def test_a_sharded_model_begins_with_them_too(s3: str) -> None:
    weights = commit(s3, seen())
    result = run(job(s3, "sharded", weights, strategy="fsdp2", stop_at_step=1))
    trace = read_trace(result.trace_uri)
    assert trace["loss"].mean() == pytest.approx(first_loss(weights), rel=1e-5)
    assert (result.init_uri, result.init_digest) == weights


def test_what_a_checkpoint_began_with_is_what_a_resume_of_it_says(s3: str) -> None:
    """A run that continues another's checkpoint has that one's beginning, whatever its own plan says."""
    weights = commit(s3, seen())
    first = run(job(s3, "first", weights, stop_at_step=4), num_procs=1)
    second = run(job(s3, "second", resume_from=first.checkpoint_uri), num_procs=1)
    assert (second.init_uri, second.init_digest) == weights


@pytest.mark.parametrize(
    ("spoil", "reason", "code"),
    [
        (damaged, "are not those that were written", ExitCode.OUTSIDE),
        (lambda uri: None, "is another model's: head.weight is [5, 16] there and [10, 16] here", ExitCode.USAGE),
    ],
)
def test_workers_that_cannot_load_them_end_before_the_first_step(
    s3: str, spoil: Any, reason: str, code: ExitCode
) -> None:
    weights = commit(s3, seen(num_classes=10 if code == ExitCode.OUTSIDE else 5))
    spoil(weights[0])
    one = job(s3, "mine", weights)
    with pytest.raises(LaunchError) as caught:
        launch([one], 1, max_restarts=0, on_line=lambda line: None)
    assert reason in str(caught.value)
    assert caught.value.exit_code == code
    assert list(S3Store().list(S3Location.parse(one.trace_uri))) == []
