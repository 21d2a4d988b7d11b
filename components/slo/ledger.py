"""The ledger: a start and an end for every run, small create-only JSON records on S3.

`<root>/ledger/<experiment>/<model>/<day>/<time>-<run_id>/start.json` and `end.json`. The day and time are the start's,
so one listing gives the order, and a run has one place: its end can be written once. A tracker's outage changes
nothing here.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import Field, ValidationError

from ..config.document import Document
from ..errors import NotFoundError, OutsideError
from ..storage import ObjectExistsError, S3Location, S3NotFoundError, S3Store

RunKind = Literal["retrain", "canary", "sweep"]
RunClass = Literal["converged", "not_converged", "rejected", "infrastructure", "interrupted"]
DEADLINE = timedelta(hours=24)
READERS = 8
_KEY = re.compile(r"/\d{4}-\d{2}-\d{2}/(\d{12})-(?P<run_id>[^/]+)/(start|end)\.json$")


class StartRecord(Document):
    """A run began: written as soon as its config parses as YAML."""

    kind: RunKind = "retrain"
    experiment: str
    model: str
    submitter: str = ""
    team: str = ""
    training_digest: str = ""
    """Empty where the config is YAML and no valid config."""
    policy_digest: str = ""
    deadline: datetime = Field(default_factory=lambda: datetime.now(UTC) + DEADLINE)
    """A run without an end by then has not converged."""


class EndRecord(Document):
    """A run ended, in one class."""

    run_class: RunClass
    reached_training: bool
    reason: str = ""
    decision: str = ""
    attempts: int = 0
    reached_target: bool = False
    lr_sync_errors: int = 0
    anomalous: bool = False
    gpu_hours: float = 0.0
    """Of all attempts, the canary's included."""


@dataclass(frozen=True, slots=True)
class LedgerRun:
    """One run of the ledger."""

    start: StartRecord
    end: EndRecord | None

    @property
    def run_class(self) -> RunClass | Literal["running"]:
        """Its class; without an end it is running until its deadline, and not converged after it."""
        if self.end is not None:
            return self.end.run_class
        return "running" if datetime.now(UTC) < self.start.deadline else "not_converged"

    @property
    def reached_training(self) -> bool:
        """Whether it counts in the SLI's denominator; a run that vanished is taken to have."""
        return self.end.reached_training if self.end is not None else self.run_class == "not_converged"


class Ledger:
    """The ledger of one (experiment, model), across configs."""

    def __init__(self, root: str, experiment: str, model: str) -> None:
        self._prefix = S3Location.parse(root) / "ledger" / experiment / model
        self._store = S3Store()

    def open(self, start: StartRecord) -> None:
        """Record a start; a retried step finds its run opened already, and that is fine."""
        if self._place(start.run_id) is None:
            stamp = start.created.strftime("%Y-%m-%d/%H%M%S%f")
            self._store.create(self._prefix / f"{stamp}-{start.run_id}" / "start.json", start.to_json())

    def close(self, end: EndRecord) -> bool:
        """Record an end; False where the run has one already, which stands.

        Raises:
            NotFoundError: when the run was never opened.
        """
        place = self._place(end.run_id)
        if place is None:
            raise NotFoundError(f"run {end.run_id} was never opened in {self._prefix}")
        try:
            self._store.create(place / "end.json", end.to_json())
        except ObjectExistsError:
            return False
        return True

    def runs(self, limit: int | None = None) -> list[LedgerRun]:
        """The runs, newest first, at most `limit` of them."""
        return _read_runs(self._store, self._store.list(self._prefix), limit)

    def find(self, run_id: str) -> LedgerRun | None:
        """One run, or None."""
        place = self._place(run_id)
        return None if place is None else _read_run(self._store, place)

    def _place(self, run_id: str) -> S3Location | None:
        for location in self._store.list(self._prefix):
            match = _KEY.search(location.key)
            if match and match["run_id"] == run_id:
                return S3Location(location.bucket, location.key.rpartition("/")[0])
        return None


def all_runs(root: str, limit: int | None = None) -> list[LedgerRun]:
    """The runs of every experiment and model under a root, newest first."""
    store = S3Store()
    return _read_runs(store, store.list(S3Location.parse(root) / "ledger"), limit)


def _read_runs(store: S3Store, locations: Iterable[S3Location], limit: int | None) -> list[LedgerRun]:
    places = {S3Location(loc.bucket, loc.key.rpartition("/")[0]) for loc in locations if _KEY.search(loc.key)}
    newest = sorted(places, key=lambda place: place.key.split("/")[-2:], reverse=True)[:limit]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda place: _read_run(store, place), newest))


def _read_run(store: S3Store, place: S3Location) -> LedgerRun:
    try:
        start = StartRecord.from_json(store.read(place / "start.json"))
        try:
            end = EndRecord.from_json(store.read(place / "end.json"))
        except S3NotFoundError:
            end = None
    except ValidationError as error:
        raise OutsideError(f"{place}: not a ledger record ({error.error_count()} problems) → restore it") from error
    return LedgerRun(start, end)
