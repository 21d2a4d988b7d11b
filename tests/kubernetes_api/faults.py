"""Answers that go wrong: statuses with headers, and connections that drop before, in, or after the work."""

import re
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Fault:
    """Goes wrong `times` times for requests that match, e.g. `Fault("GET .*/trainjobs/", 503, times=2)`."""

    match: str
    """A regular expression over `METHOD path`."""
    status: int = 0
    times: int = 1
    passes: int = 0
    """How many requests that match go well before."""
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    drop: Literal["", "before", "in", "after"] = ""
    """Close the connection: before anything is done, in the middle of the answer, or once it is done but not told."""
    met: int = 0

    def meets(self, line: str) -> bool:
        """Whether it is this request's turn to go wrong."""
        if self.met >= self.times or not re.search(self.match, line):
            return False
        if self.passes:
            self.passes -= 1
            return False
        self.met += 1
        return True
