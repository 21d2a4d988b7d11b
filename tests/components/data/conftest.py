"""A small good table, to be broken in one place each time."""

from typing import Any

import numpy as np
import pandas as pd
from convergate.components.data import DataReport
from convergate.components.data.validate import validate_table
from convergate.components.task import SPLITS, TableSpec

ROWS_PER_SPLIT = 36
FEATURES = ("f0", "f1", "f2", "f3")


def good_table(width: int = len(FEATURES)) -> pd.DataFrame:
    """108 rows, 36 a split and 12 a class of 0, 1, 2 in each; features in [0, 1)."""
    num_rows = ROWS_PER_SPLIT * len(SPLITS)
    values = np.random.default_rng(0).random((num_rows, width))
    table = pd.DataFrame(values, columns=[f"f{i}" for i in range(width)])
    return table.assign(label=np.arange(num_rows) % 3, split=np.repeat(SPLITS, ROWS_PER_SPLIT))


def make_spec(width: int = len(FEATURES), **changes: Any) -> TableSpec:
    fields: dict[str, Any] = {"minimum": 0.0, "maximum": 1.0, "classes": (0, 1, 2), "min_rows": 10}
    return TableSpec(features=tuple(f"f{i}" for i in range(width)), **fields | changes)


def failures(report: DataReport) -> dict[str, list[int]]:
    """The failed expectations by name, each with its first rows."""
    return {found.name: found.rows for found in report.expectations if not found.passed}


def validate(table: pd.DataFrame, spec: TableSpec | None = None, **options: Any) -> DataReport:
    """Validate a table, which is left as it was."""
    before = table.copy(deep=True)
    report = validate_table(table, spec or make_spec(), "run", **options)
    pd.testing.assert_frame_equal(table, before)
    assert report.verdict == ("FAIL" if failures(report) else "PASS")
    return report
