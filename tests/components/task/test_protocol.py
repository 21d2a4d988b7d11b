"""A user's own task, the documented example: everything that convergate asks of it, without its processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from convergate.components.config.models import TaskConfig
from convergate.components.data.validate import validate_table
from convergate.components.task import SPLITS, TableSpec, Task, load_task
from torch.utils.data import default_collate

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.chdir(EXAMPLES)
    return load_task(TaskConfig(factory="wine_task:WineTask", params={"hidden": 16}))


def test_it_is_complete_in_under_sixty_lines(task: Task) -> None:
    assert len((EXAMPLES / "wine_task.py").read_text().splitlines()) < 60
    assert isinstance(task, Task)


def test_its_table_passes_validation(task: Task) -> None:
    report = validate_table(task.table(), task.table_spec(), "run")
    assert (report.verdict, report.reason) == ("PASS", "")


def test_its_splits_are_its_table(task: Task) -> None:
    table = task.table()
    for split in SPLITS:
        dataset: Any = task.dataset(split)
        rows = table[table["split"] == split]
        assert [int(label) for _, label in dataset] == rows["label"].tolist()


def test_it_learns_and_is_scored_a_sample(task: Task) -> None:
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    dataset: Any = task.dataset("train")
    batch = default_collate([dataset[number] for number in range(len(dataset))])
    losses = []
    for _ in range(40):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    scores = task.scores(model, batch)
    assert {score.shape for score in scores.values()} == {(len(dataset),)}
    assert scores["loss"].mean().item() < losses[0]
    assert scores["accuracy"].mean().item() > 0.95


def test_its_example_is_an_input_of_its_model(task: Task) -> None:
    example = task.example()
    assert example.shape[0] == 2
    assert task.model()(example).shape[0] == 2


def test_a_spec_says_only_what_a_table_needs() -> None:
    spec = TableSpec(features=("a",), minimum=0.0, maximum=1.0)
    assert (spec.label, spec.classes, spec.split, spec.min_rows) == ("label", (), "split", 1)


def test_what_lacks_a_method_is_no_task() -> None:
    assert not isinstance(object(), Task)
