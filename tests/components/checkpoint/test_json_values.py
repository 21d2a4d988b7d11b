"""What JSON has not comes back as it was."""

import json
import math
from typing import Any

import pytest
from convergate.components.checkpoint.json_values import decode, encode
from convergate.components.errors import UserError
from hypothesis import given
from hypothesis import strategies as st

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.integers() | st.text() | st.sampled_from(["__tuple__", "__pairs__", "__float__"]) | st.tuples(st.integers())
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@given(VALUES)
def test_everything_comes_back(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert back == value
    assert repr(back) == repr(value)


def test_a_value_that_is_no_number_stays_none() -> None:
    assert math.isnan(decode(encode({"best": math.nan}))["best"])


def test_anything_else_is_refused() -> None:
    with pytest.raises(UserError, match="holds a set, which has no JSON form"):
        encode({"seen": [{1, 2}]})
