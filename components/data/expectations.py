"""The suite `default`: what holds of any table of features, a label and a split.

Great Expectations looks at columns; what is said of all features at once is said of columns derived row by row: the
smallest and largest feature, the count of cells that are null or not finite, and a hash of the features, equal for
equal rows. So a dozen expectations cover a table of any width.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..task.protocol import SPLITS, TableSpec

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MAX_IMBALANCE = 10.0
"""The largest class of a split over its smallest."""
_BETWEEN = "ExpectColumnValuesToBeBetween"
_IN_SET = "ExpectColumnValuesToBeInSet"
_CONTAINS = "ExpectColumnDistinctValuesToContainSet"


class Expectation(NamedTuple):
    """A Great Expectations expectation on a derived column, with its name and its reason in words."""

    name: str
    type: str
    column: str
    arguments: dict[str, Any]
    reason: str


def derive(table: "pd.DataFrame", spec: TableSpec) -> "pd.DataFrame":
    """The columns that the suite looks at, one row a row of the table, under the row's position.

    A row without one finite feature counts as broken only, not as out of range or constant.
    """
    import pandas as pd

    table = table.reset_index(drop=True)
    features = table[list(spec.features)].to_numpy(dtype=np.float64)
    finite = np.isfinite(features)
    smallest = features.min(axis=1, initial=np.inf, where=finite)
    largest = features.max(axis=1, initial=-np.inf, where=finite)
    split, label = table[spec.split].astype(str), table[spec.label]
    broken = ~np.column_stack([finite, _known(label), table[spec.split].notna()])
    hashes = _row_hashes(features)
    per_class = label.groupby([split, label]).transform("size")
    return pd.DataFrame(
        {
            "broken_cells": broken.sum(axis=1),
            "smallest": smallest,
            "largest": largest,
            "spread": np.abs(largest - smallest),
            "row_hash": hashes.astype(str),
            "split": split,
            "label": label,
            "class_of_split": _class_of_split(split, label, spec.classes),
            "splits_of_row": split.groupby(hashes).transform("nunique"),
            "imbalance": per_class.groupby(split).transform("max") / per_class,
        }
    )


def _known(label: "pd.Series[Any]") -> "pd.Series[bool]":
    """Whether a label is there and finite."""
    return label.notna() & ~label.isin([np.inf, -np.inf])


def _row_hashes(features: "NDArray[np.float64]") -> "NDArray[np.uint64]":
    """One hash a row, equal for rows of equal numbers: 0.0 equals -0.0, and every NaN equals every other."""
    import pandas as pd

    canonical = np.ascontiguousarray(np.where(np.isnan(features), np.nan, features) + 0.0)
    rows = canonical.view(f"V{canonical.shape[1] * canonical.itemsize}").ravel().astype(object)
    hashes: NDArray[np.uint64] = pd.util.hash_array(rows)
    return hashes


def _class_of_split(split: "pd.Series[str]", label: "pd.Series[Any]", classes: tuple[int, ...]) -> list[str]:
    names = {known: str(known) for known in classes}
    return [f"{name} {names.get(value)}" for name, value in zip(split, label, strict=True)]


def suite(spec: TableSpec) -> list[Expectation]:
    """The expectations on the derived columns."""
    low, high, splits = spec.minimum, spec.maximum, ", ".join(SPLITS)
    count = "ExpectTableRowCountToBeBetween"
    positive = {"min_value": 0, "strict_min": True}
    leak = "the same features stand in two splits: the test set leaks into training"
    found = [
        Expectation("number of rows", count, "", {"min_value": spec.min_rows}, f"fewer than {spec.min_rows} rows"),
        Expectation(
            "no null or non-finite cell", _BETWEEN, "broken_cells", {"max_value": 0}, "cells are null, NaN or infinite"
        ),
        Expectation("smallest feature in range", _BETWEEN, "smallest", {"min_value": low}, f"features below {low:g}"),
        Expectation("largest feature in range", _BETWEEN, "largest", {"max_value": high}, f"features above {high:g}"),
        Expectation("known splits", _IN_SET, "split", {"value_set": list(SPLITS)}, f"the split is none of {splits}"),
        Expectation("every split is there", _CONTAINS, "split", {"value_set": list(SPLITS)}, "no rows"),
        Expectation("no duplicate rows", "ExpectColumnValuesToBeUnique", "row_hash", {}, "rows stand more than once"),
        Expectation("splits do not overlap", _BETWEEN, "splits_of_row", {"max_value": 1}, leak),
    ]
    if len(spec.features) > 1:
        found.append(Expectation("rows are not constant", _BETWEEN, "spread", positive, "all features are equal"))
    return found + (_label_expectations(spec) if spec.classes else [])


def _label_expectations(spec: TableSpec) -> list[Expectation]:
    """What holds of classes, and not of a regression's target."""
    every = [f"{split} {name}" for split in SPLITS for name in spec.classes]
    rare = f"a class has less than 1/{MAX_IMBALANCE:g} of the largest class's rows in its split"
    return [
        Expectation("known labels", _IN_SET, "label", {"value_set": list(spec.classes)}, "the label is no known class"),
        Expectation("every class in every split", _CONTAINS, "class_of_split", {"value_set": every}, "no rows"),
        Expectation("labels are balanced", _BETWEEN, "imbalance", {"max_value": MAX_IMBALANCE}, rare),
    ]
