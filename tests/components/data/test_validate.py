"""Each expectation fails on its own broken table and names its rows; a good table passes, whatever its dress."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from convergate.components.data import data_digest

from .conftest import FEATURES, failures, good_table, make_spec, validate

Break = Callable[[pd.DataFrame], Any]


def cell(row: int, column: str, value: Any) -> Break:
    """Write one cell, in a column that can hold it."""

    def change(table: pd.DataFrame) -> None:
        if column not in FEATURES:
            table[column] = table[column].astype(object if column == "split" else float)
        table.loc[row, column] = value

    return change


def rows(values: list[float], *numbers: int) -> Break:
    """Give all these rows the same features."""

    def change(table: pd.DataFrame) -> None:
        table.loc[list(numbers), list(FEATURES)] = values

    return change


def signed_zeros(table: pd.DataFrame) -> None:
    rows([0.0, 0.2, 0.3, 0.4], 3)(table)
    rows([-0.0, 0.2, 0.3, 0.4], 99)(table)


def nan_beside_high(table: pd.DataFrame) -> None:
    cell(1, "f0", np.nan)(table)
    cell(1, "f2", 7.0)(table)


def rare_class(table: pd.DataFrame) -> None:
    table.loc[:35, "label"] = [0] * 33 + [1] * 2 + [2]


def test_a_good_table_passes_every_expectation() -> None:
    report = validate(good_table())
    assert failures(report) == {}
    assert [found.name for found in report.expectations] == [
        "columns and types",
        "number of rows",
        "no null or non-finite cell",
        "smallest feature in range",
        "largest feature in range",
        "known splits",
        "every split is there",
        "no duplicate rows",
        "splits do not overlap",
        "rows are not constant",
        "known labels",
        "every class in every split",
        "labels are balanced",
    ]
    assert report.summary == "108 rows, 13 expectations"
    assert (report.reason, report.num_rows) == ("", 108)
    assert report.rows_by_split == {"train": 36, "val": 36, "test": 36}
    assert report.classes_by_split["val"] == {"0": 12, "1": 12, "2": 12}


NULL, LOW, HIGH = "no null or non-finite cell", "smallest feature in range", "largest feature in range"
TWICE, LEAK, CONSTANT = "no duplicate rows", "splits do not overlap", "rows are not constant"
BALANCE = "labels are balanced"


BROKEN: dict[str, tuple[Break, dict[str, list[int]]]] = {
    "nan": (cell(3, "f1", np.nan), {NULL: [3]}),
    "inf": (cell(3, "f1", np.inf), {NULL: [3]}),
    "minus inf": (cell(3, "f1", -np.inf), {NULL: [3]}),
    "a row of nan is not also constant": (rows([np.nan] * 4, 3), {NULL: [3]}),
    "nan equals nan": (rows([np.nan, 0.2, 0.3, 0.4], 3, 99), {NULL: [3, 99], TWICE: [3, 99], LEAK: [3, 99]}),
    "nan does not hide what is too high": (nan_beside_high, {NULL: [1], HIGH: [1]}),
    "no label": (cell(3, "label", np.nan), {NULL: [3]}),
    "no split": (cell(3, "split", None), {NULL: [3]}),
    "too low": (cell(0, "f0", -1e-9), {LOW: [0]}),
    "too high": (cell(107, "f3", 1 + 1e-9), {HIGH: [107]}),
    "constant": (rows([0.1] * 4, 5), {CONSTANT: [5]}),
    "constant zeros": (rows([0.0, -0.0, 0.0, 0.0], 5), {CONSTANT: [5]}),
    "unknown split": (cell(3, "split", "dev"), {"known splits": [3]}),
    "duplicate": (rows([0.1, 0.2, 0.3, 0.4], 3, 4), {TWICE: [3, 4]}),
    "overlap": (rows([0.1, 0.2, 0.3, 0.4], 3, 99), {TWICE: [3, 99], LEAK: [3, 99]}),
    "zero equals minus zero": (signed_zeros, {TWICE: [3, 99], LEAK: [3, 99]}),
    "unknown label": (cell(3, "label", 7), {"known labels": [3], BALANCE: [3]}),
    "half a label": (cell(3, "label", 0.5), {"known labels": [3], BALANCE: [3]}),
    "imbalance": (rare_class, {BALANCE: [33, 34, 35]}),
}


@pytest.mark.parametrize(("broken", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_table_fails_its_own_expectations_and_names_the_rows(
    broken: Break, expected: dict[str, list[int]]
) -> None:
    table = good_table()
    broken(table)
    report = validate(table)
    assert failures(report) == expected
    for found in report.expectations:
        assert found.num_rows == len(found.rows)
        assert bool(found.reason) != found.passed


@pytest.mark.parametrize(
    ("table", "name", "reason"),
    [
        (good_table()[:9], "number of rows", "fewer than 10 rows"),
        (good_table().query("split != 'val'"), "every split is there", "no rows: val"),
        (
            good_table().query("split != 'test' or label != 2"),
            "every class in every split",
            "no rows: test 2",
        ),
        (good_table().drop(columns=["f1", "f2"]), "columns and types", "columns are missing: f1, f2"),
        (good_table().drop(columns="label"), "columns and types", "columns are missing: label"),
        (good_table().drop(columns="split"), "columns and types", "columns are missing: split"),
        (good_table()[:0], "columns and types", "the table is empty"),
        (pd.DataFrame(), "columns and types", "columns are missing: f0, f1, f2, f3, label, split"),
        (good_table().astype({"f2": str}), "columns and types", "columns are not numeric: f2 is str"),
        (good_table().astype({"f2": object}), "columns and types", "columns are not numeric: f2 is object"),
        (good_table().astype({"f2": complex}), "columns and types", "columns are not numeric: f2 is complex128"),
        (good_table().assign(f0=pd.Timestamp(0)), "columns and types", "columns are not numeric: f0 is datetime64[ns]"),
        (good_table().assign(label=[[0]] * 108), "columns and types", "columns are not numeric: label is object"),
        (
            pd.concat([good_table(), good_table()[["f1"]]], axis=1),
            "columns and types",
            "columns stand more than once: f1",
        ),
    ],
    ids=lambda value: None if isinstance(value, pd.DataFrame) else value,
)
def test_what_is_wrong_with_the_table_as_a_whole_is_said(table: pd.DataFrame, name: str, reason: str) -> None:
    report = validate(table)
    assert report.reason == f"{name}: {reason}"
    assert f"| {name} | FAIL | " in report.to_markdown()


def test_one_row_is_judged_as_any_table() -> None:
    report = validate(good_table()[:1], make_spec(min_rows=1))
    assert failures(report).keys() == {"every split is there", "every class in every split"}
    assert report.reason == "every split is there: no rows: test, val"


def test_a_spec_without_features_is_said() -> None:
    report = validate(good_table(), make_spec(0))
    assert report.reason == "columns and types: table_spec() names no features"


def test_the_first_ten_rows_are_named_and_all_are_counted() -> None:
    table = good_table()
    table.loc[:29, "f0"] = 2.0
    report = validate(table)
    found = next(expectation for expectation in report.expectations if not expectation.passed)
    assert (found.rows, found.num_rows, found.observed) == (list(range(10)), 30, "30 of 108 rows")
    assert found.reason == "features above 1 in 30 rows: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"
    assert report.summary == f"108 rows, 13 expectations, 1 failed: {HIGH}: {found.reason}"
    assert f"| {HIGH} | FAIL | 30 of 108 rows | {found.reason} |" in report.to_markdown()


@pytest.mark.parametrize(
    "index",
    [
        np.arange(108) + 1000,
        [7] * 108,
        list("ab") * 54,
        pd.MultiIndex.from_product([range(54), ["x", "y"]]),
        pd.date_range("2026-01-01", periods=108),
    ],
    ids=["offset", "all-equal", "text", "two-levels", "dates"],
)
def test_rows_are_named_by_position_under_any_index(index: Any) -> None:
    table = good_table()
    table.loc[3, "f1"] = np.nan
    table.loc[5, list(FEATURES)] = 0.5
    table.index = pd.Index(index)
    assert failures(validate(table)) == {NULL: [3], CONSTANT: [5]}


DRESSES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "float32": lambda table: table.astype(dict.fromkeys(FEATURES, "float32")),
    "nullable": lambda table: table.convert_dtypes(),
    "pyarrow": lambda table: table.convert_dtypes(dtype_backend="pyarrow"),
    "sparse": lambda table: table.astype(dict.fromkeys(FEATURES, pd.SparseDtype("float64"))),
    "categorical split": lambda table: table.astype({"split": "category"}),
    "object split": lambda table: table.astype({"split": object}),
    "float label": lambda table: table.astype({"label": float}),
    "bool feature": lambda table: table.assign(f0=table["f0"] > 0.5),
    "nullable bool feature": lambda table: table.assign(f0=(table["f0"] > 0.5).astype("boolean")),
    "more columns": lambda table: table.assign(source="a", when=pd.Timestamp(0)),
    "other order": lambda table: table[reversed(table.columns)],
}


@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES.keys())
def test_the_dtypes_in_which_the_same_data_comes_change_nothing(
    dress: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    table = good_table()
    table.loc[3, "f1"] = None
    assert failures(validate(dress(table))) == {NULL: [3]}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_regression_has_no_classes_and_needs_its_targets(value: float) -> None:
    table = good_table().assign(label=np.linspace(-5, 5, 108))
    report = validate(table, make_spec(classes=()))
    assert failures(report) == {}
    assert report.classes_by_split == {}
    assert not {"known labels", "labels are balanced"} & {found.name for found in report.expectations}
    table.loc[4, "label"] = value
    assert failures(validate(table, make_spec(classes=()))) == {NULL: [4]}


def test_one_feature_is_no_constant_row() -> None:
    assert failures(validate(good_table(1), make_spec(1))) == {}


def test_a_wide_table_is_judged_by_as_many_expectations() -> None:
    report = validate(good_table(5_000), make_spec(5_000))
    assert (report.verdict, len(report.expectations)) == ("PASS", 13)


def test_a_pinned_snapshot_that_differs_fails() -> None:
    table = good_table()
    digest = data_digest(table)
    for snapshot in (digest, f"sha256:{digest}"):
        report = validate(table, snapshot=snapshot)
        assert (report.verdict, report.snapshot, report.data_digest) == ("PASS", snapshot, digest)
    table.loc[3, "f1"] += 1e-9
    report = validate(table, snapshot=digest)
    assert failures(report) == {"pinned snapshot": []}
    assert report.reason == (
        f"pinned snapshot: the data's digest is {data_digest(table)}, data.snapshot pins {digest}: the data changed"
    )
