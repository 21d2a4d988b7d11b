"""Cron expressions: five fields become six, and what the server would read as something else is refused."""

import pytest
from convergate.components.errors import UserError
from convergate.pipelines.cron import six_fields


@pytest.mark.parametrize(
    ("text", "six"),
    [
        ("0 2 * * *", "0 0 2 * * *"),
        ("*/15 8-18 * * mon-FRI", "0 */15 8-18 * * mon-FRI"),
        ("0 0 1,15 jan ?", "0 0 0 1,15 jan ?"),
        ("30 0 2 * * *", "30 0 2 * * *"),
        ("  0   2 * * 0 ", "0 0 2 * * 0"),
        ("@daily", "@daily"),
    ],
)
def test_five_fields_begin_with_the_minute(text: str, six: str) -> None:
    assert six_fields(text) == six


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("60 2 * * *", "'60' is no minute"),
        ("0 24 * * *", "'24' is no hour"),
        ("0 2 0 * *", "'0' is no day of the month"),
        ("0 2 * 13 *", "'13' is no month"),
        ("0 2 * * 7", "'7' is no day of the week → 0 to 6, or sun to sat"),
        ("0 2 * * fri-mon", "'fri-mon' is no day of the week"),
        ("0 5-2 * * *", "'5-2' is no hour"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("0 2 * * mon,", "'' is no day of the week"),
        ("0 2 * * ²", "'²' is no day of the week"),
        ("", "0 fields"),
        ("@every 5m", "2 fields"),
        ("0 0 2 * * * 2026", "7 fields"),
    ],
)
def test_what_is_none_is_named(text: str, named: str) -> None:
    with pytest.raises(UserError) as raised:
        six_fields(text)
    assert named in str(raised.value)
    assert str(raised.value).startswith(f"--cron {text!r}: ")
