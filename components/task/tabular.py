"""Breast cancer from 30 measurements of cell nuclei: 569 real samples (Wisconsin, UCI, 1995), as scikit-learn ships."""

from functools import cached_property
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .protocol import Split, TableSpec
from .splits import stratified_splits

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn
    from torch.utils.data import Dataset

NUM_FEATURES = 30
LIMIT = 12.0
"""In standard deviations of the training split: the largest measurement is 10.9 of them above its mean."""


class TabularTask:
    """A network of two hidden layers on standardised measurements, in a stratified 70/15/15 split.

    Args:
        width: of the hidden layers.
        split_seed: of the split.
    """

    def __init__(self, width: int = 32, split_seed: int = 0) -> None:
        self.width, self.split_seed = width, split_seed

    def model(self) -> "nn.Module":
        """Standardised measurements [N, 30] to logits [N, 2]."""
        from torch import nn

        width = self.width
        return nn.Sequential(
            *(nn.Linear(NUM_FEATURES, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, 2),
        )

    def dataset(self, split: Split) -> "Dataset[Any]":
        """Pairs of standardised measurements, float32 [30], and 0 (malignant) or 1 (benign), int64."""
        import torch
        from torch.utils.data import TensorDataset

        measurements, labels, splits = self._arrays
        chosen = splits == split
        return TensorDataset(
            torch.from_numpy(measurements[chosen].astype(np.float32)),
            torch.from_numpy(labels[chosen].astype(np.int64)),
        )

    def loss(self, model: "nn.Module", batch: Any) -> "Tensor":
        """Mean cross-entropy."""
        from torch.nn.functional import cross_entropy

        measurements, labels = batch
        return cross_entropy(model(measurements), labels)

    def scores(self, model: "nn.Module", batch: Any) -> "dict[str, Tensor]":
        """Per-sample `loss` (cross-entropy) and `accuracy` (0 or 1)."""
        from torch.nn.functional import cross_entropy

        measurements, labels = batch
        logits = model(measurements).float()
        return {
            "loss": cross_entropy(logits, labels, reduction="none"),
            "accuracy": (logits.argmax(dim=1) == labels).float(),
        }

    def example(self) -> "Tensor":
        """Two samples at the training split's mean."""
        import torch

        return torch.zeros(2, NUM_FEATURES)

    def table(self) -> "pd.DataFrame":
        """One row a sample: its standardised measurements under scikit-learn's names, label, split."""
        import pandas as pd

        measurements, labels, splits = self._arrays
        return pd.DataFrame(measurements, columns=self._names).assign(label=labels, split=splits)

    def table_spec(self) -> TableSpec:
        """What the table's columns mean."""
        return TableSpec(features=tuple(self._names), minimum=-LIMIT, maximum=LIMIT, classes=(0, 1), min_rows=500)

    @property
    def _names(self) -> list[str]:
        from sklearn.datasets import load_breast_cancer

        return [str(name) for name in load_breast_cancer().feature_names]

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.object_]]:
        """Measurements [569, 30], labels [569] and split names [569].

        Mean and deviation are exact to the last bit, where a vectorised sum differs between processors: so the data
        digest is the same on every machine.
        """
        from sklearn.datasets import load_breast_cancer

        bunch = load_breast_cancer()
        splits = stratified_splits(bunch.target, self.split_seed)
        columns = bunch.data[splits == "train"].T.tolist()
        mean, deviation = (np.array([statistic(column) for column in columns]) for statistic in (fmean, pstdev))
        return (bunch.data - mean) / deviation, bunch.target, splits
