"""Who is champion: one record on S3, written by compare and swap. The registry's alias is reconciled to it.

A registry's alias has no history and its last writer wins (mlflow#2169); the record has both. It stands at
`<root>/champions/<model>/champion.json`, each change beside it under `audit/`, create-only.
"""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..config.document import Document
from ..config.models import TaskConfig
from ..errors import ConvergateError, ExitCode, OutsideError
from ..storage import ObjectExistsError, S3Location, S3NotFoundError, S3Store

NUM_EARLIER = 10
"""Releases before the previous one that a record keeps, to roll back to; the audit records keep all."""


class ChampionChangedError(ConvergateError):
    """Another promotion or a rollback came between: what was decided holds against a champion that was."""

    exit_code = ExitCode.UNDECIDED


class Release(BaseModel):
    """A released model: a version of the registry, and the checkpoint that it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    run_id: str
    uri: str
    """The checkpoint under the release prefix."""
    digest: str
    task: TaskConfig | None = None
    """What makes the checkpoint's model; None in a record older than this key."""
    decision_digest: str = ""
    """SHA-256 of the decision document that let it through, 64 hex digits."""


class ChampionRecord(Document):
    """The champion of a model, and those before. `run_id` is the release's, `created` the change's."""

    model: str
    champion: Release
    previous: Release | None = None
    earlier: tuple[Release, ...] = ()
    """The champions before `previous`, newest first."""
    action: Literal["promote", "rollback"]
    actor: str
    reason: str
    approval_uri: str = ""
    """The approval, where a person made it champion."""

    def succeeded_by(self, release: Release) -> tuple[Release, tuple[Release, ...]]:
        """What `previous` and `earlier` of the next record are, once `release` follows this champion."""
        before = [r for r in (self.previous, *self.earlier) if r is not None and r != release]
        return self.champion, tuple(before[:NUM_EARLIER])


def read_champion(root: str, model: str) -> ChampionRecord | None:
    """The record, or None where there is no champion yet.

    Raises:
        OutsideError: when it cannot be read or is no record.
    """
    return _read(root, model)[0]


def write_champion(root: str, record: ChampionRecord, expected: ChampionRecord | None) -> str:
    """Put `record` in the place of `expected`, if that still stands; then audit it. Returns the audit record's URI.

    Raises:
        ChampionChangedError: when somebody else promoted or rolled back meanwhile, also there and back again.
    """
    store, location = S3Store(), _location(root, record.model)
    current, etag = _read(root, record.model)
    if current != expected:
        raise _changed(record, current)
    try:
        if etag is None:
            store.create(location, record.to_json())
        else:
            store.replace(location, record.to_json(), etag)
    except ObjectExistsError as error:
        raise _changed(record, read_champion(root, record.model)) from error
    return write_audit(root, record)


def write_audit(root: str, record: ChampionRecord) -> str:
    """Write the audit record of a change, unless it stands already; returns its URI."""
    folder = S3Location.parse(root) / "champions" / record.model / "audit"
    location = folder / f"{record.created:%Y%m%dT%H%M%S%f}-{record.run_id}.json"
    write_once(location, record.to_json())
    return str(location)


def write_once(location: S3Location, data: bytes) -> None:
    """Create an object, unless it stands there already with the same bytes.

    Raises:
        ObjectExistsError: when it stands there with others.
    """
    try:
        S3Store().create(location, data)
    except ObjectExistsError:
        if S3Store().read(location) != data:
            raise


def champion_reference(root: str, model: str) -> str:
    """The champion's uri, digest and task as JSON, the first two empty where there is none; the input of evaluation."""
    record = read_champion(root, model)
    if record is None:
        return json.dumps({"uri": "", "digest": "", "task": None})
    return record.champion.model_dump_json(include={"uri", "digest", "task"})


def _changed(record: ChampionRecord, current: ChampionRecord | None) -> ChampionChangedError:
    now = f"v{current.champion.version} of run {current.champion.run_id}" if current else "nobody"
    return ChampionChangedError(
        f"{record.model}: {record.action} of run {record.run_id} refused: the champion was changed meanwhile,"
        f" to {now} → a new run is measured against it"
    )


def _location(root: str, model: str) -> S3Location:
    return S3Location.parse(root) / "champions" / model / "champion.json"


def _read(root: str, model: str) -> tuple[ChampionRecord | None, str | None]:
    location = _location(root, model)
    try:
        data, etag = S3Store().read_versioned(location)
        return ChampionRecord.from_json(data), etag
    except S3NotFoundError:
        return None, None
    except ValidationError as error:
        raise OutsideError(f"{location}: not a champion record → restore it from audit/ beside it") from error
