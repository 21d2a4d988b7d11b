"""Throttle: an upload gives way to the training, as far as the steps beside it show that it has to.

Each rank watches its own steps. While they take longer beside an upload than they usually do, the upload's rate is
halved, at once; while they don't, it rises again, slowly. What one upload led to is where the next one begins.
"""

from collections import deque
from statistics import fmean

from ..storage.streams import Pace

SLOWER = 1.05
"""A step beside an upload may take so many times its usual time."""
USUAL_STEPS = 128
"""The last steps without an upload, whose mean is what a step usually takes."""
WINDOW_STEPS, WINDOW_SECONDS = 4, 0.2
"""The rate is looked at after so many steps, and not sooner than that."""
RISE = 1.1
"""Times the rate, while the steps take their usual time."""
SHARE = 1 / 2
"""Of the time until the next save, at most: so long an upload may be made to take."""
SLOWEST = 4 * 2**20
"""Bytes per second; no upload is made slower."""


class Throttle:
    """Sets the pace of one rank's uploads."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._usual: deque[float] = deque(maxlen=USUAL_STEPS)
        self._usual_seconds = float("inf")
        self._rate = float("inf")
        """What the uploads until now have led to, in bytes per second."""
        self._floor: float = SLOWEST
        self._begin_window()

    def start(self, num_bytes: int, num_steps: int) -> None:
        """An upload of `num_bytes` begins, and the next one in `num_steps` steps."""
        if self._usual:
            self._usual_seconds = fmean(self._usual)
        self._floor = max(SLOWEST, num_bytes / (SHARE * num_steps * self._usual_seconds))
        self._pace.rate = max(self._rate, self._floor)
        self._begin_window()

    def lift(self) -> None:
        """Let an upload run as fast as it can: the training waits for it."""
        self._pace.rate = float("inf")

    def observe(self, seconds: float, *, uploading: bool) -> None:
        """Take in how long a step took; without an upload beside it that is all."""
        if not uploading:
            self._usual.append(seconds)
            return
        self._beside.append(seconds)
        if len(self._beside) >= WINDOW_STEPS and sum(self._beside) >= WINDOW_SECONDS:
            self._look()

    def _look(self) -> None:
        """At the end of a window: halve the rate, or let it rise."""
        seen = (self._pace.taken - self._taken) / sum(self._beside)
        if seen > 0:  # else all is sent, and other ranks are waited for
            if fmean(self._beside) > SLOWER * self._usual_seconds:
                self._rate = max(self._floor, min(self._pace.rate, seen) / 2)
            else:
                self._rate = self._pace.rate * RISE
            self._pace.rate = self._rate
        self._begin_window()

    def _begin_window(self) -> None:
        self._beside: list[float] = []
        self._taken = self._pace.taken
