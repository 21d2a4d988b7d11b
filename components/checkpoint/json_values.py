"""Values that JSON has not, as JSON and back: tuples, keys that are no text, infinities and NaN."""

import math
from typing import Any

from ..errors import UserError

_TUPLE, _PAIRS, _FLOAT = "__tuple__", "__pairs__", "__float__"


def encode(value: Any) -> Any:
    """A value of numbers, texts, None, lists, tuples and dicts, as JSON has it.

    Raises:
        UserError: when something else is in it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: repr(value)}
    if isinstance(value, list):
        return [encode(one) for one in value]
    if isinstance(value, tuple):
        return {_TUPLE: [encode(one) for one in value]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in (_TUPLE, _PAIRS, _FLOAT) for key in value):
            return {key: encode(one) for key, one in value.items()}
        return {_PAIRS: [[encode(key), encode(one)] for key, one in value.items()]}
    raise UserError(f"a state to save holds a {type(value).__name__}, which has no JSON form → numbers, texts, lists")


def decode(value: Any) -> Any:
    """What `encode` was given."""
    if isinstance(value, list):
        return [decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TUPLE}:
        return tuple(decode(one) for one in value[_TUPLE])
    if value.keys() == {_PAIRS}:
        return {decode(key): decode(one) for key, one in value[_PAIRS]}
    if value.keys() == {_FLOAT}:
        return float(value[_FLOAT])
    return {key: decode(one) for key, one in value.items()}
