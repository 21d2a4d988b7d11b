"""An upload gives way to the steps beside it, and is still done in time."""

from math import inf

import pytest
from convergate.components.storage.streams import Pace
from convergate.components.training.throttle import SHARE, SLOWER, SLOWEST, USUAL_STEPS, WINDOW_STEPS, Throttle
from hypothesis import given, settings
from hypothesis import strategies as st

MB = 10**6


class Machine:
    """Steps of `usual` seconds that an upload slows down: by `cost` seconds for each second that it goes at `line`."""

    def __init__(self, usual: float, cost: float, line: float) -> None:
        self.pace = Pace()
        self.throttle = Throttle(self.pace)
        self._usual, self._cost, self._line = usual, cost, line
        self.train(USUAL_STEPS)

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.throttle.observe(self._usual, uploading=False)

    def upload(self, num_bytes: int, save_every: int) -> list[float]:
        """How long each step took beside an upload."""
        self.throttle.start(num_bytes, save_every)
        left, steps = float(num_bytes), []
        while left > 0:
            rate = min(self.pace.rate, self._line)
            steps.append(self._usual * (1 + self._cost * rate / self._line))
            sent = min(left, rate * steps[-1])
            left -= sent
            self.pace.taken += round(sent)
            self.throttle.observe(steps[-1], uploading=True)
        return steps


def test_a_pace_is_free_until_an_upload_slows_the_steps_down() -> None:
    machine = Machine(usual=0.1, cost=0.04, line=100 * MB)
    steps = machine.upload(1000 * MB, save_every=1000)
    assert machine.pace.rate == inf
    assert sum(steps) == pytest.approx(10, rel=0.02)


@settings(deadline=None)
@given(
    usual=st.floats(0.02, 0.2),
    cost=st.floats(0.08, 2.0),
    line=st.floats(200 * MB, 2000 * MB),
    seconds=st.floats(5.0, 20.0),
)
def test_steps_beside_uploads_come_near_their_usual_time_once_the_rate_is_found(
    usual: float, cost: float, line: float, seconds: float
) -> None:
    """Where saves are rare; the first windows of the first upload are what it costs to find out."""
    machine, save_every = Machine(usual, cost, line), round(200 * seconds / usual)
    num_bytes = round(line * seconds)
    machine.upload(num_bytes, save_every)
    machine.train(USUAL_STEPS)
    later = machine.upload(num_bytes, save_every)
    lowest = 1 + cost * max(SLOWEST, num_bytes / (SHARE * save_every * usual)) / line
    assert sum(later) / len(later) <= usual * max(SLOWER + 0.02, lowest)


@settings(deadline=None)
@given(
    usual=st.floats(0.01, 2.0), cost=st.floats(0.0, 5.0), line=st.floats(50 * MB, 2000 * MB), part=st.floats(0.01, 0.5)
)
def test_an_upload_that_could_be_done_in_half_of_the_time_until_the_next_save_is(
    usual: float, cost: float, line: float, part: float
) -> None:
    """However much the steps suffer."""
    machine, save_every = Machine(usual, cost, line), 1000
    num_bytes = round(part * line * save_every * usual)
    for _ in range(3):
        steps = machine.upload(num_bytes, save_every)
        assert len(steps) <= SHARE * save_every + 1
        machine.train(save_every - len(steps))


def test_it_is_lifted_where_the_training_waits_and_back_for_the_next_upload() -> None:
    machine = Machine(usual=0.1, cost=1.0, line=100 * MB)
    machine.upload(500 * MB, save_every=10_000)
    found = machine.pace.rate
    assert SLOWEST <= found < 10 * MB
    machine.throttle.lift()
    assert machine.pace.rate == inf
    machine.throttle.start(500 * MB, 10_000)
    assert machine.pace.rate == found


def test_steps_that_are_slow_after_the_last_byte_change_nothing() -> None:
    """Then the other ranks' reports are waited for."""
    machine = Machine(usual=0.1, cost=0.0, line=100 * MB)
    machine.throttle.start(MB, 1000)
    for _ in range(10 * WINDOW_STEPS):
        machine.throttle.observe(0.5, uploading=True)
    assert machine.pace.rate == inf
