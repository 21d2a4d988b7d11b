"""The new lines of a pod's log, by short reads.

A stream that follows gives nothing while the pod is pending, and hangs when a proxy drops it without a word.
"""

import re
from collections.abc import Mapping
from math import ceil
from time import monotonic
from typing import Any

from .api import Cluster
from .objects import NODE

TAIL_LINES = 500
"""Of one read; what a pod prints beyond it between two reads is left out."""
_OVERLAP_SECONDS = 10
"""Read twice, and told once: clocks differ."""
_STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(\S*) ?(.*)")

_Instant = tuple[str, str]


class LogReader:
    """Reads one pod after the other, and gives each line once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pod = ""
        self._read_at = 0.0
        self._last: _Instant = ("", "")
        self._at_last: set[str] = set()
        """The lines of the last instant: others of the same may come."""

    def new_lines(self, pod: Mapping[str, Any]) -> list[str]:
        """What the pod has printed since the last read.

        Raises:
            ApiError: when the log cannot be read.
        """
        uid = pod["metadata"]["uid"]
        query: dict[str, int] = {"tailLines": TAIL_LINES}
        if uid != self._pod:
            self._pod, self._last, self._at_last = uid, ("", ""), set()
        else:
            query["sinceSeconds"] = ceil(monotonic() - self._read_at) + _OVERLAP_SECONDS
        before = monotonic()
        text = self._cluster.log(pod["metadata"]["name"], NODE, **query)
        self._read_at = before
        return [line for one in text.splitlines() if (line := self._new(one)) is not None]

    def _new(self, stamped: str) -> str | None:
        found = _STAMPED.match(stamped)
        if found is None:  # the kubelet's own words
            return None
        instant, line = (found[1], (found[2] or "").ljust(9, "0")), found[4].rstrip()
        if instant < self._last or (instant == self._last and line in self._at_last):
            return None
        if instant > self._last:
            self._last, self._at_last = instant, set()
        self._at_last.add(line)
        return line
