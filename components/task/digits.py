"""Handwritten digits: 1,797 real 8×8 images (Alpaydin and Kaynak, UCI, 1998), as scikit-learn ships them."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .protocol import Split, TableSpec
from .splits import stratified_splits

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn
    from torch.utils.data import Dataset

MAX_PIXEL = 16.0


class DigitsTask:
    """A small ResNet on the digits, in a stratified 70/15/15 split that is the same everywhere.

    Args:
        width: channels of the first stage.
        split_seed: of the split.
    """

    def __init__(self, width: int = 16, split_seed: int = 0) -> None:
        self.width, self.split_seed = width, split_seed

    def model(self) -> "nn.Module":
        """See `Task`."""
        from .resnet import ResNet

        return ResNet(width=self.width, num_classes=10)

    def dataset(self, split: Split) -> "Dataset[Any]":
        """Pairs of an image, float32 [1, 8, 8] in 0..1, and its digit, int64."""
        import torch
        from torch.utils.data import TensorDataset

        images, labels, splits = self._arrays
        chosen = splits == split
        pixels = torch.from_numpy(images[chosen].astype(np.float32) / MAX_PIXEL).reshape(-1, 1, 8, 8)
        return TensorDataset(pixels, torch.from_numpy(labels[chosen].astype(np.int64)))

    def loss(self, model: "nn.Module", batch: Any) -> "Tensor":
        """Mean cross-entropy."""
        from torch.nn.functional import cross_entropy

        images, labels = batch
        return cross_entropy(model(images), labels)

    def scores(self, model: "nn.Module", batch: Any) -> "dict[str, Tensor]":
        """Per-sample `loss` (cross-entropy) and `accuracy` (0 or 1)."""
        from torch.nn.functional import cross_entropy

        images, labels = batch
        logits = model(images).float()
        return {
            "loss": cross_entropy(logits, labels, reduction="none"),
            "accuracy": (logits.argmax(dim=1) == labels).float(),
        }

    def example(self) -> "Tensor":
        """Two blank images."""
        import torch

        return torch.zeros(2, 1, 8, 8)

    def table(self) -> "pd.DataFrame":
        """One row an image: pixel_0 … pixel_63 in 0..16, label, split."""
        import pandas as pd

        images, labels, splits = self._arrays
        table = pd.DataFrame(images, columns=[f"pixel_{i}" for i in range(images.shape[1])])
        return table.assign(label=labels, split=splits)

    def table_spec(self) -> TableSpec:
        """What the table's columns mean."""
        return TableSpec(
            features=tuple(f"pixel_{i}" for i in range(64)),
            minimum=0.0,
            maximum=MAX_PIXEL,
            classes=tuple(range(10)),
            min_rows=1_000,
        )

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images [1797, 64], labels [1797] and split names [1797]."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.data, bunch.target, stratified_splits(bunch.target, self.split_seed)
