"""The ledger: a start and an end for every run, small create-only JSON records on S3.

`<root>/ledger/<experiment>/<model>/<day>/<time>-<run_id>/start.json` and `end.json`. The day and time are
the start's, so one listing gives the order, and a run has one place: its end can be written once. A
tracker's outage changes nothing here.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from ..config.document import Document
from ..errors import NotFoundError, OutsideError, UserError
from ..storage import ObjectExistsError, S3Location, S3NotFoundError, S3Store

RunKind = Literal["retrain", "canary", "sweep"]
RunClass = Literal["converged", "not_converged", "rejected", "infrastructure", "interrupted", "passed"]
"""How a run ended; `passed` is a canary's own, which trains nothing to its end."""
DEADLINE = timedelta(hours=24)
"""For a run to end, beside its training."""
LONGEST = timedelta(days=365)
"""For the training, whatever budget it has: a date has its limits."""
READERS = 8
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY = re.compile(r"/(?P<stamp>\d{4}-\d{2}-\d{2}/\d{12})-(?P<run_id>[^/]+)/(?P<file>start|end)\.json$")


class LedgerError(OutsideError):
    """A record of the ledger cannot be used; without it nobody can say where the SLO stands."""


def deadline(budget_hours: float) -> timedelta:
    """How long a run may stay open whose training may take so many hours."""
    return DEADLINE + timedelta(hours=min(budget_hours, LONGEST / timedelta(hours=1)))


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
    events: dict[str, int] = Field(default_factory=dict)
    """How many events of each kind the training had: `resumed`, `rolled_back`, `update_skipped`, …"""

    @property
    def rollbacks(self) -> int:
        """How often the training diverged and went back to a checkpoint."""
        return self.events.get("rolled_back", 0)

    @property
    def first_attempt(self) -> bool:
        """Whether the training went through without a restart of its processes."""
        return self.attempts == 1


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

    def open(self, start: StartRecord) -> StartRecord:
        """Record a start, and return the one that stands: a retried step finds its run opened already.

        Raises:
            UserError: when the run's id cannot be a key, or another config was opened under it.
        """
        if not _RUN_ID.fullmatch(start.run_id):
            raise UserError(f"run id {start.run_id!r}: → letters, digits and ._- only, at most 128")
        found = self.find(start.run_id)
        if found is None:
            stamp = start.created.astimezone(UTC).strftime("%Y-%m-%d/%H%M%S%f")
            self._store.create(self._prefix / f"{stamp}-{start.run_id}" / "start.json", start.to_json())
            return start
        digests = (start.training_digest, start.policy_digest)
        if (found.start.training_digest, found.start.policy_digest) != digests:
            raise UserError(f"run id {start.run_id} was opened with another config → a run id of its own")
        return found.start

    def close(self, end: EndRecord) -> bool:
        """Record an end; False where the run has one already, which stands.

        Raises:
            NotFoundError: when the run was never opened.
        """
        place = self._place(end.run_id)
        if place is None:
            raise NotFoundError(f"run {end.run_id} was never opened in {self._prefix} → convergate runs")
        try:
            self._store.create(place.prefix / "end.json", end.to_json())
        except ObjectExistsError:
            return False
        return True

    def runs(self, limit: int | None = None) -> list[LedgerRun]:
        """The runs, newest first, at most `limit` of them.

        Raises:
            LedgerError: when a record is corrupt or missing, naming its key.
        """
        return _read_runs(self._store, self._prefix, limit)

    def find(self, run_id: str) -> LedgerRun | None:
        """One run, or None.

        Raises:
            LedgerError: when a record of it is corrupt, naming its key.
        """
        place = self._place(run_id)
        return None if place is None else _read_run(self._store, place)

    def _place(self, run_id: str) -> "_Place | None":
        return next((place for place in _places(self._store.list(self._prefix)) if place.run_id == run_id), None)


def all_runs(root: str, limit: int | None = None) -> list[LedgerRun]:
    """The runs of every experiment and model under a root, newest first."""
    return _read_runs(S3Store(), S3Location.parse(root) / "ledger", limit)


def find_run(root: str, run_id: str) -> LedgerRun | None:
    """One run of whichever experiment and model under a root, or None."""
    store = S3Store()
    places = _places(store.list(S3Location.parse(root) / "ledger"))
    found = next((place for place in places if place.run_id == run_id), None)
    return None if found is None else _read_run(store, found)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run's records lie, and whether the listing shows an end."""

    prefix: S3Location
    stamp: str
    run_id: str
    has_end: bool


def _places(locations: Iterable[S3Location]) -> list[_Place]:
    """The runs of a listing, newest first."""
    files: dict[S3Location, tuple[re.Match[str], set[str]]] = {}
    for location in locations:
        if match := _KEY.search(location.key):
            prefix = S3Location(location.bucket, location.key.rpartition("/")[0])
            files.setdefault(prefix, (match, set()))[1].add(match["file"])
    places = [_Place(at, match["stamp"], match["run_id"], "end" in names) for at, (match, names) in files.items()]
    return sorted(places, key=lambda place: (place.stamp, place.run_id), reverse=True)


def _read_runs(store: S3Store, prefix: S3Location, limit: int | None) -> list[LedgerRun]:
    newest = _places(store.list(prefix))[:limit]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda place: _read_run(store, place), newest))


def _read_run(store: S3Store, place: _Place) -> LedgerRun:
    start = _read(store, place, "start.json", StartRecord)
    end = _read(store, place, "end.json", EndRecord) if place.has_end else None
    return LedgerRun(start, end)


_Record = TypeVar("_Record", StartRecord, EndRecord)


def _read(store: S3Store, place: _Place, name: str, kind: type[_Record]) -> _Record:
    key = place.prefix / name
    try:
        record = kind.from_json(store.read(key))
    except S3NotFoundError as error:
        raise LedgerError(f"{key} is missing from the ledger → restore it") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        cause = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise LedgerError(f"{key} is no ledger record ({cause}) → restore it from a backup") from error
    if record.run_id != place.run_id:
        raise LedgerError(f"{key} is the record of run {record.run_id}, and lies in another's place → restore it")
    return record
