"""Tables in a terminal: a heading a run, sizes and ages as people say them."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import click

Row = dict[str, Any]
"""What `--json` answers with."""


def print_tables(rows: Sequence[Row], columns: Callable[[Row], dict[str, str]], left: Sequence[str]) -> None:
    """Print a table for each run, under its name; ten thousand rows take no time, which they do with rich.

    Args:
        rows: of the same `run` together.
        columns: what is shown of a row, by heading; the same headings for each.
        left: headings of what is no number, and set to the left.
    """
    shown = [columns(row) for row in rows]
    widths = {name: max(len(name), *(len(cells[name]) for cells in shown)) for name in (shown[0] if shown else ())}

    def line(cells: dict[str, str]) -> str:
        return "  ".join(cells[name].ljust(n) if name in left else cells[name].rjust(n) for name, n in widths.items())

    heading, blank = click.style(line({name: name for name in widths}), underline=True), ""
    for run, of_run in groupby(zip(rows, shown, strict=True), lambda pair: str(pair[0]["run"])):
        lines = (line(cells).rstrip() for _, cells in of_run)
        click.echo("\n".join([blank + click.style(run, bold=True), heading, *lines]))
        blank = "\n"


def size(num_bytes: int | None) -> str:
    """`1.2 MB`; a dash where it is not known."""
    from rich.filesize import decimal

    return "–" if num_bytes is None else decimal(num_bytes)


def age(since: str | None) -> str:
    """How long ago a time was, in whole units: `3 h` is from three to four hours."""
    if since is None:
        return "–"
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
