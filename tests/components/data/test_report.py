"""The data's digest: another one for any other table, the same one in every process."""

import os
import subprocess
import sys
from collections.abc import Callable

import pandas as pd
import pytest
from convergate.components.data import data_digest
from hypothesis import example, given
from hypothesis import strategies as st

texts = st.none() | st.text("ab'\n\x1f,ü", max_size=4)
integers = st.integers(-(2**63), 2**63 - 1)
CELLS: dict[str, st.SearchStrategy[object]] = {
    "float64": st.floats(),
    "float32": st.floats(width=32),
    "int64": integers,
    "uint8": st.integers(0, 255),
    "bool": st.booleans(),
    "Int64": st.none() | integers,
    "Float64": st.none() | st.floats(allow_nan=False),
    "boolean": st.none() | st.booleans(),
    "int64[pyarrow]": st.none() | integers,
    "str": texts,
    "object": texts | st.integers() | st.booleans() | st.binary(max_size=4),
    "category": st.sampled_from("abc"),
}


@st.composite
def columns_and_another_cell(draw: st.DrawFn) -> tuple[str, list[object], list[object]]:
    """The dtype and cells of a column, and the cells of one that differs in one of them."""
    dtype = draw(st.sampled_from(sorted(CELLS)))
    cells = draw(st.lists(CELLS[dtype], min_size=1, max_size=6))
    where = draw(st.integers(0, len(cells) - 1))
    other = draw(CELLS[dtype].filter(lambda cell: repr(cell) != repr(cells[where])))
    return dtype, cells, [*cells[:where], other, *cells[where + 1 :]]


@given(columns_and_another_cell())
@example(("Int64", [2**53, None], [2**53 + 1, None]))
def test_any_other_cell_is_another_digest(drawn: tuple[str, list[object], list[object]]) -> None:
    dtype, *columns = drawn
    one, same, other = (
        pd.DataFrame({"a": pd.Series(cells, dtype=dtype), "b": 1}) for cells in (columns[0], columns[0], columns[1])
    )
    assert data_digest(one) == data_digest(same)
    assert data_digest(one) != data_digest(other)


TABLE = pd.DataFrame({"a": [1, 2], "b": [0.0, 0.5], "c": ["x", "y"]})


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.astype({"a": "int32"}),
        lambda table: table.astype({"a": "float64"}),
        lambda table: table.astype({"a": "Int64"}),
        lambda table: table.astype({"c": "category"}),
        lambda table: table.rename(columns={"a": "A"}),
        lambda table: table.rename(columns={"a": 0}),
        lambda table: table[["b", "a", "c"]],
        lambda table: table[::-1],
        lambda table: table[:1],
        lambda table: pd.concat([table, table]),
        lambda table: table.drop(columns="c"),
        lambda table: table.assign(b=[-0.0, 0.5]),
        lambda table: table.assign(d=0),
        lambda table: pd.concat([table, table[["a"]]], axis=1),
    ],
)
def test_names_types_and_order_are_in_the_digest(change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    assert data_digest(change(TABLE)) != data_digest(TABLE)


def test_cells_and_names_do_not_run_into_each_other() -> None:
    def table(**columns: list[object]) -> pd.DataFrame:
        return pd.DataFrame({name.strip("_"): pd.Series(cells, dtype=object) for name, cells in columns.items()})

    assert data_digest(table(a=[1], _2x=[5])) != data_digest(table(a=[12], x=[5]))
    assert data_digest(table(a=["x', 'y"])) != data_digest(table(a=["x", "y"]))
    assert data_digest(table(a=["1", 1])) != data_digest(table(a=[1, "1"]))


def test_the_index_is_not() -> None:
    assert data_digest(TABLE.set_index([["u", "v"]])) == data_digest(TABLE)


def test_it_is_the_same_in_every_process() -> None:
    making = f"pd.DataFrame({TABLE.to_dict('list')}).astype({{'c': 'category'}}).assign(d=['x', None])"
    script = f"import pandas as pd\nfrom convergate.components.data import data_digest\nprint(data_digest({making}))"
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C"}
        answer = subprocess.run([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, check=True)
        digests.add(answer.stdout)
    here = TABLE.astype({"c": "category"}).assign(d=["x", None])
    assert digests == {f"{data_digest(here)}\n".encode()}
