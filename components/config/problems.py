"""What is wrong with a config, as people read it."""

import json
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError

MAX_HEAD = 44
"""Columns for path and value; a longer one has its reason on a line of its own."""
MAX_SHOWN = 40
"""Characters of one value, or of one key."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config. `fix` may be empty where the reason says it."""

    path: str
    reason: str
    value: str = ""
    fix: str = ""
    level: Literal["error", "warning"] = "error"

    @property
    def head(self) -> str:
        """Path and value."""
        return f"{self.path} = {self.value}" if self.value else self.path

    @property
    def line(self) -> str:
        """All of it on one line."""
        return f"{self.head}: {self.reason}" + (f" → {self.fix}" if self.fix else "")

    def lines(self, width: int) -> str:
        """The problem as people read it: path and value in `width` columns, the reason, and the fix below it."""
        below = "\n" + " " * (width + 4)
        between = below if len(self.head) > width else " " * (width - len(self.head) + 2)
        return f"  {self.head}{between}{self.reason}" + (f"{below}→ {self.fix}" if self.fix else "")


class ProblemsError(UserError):
    """A config with problems; `problems` holds them all."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        width = min(MAX_HEAD, max(len(problem.head) for problem in problems))
        super().__init__("\n".join([f"{source}: {count}", *(problem.lines(width) for problem in problems)]))
        self.problems = problems


def shown(value: object) -> str:
    """A value on one line, as JSON and YAML have it, without anything that a terminal would obey."""
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return cut("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def cut(text: str) -> str:
    """As much of a text as is shown."""
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
