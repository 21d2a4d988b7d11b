"""The trace: every step of every rank comes back exactly, also of a run that was killed."""

import math
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from convergate.components.errors import ConvergateError
from convergate.components.telemetry import StepRecord, TraceWriter, read_events, read_trace, read_validations
from convergate.components.telemetry.trace import CHUNK_SECONDS


def record(step: int, lr: float = 0.1, loss: float = 1.0) -> StepRecord:
    return StepRecord(step, lr, lr, loss, 1.0, 0.01, 32)


def test_steps_of_all_ranks_come_back_exactly(s3: str) -> None:
    rows = [record(step, lr=0.1 / (step + 1), loss=math.nan if step == 3 else 1 / 3) for step in range(5)]
    rows[4] = rows[4]._replace(applied=False)
    for rank in (0, 1):
        writer = TraceWriter(s3 + "/t", rank, 1, chunk_steps=2)
        for row in rows:
            writer.append(row)
        writer.close()
    trace = read_trace(s3 + "/t")
    assert list(trace["rank"]) == [0] * 5 + [1] * 5
    assert list(trace[trace["rank"] == 1]["lr"]) == [row.lr for row in rows]
    assert trace["loss"].isna().sum() == 2
    assert list(trace["applied"]) == [True] * 4 + [False] + [True] * 4 + [False]


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([range(6), range(4, 8)], [1, 1, 1, 1, 2, 2, 2, 2]),
        ([range(6), range(4, 5)], [1, 1, 1, 1, 2]),  # what was given up does not come back beyond it
        ([range(6), range(4, 8), range(2, 4)], [1, 1, 3, 3]),
        ([range(6), range(0), range(6, 8)], [1, 1, 1, 1, 1, 1, 3, 3]),
        ([range(6), range(3)], [2, 2, 2]),
    ],
)
def test_an_attempt_ends_where_a_later_one_began(s3: str, attempts: list[range], expected: list[int]) -> None:
    for attempt, steps in enumerate(attempts, 1):
        # The first attempt has one rank more.
        for rank in (0, 1) if attempt == 1 else (0,):
            writer = TraceWriter(s3 + "/t", rank, attempt, chunk_steps=4)
            for step in steps:
                writer.append(record(step))
                if rank == 0:
                    writer.validation(step + 1, {"attempt": attempt, "loss": 0.5})
            writer.close()
    trace = read_trace(s3 + "/t")
    mine = trace[trace["rank"] == 0]
    assert list(mine["step"]) == list(range(len(expected)))
    assert list(mine["attempt"]) == expected
    assert list(trace[trace["rank"] == 1]["step"]) == list(range(expected.count(1)))
    assert len(read_trace(s3 + "/t", every_attempt=True)) == 6 + sum(map(len, attempts))
    validations = read_validations(s3 + "/t")
    assert list(validations["metric"]) == ["attempt", "loss"] * len(expected)
    assert list(validations[validations["metric"] == "attempt"]["value"]) == expected


def wait_for_steps(uri: str, count: int) -> list[int]:
    """The steps of a trace as soon as there are so many, while its writer is at work."""
    deadline = time.monotonic() + 60
    while len(steps := list(read_trace(uri)["step"])) < count:
        assert time.monotonic() < deadline, steps
    return steps


WRITER = """
import sys, threading
from convergate.components.telemetry import StepRecord, TraceWriter

writer = TraceWriter(sys.argv[1], 0, 1, chunk_steps=10)
for step in range(25):
    writer.append(StepRecord(step, 0.1, 0.1, 1.0, 1.0, 0.01, 32))
threading.Event().wait()
"""


def test_it_is_readable_while_the_run_goes_on_and_complete_up_to_the_last_flush_after_a_kill_9(s3: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, s3 + "/t"]) as process:
        try:
            assert wait_for_steps(s3 + "/t", 20) == list(range(20))
            assert process.poll() is None
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list(read_trace(s3 + "/t")["step"]) == list(range(20))


def test_what_was_handed_over_is_there_once_another_thread_has_waited_for_it(s3: str) -> None:
    writer = TraceWriter(s3 + "/t", 0, 1)
    for step in range(7):
        writer.append(record(step))
        writer.event(step, "restart", "")
    wait = writer.hand_over()
    writer.append(record(7))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(wait).result()
    assert list(read_trace(s3 + "/t")["step"]) == list(read_events(s3 + "/t")["step"]) == list(range(7))
    writer.close()
    wait()
    assert list(read_trace(s3 + "/t")["step"]) == list(range(8))


def test_slow_steps_are_flushed_before_a_chunk_is_full(s3: str) -> None:
    writer = TraceWriter(s3 + "/t", 0, 1)
    for step in range(8):
        writer.append(record(step)._replace(step_seconds=CHUNK_SECONDS / 3))
    assert wait_for_steps(s3 + "/t", 6) == list(range(6))
    writer.close()
    assert list(read_trace(s3 + "/t")["step"]) == list(range(8))


def test_reading_many_chunks_keeps_the_order(s3: str) -> None:
    writer = TraceWriter(s3 + "/t", 0, 1, chunk_steps=1)
    for step in range(40):
        writer.append(record(step, loss=float(step)))
    writer.close()
    assert list(read_trace(s3 + "/t")["loss"]) == [float(step) for step in range(40)]


def test_events_of_every_attempt_come_back_in_order(s3: str) -> None:
    told = [
        (1, 7, "restart", "plateau: ×0.5"),
        (1, 1200, "rolled_back", 'to step 900, "loss nan"'),
        (2, 900, "resumed", ""),
        (2, 950, "reduce", "½"),
        (2, 950, "update_skipped", "loss nan"),
    ]
    for attempt in (1, 2):
        writer = TraceWriter(s3 + "/t", 0, attempt)
        for of_attempt, *event in told:
            if of_attempt == attempt:
                writer.event(*event)
        writer.close()
    found = read_events(s3 + "/t")
    assert list(found.columns) == ["attempt", "step", "kind", "detail"]
    assert [tuple(row) for row in found.itertuples(index=False)] == told
    assert read_trace(s3 + "/t").empty


def test_no_trace_is_an_empty_one(s3: str) -> None:
    assert read_trace(s3 + "/none").empty
    assert read_validations(s3 + "/none").empty
    assert read_events(s3 + "/none").empty


def test_validations_keep_what_is_not_finite(s3: str) -> None:
    writer = TraceWriter(s3 + "/t", 0, 1)
    writer.validation(10, {"loss": math.nan, "accuracy": 0.1})
    writer.validation(20, {"loss": 0.5, "accuracy": 0.9})
    writer.close()
    found = read_validations(s3 + "/t")
    assert list(found["step"]) == [10, 10, 20, 20]
    assert math.isnan(found[(found["step"] == 10) & (found["metric"] == "loss")]["value"].iloc[0])


@pytest.mark.parametrize("write", ["append", "event", "validation"])
def test_a_write_that_fails_surfaces(s3: str, write: str) -> None:
    writer = TraceWriter("s3://no-such-bucket-here/t", 0, 1, chunk_steps=1)
    given = {"append": (record(0),), "event": (0, "restart", ""), "validation": (0, {})}
    getattr(writer, write)(*given[write])
    for wait in (writer.hand_over(), writer.hand_over(), writer.close):
        with pytest.raises(ConvergateError, match="the trace cannot be written: .*no such bucket"):
            wait()
    with pytest.raises(ConvergateError, match="the trace cannot be written: .*no such bucket"):
        writer.append(record(1))
