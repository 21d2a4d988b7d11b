"""What holds of every shipped task: its data, methods that agree, the same in every process, a model that is served."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
import pytest
import torch
from convergate.components.checkpoint.reading import MODEL_PREFIX, read_manifest
from convergate.components.config import RunConfig, load_config
from convergate.components.data.report import data_digest
from convergate.components.data.validate import validate_table
from convergate.components.promotion.candidate import register_candidate
from convergate.components.promotion.registry import find_or_create_run, mlflow_client
from convergate.components.task import SPLITS, Task, load_task

from ...checkpoints import commit

CONFIGS = {path.stem: path for path in (Path(__file__).parents[3] / "manifests" / "configs").glob("*.yaml")}
ELSEWHERE = """
import hashlib, json, random, sys
import numpy
random.seed(5)
numpy.random.seed(7)
from convergate.components.config import load_config
from convergate.components.data.report import data_digest
from convergate.components.task import load_task
tasks = [load_task(load_config(path)[0].task) for path in sys.argv[1:]]
tables = [data_digest(task.table()) for task in tasks]
needs_torch = "torch" in sys.modules
import torch
torch.set_num_threads(3)
models = []
for task in tasks:
    torch.manual_seed(11)
    weights = task.model().state_dict().values()
    models.append(hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights)).hexdigest())
print(json.dumps([needs_torch, tables, models]))
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests share two cores: threads of small models would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest) -> RunConfig:
    return load_config(CONFIGS[request.param])[0]


@pytest.fixture(scope="module")
def task(config: RunConfig) -> Task:
    return load_task(config.task)


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, tuple[str, str]]:
    """The digests of each task's table and model in another process, which made the tables without torch."""
    names = sorted(CONFIGS)
    command = [sys.executable, "-c", ELSEWHERE, *(str(CONFIGS[name]) for name in names)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    needs_torch, tables, models = json.loads(answer.stdout)
    assert not needs_torch
    return dict(zip(names, zip(tables, models, strict=True), strict=True))


def weights_digest(model: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in model.state_dict().values())).hexdigest()


def model_of(task: Task, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return task.model()


def first(task: Task, number: int) -> Any:
    dataset: Any = task.dataset("val")
    return tuple(tensor[:number] for tensor in dataset.tensors)


def test_its_table_passes_validation(task: Task) -> None:
    report = validate_table(task.table(), task.table_spec(), "run")
    assert (report.verdict, report.reason) == ("PASS", "")


def test_its_splits_are_those_of_its_table(task: Task) -> None:
    table, spec = task.table(), task.table_spec()
    for split in SPLITS:
        dataset: Any = task.dataset(split)
        inputs, targets = dataset.tensors
        rows = table[table[spec.split] == split]
        assert len(dataset) == len(rows) > 0
        # What ends the target of a text is what follows its window.
        assert targets.reshape(len(rows), -1)[:, -1].tolist() == rows[spec.label].tolist()
        features = torch.from_numpy(rows[list(spec.features)].to_numpy(copy=True)).reshape(inputs.shape)
        scale = 16 if "pixel_0" in rows else 1
        assert torch.equal(inputs * scale, features.to(inputs.dtype))


def test_it_is_the_same_in_another_process(
    config: RunConfig, task: Task, elsewhere: dict[str, tuple[str, str]]
) -> None:
    found = data_digest(task.table()), weights_digest(model_of(task, 11))
    assert found == elsewhere[config.experiment]


def test_its_model_is_that_of_the_global_seed(task: Task) -> None:
    same, again, other = (weights_digest(model_of(task, seed)) for seed in (1, 1, 2))
    assert same == again != other


def test_its_loss_is_the_mean_of_its_scores_and_reaches_every_parameter(task: Task) -> None:
    model, batch = model_of(task, 0), first(task, 32)
    scores, loss = task.scores(model, batch), task.loss(model, batch)
    torch.testing.assert_close(loss, scores["loss"].mean())
    assert scores.keys() == {"loss", "accuracy"}
    assert {(score.shape, score.dtype) for score in scores.values()} == {((32,), torch.float32)}
    assert all(0 <= value <= 1 for value in scores["accuracy"].tolist())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_it_learns_a_batch(task: Task) -> None:
    model, batch = model_of(task, 0), first(task, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    before = task.loss(model, batch).item()
    for _ in range(30):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    assert task.loss(model, batch).item() < 0.5 * before


def test_its_example_is_a_batch_of_its_models_input(task: Task) -> None:
    example, (inputs, _) = task.example(), first(task, 2)
    assert (example.shape, example.dtype) == (inputs.shape, inputs.dtype)
    assert len(model_of(task, 0)(example)) == 2


def test_its_registered_model_gives_what_it_gives(config: RunConfig, task: Task, s3: str, mlflow_server: str) -> None:
    name = f"{config.promotion.model}-{uuid4().hex[:8]}"
    config = config.model_copy(update={"promotion": config.promotion.model_copy(update={"model": name})})
    model = model_of(task, 3).eval()
    tensors = {f"{MODEL_PREFIX}{key}": value for key, value in model.state_dict().items()}
    ref = commit(f"{s3}/checkpoints", "run", tensors)
    with mlflow_client() as client:
        run = find_or_create_run(client, name, "run")
        version = register_candidate(client, config, run, ref.uri, read_manifest(ref.uri)[1])
    served = mlflow.pytorch.load_model(f"models:/{name}/{version}")
    for size in (1, 2, 7):
        inputs = first(task, size)[0]
        with torch.inference_mode():
            torch.testing.assert_close(served(inputs), model(inputs))
