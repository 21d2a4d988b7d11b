"""When a recurring run starts: the five fields that people write, as the six that Kubeflow Pipelines reads."""

import re

from ..components.errors import UserError

DESCRIPTORS = ("@yearly", "@monthly", "@weekly", "@daily", "@hourly")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("second", 0, 59, []),
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of the month", 1, 31, []),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)


def six_fields(text: str) -> str:
    """A cron expression with seconds, first: `0 2 * * *` becomes `0 0 2 * * *`.

    Given five fields the server would read them as seconds, minutes, hours, days and months, without a word.

    Raises:
        UserError: when it is no cron expression.
    """
    if text in DESCRIPTORS:
        return text
    fields = text.split()
    if len(fields) not in (5, 6):
        right = "minute hour day month weekday, such as '0 2 * * *', or seconds first"
        raise UserError(f"--cron {text!r}: {len(fields)} fields → {right}")
    fields = ["0"] * (6 - len(fields)) + fields
    for field, (name, low, high, names) in zip(fields, _FIELDS, strict=True):
        for part in field.split(","):
            if not _is_valid(part.lower(), low, high, names):
                words = f", or {names[0]} to {names[-1]}" if names else ""
                raise UserError(f"--cron {text!r}: {part!r} is no {name} → {low} to {high}{words}, *, a-b, or */n")
    return " ".join(fields)


def _is_valid(part: str, low: int, high: int, names: list[str]) -> bool:
    """`*`, `?`, a value or a range, each with a step or without."""
    match = re.fullmatch(r"(?P<range>\*|\?|\w+(-\w+)?)(/(?P<step>[1-9]\d*))?", part)
    if match is None:
        return False
    if match["range"] in ("*", "?"):
        return True
    values = [_value(end, low, names) for end in match["range"].split("-")]
    known = [value for value in values if value is not None and low <= value <= high]
    return len(known) == len(values) and known == sorted(known)


def _value(text: str, low: int, names: list[str]) -> int | None:
    return names.index(text) + low if text in names else int(text) if text.isdecimal() else None
