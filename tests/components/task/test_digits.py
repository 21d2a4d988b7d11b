"""The digits: one stratified split, the same everywhere, and all methods agree about it."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from convergate.components.task import SPLITS, Task
from convergate.components.task.digits import DigitsTask
from sklearn.datasets import load_digits

PIXELS = [f"pixel_{i}" for i in range(64)]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return DigitsTask().table()


def test_every_image_stands_in_one_split_and_is_what_scikit_learn_ships(table: pd.DataFrame) -> None:
    images = load_digits()
    assert np.array_equal(table[PIXELS].to_numpy(), images.data)
    assert np.array_equal(table["label"].to_numpy(), images.target)
    assert table["split"].value_counts().to_dict() == {"train": 1258, "val": 270, "test": 269}
    assert list(table.columns) == [*PIXELS, "label", "split"]


def test_the_split_is_stratified_to_within_an_image(table: pd.DataFrame) -> None:
    for _, rows in table.groupby("label"):
        counts = rows["split"].value_counts()
        for split, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
            assert abs(counts[split] - share * len(rows)) <= 1


def test_the_split_is_the_same_in_a_process_without_torch_and_another_under_another_seed(table: pd.DataFrame) -> None:
    script = (
        "import json, random, sys, numpy; random.seed(5); numpy.random.seed(7)\n"
        "from convergate.components.task.digits import DigitsTask\n"
        "splits = [DigitsTask(split_seed=seed).table()['split'].tolist() for seed in (0, 1)]\n"
        "print(json.dumps([*splits, 'torch' in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    same, other, needs_torch = json.loads(answer.stdout)
    assert same == table["split"].tolist()
    assert other != same
    assert Counter(other) == Counter(same)
    assert not needs_torch


@pytest.mark.parametrize("split", SPLITS)
def test_the_dataset_is_the_table(table: pd.DataFrame, split: Any) -> None:
    rows = table[table["split"] == split]
    dataset: Any = DigitsTask().dataset(split)
    images, labels = dataset.tensors
    assert len(dataset) == len(rows)
    assert (images.dtype, images.shape[1:], labels.dtype) == (torch.float32, (1, 8, 8), torch.int64)
    assert np.array_equal(images.reshape(-1, 64).numpy() * 16, rows[PIXELS].to_numpy())
    assert np.array_equal(labels.numpy(), rows["label"].to_numpy())


def test_the_table_is_what_its_spec_says(table: pd.DataFrame) -> None:
    spec = DigitsTask().table_spec()
    assert [*spec.features, spec.label, spec.split] == list(table.columns)
    assert (table[PIXELS].to_numpy().min(), table[PIXELS].to_numpy().max()) == (spec.minimum, spec.maximum)
    assert spec.classes == tuple(sorted(set(table["label"])))
    assert spec.min_rows <= len(table)


@pytest.fixture
def batch() -> Any:
    return tuple(tensor[:32] for tensor in DigitsTask().dataset("val").tensors)


def test_loss_is_the_mean_of_the_scores_loss_and_has_a_gradient(batch: Any) -> None:
    task = DigitsTask(width=4)
    model = task.model()
    scores = task.scores(model, batch)
    loss = task.loss(model, batch)
    torch.testing.assert_close(loss, scores["loss"].mean())
    assert scores.keys() == {"loss", "accuracy"}
    assert {(score.shape, score.dtype) for score in scores.values()} == {((32,), torch.float32)}
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_accuracy_is_one_exactly_where_the_largest_logit_is_the_digit(batch: Any) -> None:
    images, labels = batch
    right = torch.nn.functional.one_hot(labels, 10).float()

    class Knows(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([right[:20], 1 - right[20:]])

    scores = DigitsTask().scores(Knows(), (images, labels))
    assert scores["accuracy"].tolist() == [1.0] * 20 + [0.0] * 12


def test_the_example_is_a_batch_of_the_models_input() -> None:
    task = DigitsTask(width=4)
    example, (image, _) = task.example(), task.dataset("test")[0]
    assert (example.shape, example.dtype) == ((2, *image.shape), image.dtype)
    assert task.model()(example).shape == (2, 10)


def test_a_model_is_that_of_the_global_seed_and_of_its_width() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(DigitsTask(width=4).model().state_dict())
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert DigitsTask(width=8).model()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_it_is_a_task() -> None:
    assert isinstance(DigitsTask(), Task)
