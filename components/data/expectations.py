"""The suite `default`: what holds of any table of features, a label and a split.

Great Expectations looks at columns; what is said of all features at once is said of columns derived row by row: the
smallest and largest feature, the count of cells that are null or not finite, and a hash of the features, equal for
equal rows. So ten expectations cover a table of any width.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..task.protocol import SPLITS, TableSpec

if TYPE_CHECKING:
    import pandas as pd

MAX_IMBALANCE = 10.0
"""The largest class of a split over its smallest."""


class Expectation(NamedTuple):
    """A Great Expectations expectation on a derived column, with its name and its reason in words."""

    name: str
    type: str
    column: str
    arguments: dict[str, Any]
    reason: str


def derive(table: "pd.DataFrame", spec: TableSpec) -> "pd.DataFrame":
    """The columns that the suite looks at, one row a row of the table."""
    import pandas as pd

    features = table[list(spec.features)].to_numpy(dtype=np.float64)
    finite = np.isfinite(features)
    known = np.where(finite, features, np.nan)
    hashes = pd.util.hash_array(np.ascontiguousarray(features).view(f"V{features.shape[1] * 8}").ravel().astype(object))
    split, label = table[spec.split].astype(str), table[spec.label]
    splits_of_row = split.groupby(hashes).transform("nunique")
    per_class = label.groupby([split, label]).transform("size")
    return pd.DataFrame(
        {
            "broken_cells": (~finite).sum(axis=1),
            "smallest": pd.Series(known.min(axis=1, initial=np.inf, where=finite)).replace(np.inf, spec.minimum),
            "largest": pd.Series(known.max(axis=1, initial=-np.inf, where=finite)).replace(-np.inf, spec.maximum),
            "spread": table[list(spec.features)].std(axis=1, ddof=0).fillna(1.0).to_numpy(),
            "row_hash": hashes.astype(str),
            "split": split.to_numpy(),
            "label": label.to_numpy(),
            "splits_of_row": splits_of_row.to_numpy(),
            "imbalance": (per_class.groupby(split).transform("max") / per_class).to_numpy(),
        }
    )


def suite(spec: TableSpec) -> list[Expectation]:
    """The expectations on the derived columns."""
    low, high = spec.minimum, spec.maximum
    between = "ExpectColumnValuesToBeBetween"
    found = [
        Expectation(
            "number of rows",
            "ExpectTableRowCountToBeBetween",
            "",
            {"min_value": spec.min_rows},
            f"fewer than {spec.min_rows} rows",
        ),
        Expectation(
            "no null or non-finite cell",
            between,
            "broken_cells",
            {"max_value": 0},
            "cells are null, NaN or infinite",
        ),
        Expectation("smallest feature in range", between, "smallest", {"min_value": low}, f"features below {low:g}"),
        Expectation("largest feature in range", between, "largest", {"max_value": high}, f"features above {high:g}"),
        Expectation(
            "rows are not constant",
            between,
            "spread",
            {"min_value": 0, "strict_min": True},
            "all features are equal",
        ),
        Expectation(
            "known splits",
            "ExpectColumnValuesToBeInSet",
            "split",
            {"value_set": list(SPLITS)},
            f"the split is none of {', '.join(SPLITS)}",
        ),
        Expectation(
            "every split is there",
            "ExpectColumnDistinctValuesToContainSet",
            "split",
            {"value_set": list(SPLITS)},
            f"one of {', '.join(SPLITS)} has no rows",
        ),
        Expectation("no duplicate rows", "ExpectColumnValuesToBeUnique", "row_hash", {}, "rows stand more than once"),
        Expectation(
            "splits do not overlap",
            between,
            "splits_of_row",
            {"max_value": 1},
            "the same features stand in two splits: the test set leaks into training",
        ),
    ]
    if spec.classes:
        found += [
            Expectation(
                "known labels",
                "ExpectColumnValuesToBeInSet",
                "label",
                {"value_set": list(spec.classes)},
                "the label is no known class",
            ),
            Expectation(
                "labels are balanced",
                between,
                "imbalance",
                {"max_value": MAX_IMBALANCE},
                f"a class has less than 1/{MAX_IMBALANCE:g} of the largest class's rows in its split",
            ),
        ]
    return found
