"""The derived columns: what is said of a row is exactly so, for any row."""

import numpy as np
import pandas as pd
import pytest
from convergate.components.data.expectations import MAX_IMBALANCE, derive, suite
from convergate.components.task import TableSpec
from hypothesis import given
from hypothesis import strategies as st

from .conftest import good_table, make_spec

numbers = st.floats(-1e6, 1e6)
cells = numbers | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0])
rows = st.integers(1, 5).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1))


def derived(values: list[list[float]]) -> pd.DataFrame:
    width = len(values[0])
    table = pd.DataFrame(values, columns=[f"f{i}" for i in range(width)], dtype=float)
    return derive(table.assign(label=0, split="train"), make_spec(width))


@given(rows)
def test_broken_cells_and_the_range_of_the_others(values: list[list[float]]) -> None:
    found = derived(values)
    for number, row in enumerate(values):
        finite = [value for value in row if np.isfinite(value)]
        assert found["broken_cells"][number] == len(row) - len(finite)
        assert found["smallest"][number] == min(finite, default=np.inf)
        assert found["largest"][number] == max(finite, default=-np.inf)


@given(st.lists(numbers, min_size=2, max_size=70), st.integers(0, 69))
def test_a_row_is_constant_exactly_where_all_its_features_are_equal(values: list[float], position: int) -> None:
    constant = [values[0]] * len(values)
    other = list(constant)
    other[position % len(values)] = np.nextafter(values[0], np.inf)
    found = derived([constant, other, values])
    assert list(found["spread"] == 0) == [True, False, len(set(values)) == 1]


@given(rows)
def test_hashes_are_equal_exactly_where_rows_are(values: list[list[float]]) -> None:
    hashes = derived(values)["row_hash"]
    for i, one in enumerate(values):
        for j, other in enumerate(values):
            assert (hashes[i] == hashes[j]) == np.array_equal(one, other, equal_nan=True)


def test_every_nan_is_one_nan() -> None:
    quiet, payload = np.array([0x7FF8000000000000, 0xFFF8000000000001], dtype=np.uint64).view(np.float64)
    hashes = derived([[quiet, 1.0], [payload, 1.0]])["row_hash"]
    assert hashes[0] == hashes[1]


@given(st.lists(st.tuples(st.sampled_from(["train", "val"]), st.integers(0, 2)), min_size=1, max_size=40))
def test_imbalance_is_of_the_largest_class_over_the_rows_own_in_its_split(rows: list[tuple[str, int]]) -> None:
    splits, labels = zip(*rows, strict=True)
    table = pd.DataFrame({"f0": np.arange(len(rows)), "label": labels, "split": splits})
    found = derive(table, make_spec(1))
    for number, row in enumerate(rows):
        largest = max(rows.count((row[0], label)) for label in range(3))
        assert found["imbalance"][number] == largest / rows.count(row)
        assert found["class_of_split"][number] == f"{row[0]} {row[1]}"


def test_the_imbalance_that_is_still_allowed() -> None:
    limit = next(expectation for expectation in suite(make_spec()) if expectation.name == "labels are balanced")
    assert limit.arguments == {"max_value": MAX_IMBALANCE}
    for common, allowed in ((10, True), (11, False)):
        table = good_table()[: common + 1].assign(label=[0] * common + [1])
        assert (derive(table, make_spec())["imbalance"].max() <= MAX_IMBALANCE) == allowed


@pytest.mark.parametrize("classes", [(), (0, 1, 2)])
def test_the_suite_looks_at_columns_that_are_derived(classes: tuple[int, ...]) -> None:
    spec: TableSpec = make_spec(classes=classes)
    columns = {expectation.column for expectation in suite(spec) if expectation.column}
    assert columns <= set(derive(good_table(), spec).columns)
    assert len({(expectation.type, expectation.column) for expectation in suite(spec)}) == len(suite(spec))
