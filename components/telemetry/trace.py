"""One record a step: what was applied, what was planned, what came of it.

Appending is a list append. A thread writes chunks to S3 as Parquet, one object a chunk, so a trace can be read while
the run goes on and is complete up to the last chunk after a kill -9. Layout below the trace's prefix:

    steps/rank-<r>/attempt-<a>/<first step>.parquet
    validation/attempt-<a>/<step>.json
    events/attempt-<a>/<step>-<kind>.json

Where a later attempt began, an earlier one's steps and validations end; its events stay.
"""

import io
import json
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import OutsideError
from ..storage import S3Location, S3Store

if TYPE_CHECKING:
    import pandas as pd

CHUNK_STEPS = 1000
CHUNK_SECONDS = 30.0
"""A chunk is written when its steps took so long together, however few they are."""
JOIN_TIMEOUT_S = 90
READERS = 8


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
    applied: bool = True
    """Whether the update was applied; False where it was skipped."""


class TraceError(OutsideError):
    """The trace cannot be written."""


class TraceWriter:
    """Appends records and ships chunks in a thread; an error there surfaces at the next `append`."""

    def __init__(self, uri: str, rank: int, attempt: int, chunk_steps: int = CHUNK_STEPS) -> None:
        self._prefix = S3Location.parse(uri)
        self._rank, self._attempt, self._chunk_steps = rank, attempt, chunk_steps
        self._store = S3Store()
        self._rows: list[StepRecord] = []
        self._seconds = 0.0
        self._queue: queue.Queue[tuple[str, Callable[[], bytes]] | threading.Event | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._ship, name="trace", daemon=True)
        self._thread.start()

    def append(self, record: StepRecord) -> None:
        """Add a step's record.

        Raises:
            TraceError: when something could not be written since.
        """
        if self._error is not None:
            raise TraceError(f"the trace cannot be written: {self._error}") from self._error
        self._rows.append(record)
        self._seconds += record.step_seconds
        if len(self._rows) >= self._chunk_steps or self._seconds >= CHUNK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand the steps that there are to the thread."""
        if self._rows:
            rows = self._rows
            name = f"steps/rank-{self._rank:05}/attempt-{self._attempt:03}/{rows[0].step:09}.parquet"
            self._queue.put((name, lambda: _parquet(rows)))
            self._rows, self._seconds = [], 0.0

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a validation after `step` updates."""
        values = {name: repr(value) for name, value in metrics.items()}
        self._put_json(f"validation/attempt-{self._attempt:03}/{step:09}.json", {"step": step, "metrics": values})

    def event(self, step: int, kind: str, detail: str) -> None:
        """Write something worth knowing of a step: a restart of the schedule, a rollback, a skipped update.

        Args:
            step: the update that it comes before, or that was skipped.
            kind: a name that can be part of a key; a step has one event of a kind.
            detail: what happened, in words.
        """
        body = {"step": step, "kind": kind, "detail": detail}
        self._put_json(f"events/attempt-{self._attempt:03}/{step:09}-{kind}.json", body)

    def hand_over(self) -> Callable[[], None]:
        """Hand all that there is to the thread, and go on at once.

        Returns:
            What waits, in any thread and bounded, until it is written: whoever goes on from there finds every step
            until now. It raises a TraceError when something could not be written.
        """
        self.flush()
        written = threading.Event()
        self._queue.put(written)
        return lambda: self._check(in_time=written.wait(JOIN_TIMEOUT_S))

    def close(self) -> None:
        """Write what is left, wait for it, bounded, and end.

        Raises:
            TraceError: when something could not be written.
        """
        self.flush()
        self._queue.put(None)
        self._thread.join(JOIN_TIMEOUT_S)
        self._check(in_time=not self._thread.is_alive())

    def _check(self, *, in_time: bool) -> None:
        if self._error is not None:
            raise TraceError(f"the trace cannot be written: {self._error}") from self._error
        if not in_time:
            raise TraceError(f"the trace at {self._prefix} was not written within {JOIN_TIMEOUT_S} s")

    def _put_json(self, name: str, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self._queue.put((name, lambda: data))

    def _ship(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif self._error is None:
                try:
                    self._write(*item)
                except Exception as error:
                    self._error = error

    def _write(self, name: str, content: Callable[[], bytes]) -> None:
        kind = "application/json" if name.endswith(".json") else "application/vnd.apache.parquet"
        self._store.write(self._prefix / name, content(), kind)


def _parquet(rows: list[StepRecord]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(zip(StepRecord._fields, zip(*rows, strict=True), strict=True)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_trace(uri: str, *, every_attempt: bool = False) -> "pd.DataFrame":
    """Every step of every rank, sorted by rank, step and attempt; empty where there is no trace.

    Columns: attempt, rank, and the fields of `StepRecord`. An attempt's rows end where a later attempt began; with
    `every_attempt` also what was done again, or given up, is there.
    """
    import pandas as pd

    frames = [_chunk(location, body) for location, body in _objects(uri, "steps")]
    if not frames:
        return pd.DataFrame(columns=["attempt", "rank", *StepRecord._fields])
    trace = pd.concat(frames, ignore_index=True)
    kept = trace if every_attempt else _that_stand(trace)
    return kept.sort_values(["rank", "step", "attempt"], ignore_index=True)


def read_validations(uri: str) -> "pd.DataFrame":
    """Every validation: columns step, metric, value; an attempt's end where a later attempt's begin."""
    import pandas as pd

    rows = []
    for location, data in _objects(uri, "validation"):
        body = json.loads(data)
        rows += [(_attempt(location), body["step"], name, float(value)) for name, value in body["metrics"].items()]
    validations = _that_stand(pd.DataFrame(rows, columns=["attempt", "step", "metric", "value"]))
    return validations.drop(columns="attempt").sort_values(["step", "metric"], ignore_index=True)


def read_events(uri: str) -> "pd.DataFrame":
    """Every event of every attempt, in the order in which they happened: columns attempt, step, kind, detail."""
    import pandas as pd

    rows = [{"attempt": _attempt(location), **json.loads(data)} for location, data in _objects(uri, "events")]
    return pd.DataFrame(rows, columns=["attempt", "step", "kind", "detail"])


def _that_stand(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The rows without those of an attempt from the first step of any later one on, whatever their rank."""
    first = rows.groupby("attempt")["step"].min()
    first_of_later = first[::-1].cummin().shift()
    return rows[~(rows["step"] >= rows["attempt"].map(first_of_later))]


def _objects(uri: str, folder: str) -> list[tuple[S3Location, bytes]]:
    """What lies in a folder of the trace, by key."""
    store = S3Store()
    locations = sorted(store.list(S3Location.parse(uri) / folder), key=lambda location: location.key)
    with ThreadPoolExecutor(READERS) as pool:
        return list(zip(locations, pool.map(store.read, locations), strict=True))


def _attempt(location: S3Location) -> int:
    return int(location.key.split("/")[-2].removeprefix("attempt-"))


def _chunk(location: S3Location, data: bytes) -> "pd.DataFrame":
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(io.BytesIO(data)).to_pandas()
    frame.insert(0, "rank", int(location.key.split("/")[-3].removeprefix("rank-")))
    frame.insert(0, "attempt", _attempt(location))
    return frame
