"""What convergate needs of a user's model and data, and nothing more.

A task is a class that is named in the config as `package.module:Class` and called with `task.params`. It holds no
training state: the loop, the schedule, the checkpoints and the processes are convergate's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn
    from torch.utils.data import Dataset

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What the columns of `Task.table` mean: the schema that data validation holds the table against."""

    features: tuple[str, ...]
    """Numeric feature columns."""
    minimum: float
    """Smallest allowed feature value."""
    maximum: float
    """Largest allowed feature value."""
    label: str = "label"
    """The target's column."""
    classes: tuple[int, ...] = ()
    """The allowed labels; empty for regression."""
    split: str = "split"
    """The column that holds `train`, `val` or `test`."""
    min_rows: int = 1
    """Fewest rows of the whole table."""


@runtime_checkable
class Task(Protocol):
    """A model, its data and its loss. Every method is called in each process, and must give the same in each."""

    def model(self) -> "nn.Module":
        """A fresh model on the CPU, initialised from torch's global seed, which is set before the call."""
        ...

    def dataset(self, split: Split) -> "Dataset[Any]":
        """A map-style dataset with a length; an item is whatever `loss` takes a batch of."""
        ...

    def loss(self, model: "nn.Module", batch: Any) -> "Tensor":
        """The mean loss over a collated batch: a scalar tensor with a gradient."""
        ...

    def scores(self, model: "nn.Module", batch: Any) -> Mapping[str, "Tensor"]:
        """Per-sample scores of a batch: name → float tensor of shape [batch]; `loss` is one of them.

        A score's mean over a split is the metric of that name. A score of only zeros and ones (accuracy) gets an
        exact binomial interval.
        """
        ...

    def example(self) -> Any:
        """One input batch of the model (not the label), as a tensor of shape [2, …]; its signature for serving."""
        ...

    def table(self) -> "pd.DataFrame":
        """Every sample of every split as one row; imports no torch."""
        ...

    def table_spec(self) -> TableSpec:
        """What the table's columns mean."""
        ...
