"""One record a step: what was applied, what was planned, what came of it.

Appending is a list append. A thread writes full chunks to S3 as Parquet, one object a chunk, so a trace can be read
while the run goes on and is complete up to the last chunk after a kill -9. Layout below the trace's prefix:
`steps/rank-<r>/attempt-<a>/<first step>.parquet` and `validation/attempt-<a>/<step>.json`. After a resume the later
attempt's rows win.
"""

import io
import json
import queue
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..errors import OutsideError
from ..storage import S3Location, S3Store

if TYPE_CHECKING:
    import pandas as pd

CHUNK_STEPS = 1000
JOIN_TIMEOUT_S = 90


class StepRecord(NamedTuple):
    """One step of one rank; float64 throughout."""

    step: int
    lr: float
    """The rate found in the optimizer at the update."""
    lr_planned: float
    loss: float
    """This rank's mean loss over its part of the global batch, before the update."""
    grad_norm: float
    """The global gradient norm before clipping."""
    step_seconds: float
    samples: int
    """Samples this rank saw in this step."""


class TraceError(OutsideError):
    """The trace cannot be written."""


class TraceWriter:
    """Appends records and ships full chunks in a thread; an error there surfaces at the next `append`."""

    def __init__(self, uri: str, rank: int, attempt: int, chunk_steps: int = CHUNK_STEPS) -> None:
        self._prefix = S3Location.parse(uri)
        self._rank, self._attempt, self._chunk_steps = rank, attempt, chunk_steps
        self._store = S3Store()
        self._rows: list[StepRecord] = []
        self._queue: queue.Queue[list[StepRecord] | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._ship, name="trace", daemon=True)
        self._thread.start()

    def append(self, record: StepRecord) -> None:
        """Add a step's record.

        Raises:
            TraceError: when an earlier chunk could not be written.
        """
        if self._error is not None:
            raise TraceError(f"the trace cannot be written: {self._error}") from self._error
        self._rows.append(record)
        if len(self._rows) >= self._chunk_steps:
            self.flush()

    def flush(self) -> None:
        """Hand what there is to the thread."""
        if self._rows:
            self._queue.put(self._rows)
            self._rows = []

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a validation after `step` updates."""
        body = json.dumps({"step": step, "metrics": {name: repr(value) for name, value in metrics.items()}})
        location = self._prefix / f"validation/attempt-{self._attempt:03}/{step:09}.json"
        self._store.write(location, body.encode(), "application/json")

    def close(self) -> None:
        """Write what is left and wait for it, bounded.

        Raises:
            TraceError: when a chunk could not be written.
        """
        self.flush()
        self._queue.put(None)
        self._thread.join(JOIN_TIMEOUT_S)
        if self._error is not None:
            raise TraceError(f"the trace cannot be written: {self._error}") from self._error
        if self._thread.is_alive():
            raise TraceError(f"the trace at {self._prefix} was not written within {JOIN_TIMEOUT_S} s")

    def _ship(self) -> None:
        while (rows := self._queue.get()) is not None:
            name = f"steps/rank-{self._rank:05}/attempt-{self._attempt:03}/{rows[0].step:09}.parquet"
            try:
                self._store.write(self._prefix / name, _parquet(rows))
            except Exception as error:
                self._error = error
                return


def _parquet(rows: list[StepRecord]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(zip(StepRecord._fields, zip(*rows, strict=True), strict=True)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_trace(uri: str, *, every_attempt: bool = False) -> "pd.DataFrame":
    """Every step of every rank, sorted by rank, step and attempt; empty where there is no trace.

    Columns: attempt, rank, and the fields of `StepRecord`. Where several attempts ran a step, the last one's row
    stands, or all of them with `every_attempt`.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    store = S3Store()
    frames = []
    for location in store.list(S3Location.parse(uri) / "steps"):
        rank, attempt = location.key.split("/")[-3:-1]
        frame = pq.read_table(io.BytesIO(store.read(location))).to_pandas()
        frame.insert(0, "rank", int(rank.removeprefix("rank-")))
        frame.insert(0, "attempt", int(attempt.removeprefix("attempt-")))
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=["attempt", "rank", *StepRecord._fields])
    trace: pd.DataFrame = pd.concat(frames, ignore_index=True).sort_values(
        ["rank", "step", "attempt"], ignore_index=True
    )
    if every_attempt:
        return trace
    return trace.drop_duplicates(["rank", "step"], keep="last", ignore_index=True)


def read_validations(uri: str) -> "pd.DataFrame":
    """Every validation: columns step, metric, value; the last attempt's stand."""
    import pandas as pd

    store = S3Store()
    rows: dict[tuple[int, str], float] = {}
    for location in _in_order(store.list(S3Location.parse(uri) / "validation")):
        body = json.loads(store.read(location))
        rows |= {(body["step"], name): float(value) for name, value in body["metrics"].items()}
    ordered = [(step, name, value) for (step, name), value in sorted(rows.items())]
    return pd.DataFrame(ordered, columns=["step", "metric", "value"])


def _in_order(locations: Iterable[S3Location]) -> list[S3Location]:
    return sorted(locations, key=lambda location: location.key)
