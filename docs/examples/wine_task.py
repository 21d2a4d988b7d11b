"""Which of three growers made a wine, from 13 chemical measurements: 178 real wines (UCI, 1991)."""

from typing import Any

import pandas as pd
from convergate.components.task import SPLITS, Split, TableSpec
from sklearn.datasets import load_wine

FEATURES = load_wine().feature_names


class WineTask:
    """A network of one hidden layer. torch is imported late, so that the table can be checked without it."""

    def __init__(self, hidden: int = 32) -> None:
        self.hidden = hidden

    def model(self) -> Any:
        """Standardised measurements [N, 13] to logits [N, 3]."""
        from torch import nn

        return nn.Sequential(nn.Linear(len(FEATURES), self.hidden), nn.ReLU(), nn.Linear(self.hidden, 3))

    def dataset(self, split: Split) -> Any:
        """Pairs of measurements, float32 [13], and a grower, int64."""
        import torch

        rows = self.table().query("split == @split")
        features = torch.tensor(rows[FEATURES].to_numpy(), dtype=torch.float32)
        return torch.utils.data.TensorDataset(features, torch.tensor(rows["label"].to_numpy()))

    def loss(self, model: Any, batch: Any) -> Any:
        """Mean cross-entropy."""
        return self.scores(model, batch)["loss"].mean()

    def scores(self, model: Any, batch: Any) -> dict[str, Any]:
        """Per-sample cross-entropy, and whether the grower is right, 0 or 1."""
        from torch.nn.functional import cross_entropy

        logits, labels = model(batch[0]), batch[1]
        right = (logits.argmax(dim=1) == labels).float()
        return {"loss": cross_entropy(logits, labels, reduction="none"), "accuracy": right}

    def example(self) -> Any:
        """The measurements of two wines."""
        return self.dataset("train")[:2][0]

    def table(self) -> pd.DataFrame:
        """One row a wine, 60 % of each grower's to train on; standardised by the training split's mean and spread."""
        wines: pd.DataFrame = load_wine(as_frame=True).frame
        table = wines.rename(columns={"target": "label"}).sample(frac=1, random_state=0)
        share = table.groupby("label").cumcount() / table.groupby("label")["label"].transform("size")
        table["split"] = pd.cut(share, [0, 0.60, 0.75, 1], right=False, labels=SPLITS).astype(str)
        train = table.loc[table["split"] == "train", FEATURES]
        return table.assign(**((table[FEATURES] - train.mean()) / train.std())).reset_index(drop=True)

    def table_spec(self) -> TableSpec:
        """What the columns mean, and what they must hold."""
        return TableSpec(features=tuple(FEATURES), minimum=-6.0, maximum=6.0, classes=(0, 1, 2), min_rows=150)
