"""The measurements: scikit-learn's, standardised by what is trained on."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from convergate.components.task.tabular import TabularTask
from sklearn.datasets import load_breast_cancer


def test_the_measurements_are_scikit_learns_standardised_by_the_training_split() -> None:
    bunch, table = load_breast_cancer(), TabularTask().table()
    names = list(bunch.feature_names)
    assert list(table.columns) == [*names, "label", "split"]
    assert np.array_equal(table["label"].to_numpy(), bunch.target)
    raw, train = bunch.data, (table["split"] == "train").to_numpy()
    spread = raw[train].std(axis=0)
    np.testing.assert_allclose(table[names] * spread + raw[train].mean(axis=0), raw, rtol=0, atol=1e-12 * raw.max())
    np.testing.assert_allclose(table.loc[train, names].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(table.loc[train, names].std(ddof=0), 1, rtol=1e-12)


def test_the_split_is_stratified() -> None:
    table = TabularTask().table()
    counts = pd.crosstab(table["label"], table["split"])[["train", "val", "test"]].to_numpy().tolist()
    assert counts == [[148, 32, 32], [250, 53, 54]]
    assert TabularTask(split_seed=1).table()["split"].tolist() != table["split"].tolist()


def test_accuracy_is_one_exactly_where_the_larger_logit_is_the_label() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    logits: Any = torch.tensor([[2.0, 1.0], [2.0, 1.0], [-1.0, 0.0], [-1.0, 0.0]])
    scores = TabularTask().scores(torch.nn.Identity(), (logits, labels))
    assert scores["accuracy"].tolist() == [1.0, 0.0, 1.0, 0.0]
