"""The trace: every step of every rank comes back exactly, also of a run that was killed."""

import math

import pytest
from convergate.components.errors import ConvergateError
from convergate.components.telemetry import StepRecord, TraceWriter, detect, read_trace, read_validations


def record(
    step: int, lr: float = 0.1, loss: float = 1.0, norm: float = 1.0, planned: float | None = None
) -> StepRecord:
    return StepRecord(step, lr, lr if planned is None else planned, loss, norm, 0.01, 32)


def test_steps_of_all_ranks_come_back_exactly(s3: str) -> None:
    rows = [record(step, lr=0.1 / (step + 1), loss=math.nan if step == 3 else 1 / 3) for step in range(5)]
    for rank in (0, 1):
        writer = TraceWriter(s3 + "/t", rank, 1, chunk_steps=2)
        for row in rows:
            writer.append(row)
        writer.close()
    trace = read_trace(s3 + "/t")
    assert list(trace["rank"]) == [0] * 5 + [1] * 5
    assert list(trace[trace["rank"] == 1]["lr"]) == [row.lr for row in rows]
    assert trace["loss"].isna().sum() == 2


def test_a_later_attempt_wins(s3: str) -> None:
    for attempt, steps, loss in ((1, range(6), 1.0), (2, range(4, 8), 2.0)):
        writer = TraceWriter(s3 + "/t", 0, attempt)
        for step in steps:
            writer.append(record(step, loss=loss))
        writer.close()
    trace = read_trace(s3 + "/t")
    assert list(trace["step"]) == list(range(8))
    assert list(trace["loss"]) == [1.0] * 4 + [2.0] * 4
    assert len(read_trace(s3 + "/t", every_attempt=True)) == 10


def test_what_was_flushed_is_readable_while_the_run_goes_on(s3: str) -> None:
    writer = TraceWriter(s3 + "/t", 0, 1, chunk_steps=3)
    for step in range(4):
        writer.append(record(step))
    writer.close()
    assert len(read_trace(s3 + "/t")) == 4


def test_no_trace_is_an_empty_one(s3: str) -> None:
    assert read_trace(s3 + "/none").empty
    assert read_validations(s3 + "/none").empty


def test_validations_keep_what_is_not_finite(s3: str) -> None:
    writer = TraceWriter(s3 + "/t", 0, 1)
    writer.validation(10, {"loss": math.nan, "accuracy": 0.1})
    writer.validation(20, {"loss": 0.5, "accuracy": 0.9})
    writer.close()
    found = read_validations(s3 + "/t")
    assert list(found["step"]) == [10, 10, 20, 20]
    assert math.isnan(found[(found["step"] == 10) & (found["metric"] == "loss")]["value"].iloc[0])


def test_a_write_that_fails_surfaces(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TraceWriter("s3://no-such-bucket-here/t", 0, 1)
    writer.append(record(0))
    with pytest.raises(ConvergateError, match="trace cannot be written"):
        writer.close()


def test_detectors() -> None:
    healthy = [record(step, norm=1 + 0.1 * (step % 3)) for step in range(200)]
    assert detect(healthy) == []
    kinds = {
        "non_finite_loss": [*healthy, record(200, loss=math.nan)],
        "exploding_gradient": [*healthy, record(200, norm=1000.0)],
        "lr_off_plan": [*healthy, record(200, lr=0.1, planned=0.1 * (1 + 1e-12))],
    }
    for kind, records in kinds.items():
        assert [(found.kind, found.step) for found in detect(records)] == [(kind, 200)]
