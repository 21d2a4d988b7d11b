"""Who is champion: one record on S3, written by compare and swap. The registry's alias is reconciled to it.

A registry's alias has no history and its last writer wins (mlflow#2169); the record has both. It stands at
`<root>/champions/<model>/champion.json`, each change beside it under `audit/`, create-only.
"""

import json
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..config.document import Document
from ..errors import OutsideError
from ..storage import ObjectExistsError, S3Location, S3NotFoundError, S3Store


class Release(BaseModel):
    """A released model: a version of the registry, and the checkpoint that it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    run_id: str
    uri: str
    """The checkpoint under the release prefix."""
    digest: str


class ChampionRecord(Document):
    """The champion of a model, and the one before. `run_id` is of the change, not of the release."""

    model: str
    champion: Release
    previous: Release | None = None
    action: Literal["promote", "rollback"]
    actor: str
    reason: str


def read_champion(root: str, model: str) -> ChampionRecord | None:
    """The record, or None where there is no champion yet.

    Raises:
        OutsideError: when it cannot be read or is no record.
    """
    return _read(root, model)[0]


def write_champion(root: str, record: ChampionRecord, expected: Release | None) -> str:
    """Make `record` the champion if `expected` still is; then audit it. Returns the audit record's URI.

    Raises:
        ObjectExistsError: when somebody else promoted meanwhile.
    """
    store, location = S3Store(), _location(root, record.model)
    current, etag = _read(root, record.model)
    if (current.champion if current else None) != expected:
        raise ObjectExistsError(
            f"the champion of {record.model} was changed meanwhile, to version"
            f" {current.champion.version if current else 'none'} → decide again: convergate gate {record.run_id}"
        )
    if etag is None:
        store.create(location, record.to_json())
    else:
        store.replace(location, record.to_json(), etag)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    audit = S3Location.parse(root) / "champions" / record.model / "audit" / f"{stamp}-{record.run_id}.json"
    store.create(audit, record.to_json())
    return str(audit)


def champion_reference(root: str, model: str) -> str:
    """The champion's uri and digest as JSON, both empty where there is none; the input of evaluation."""
    record = read_champion(root, model)
    champion = record.champion if record else None
    return json.dumps({"uri": champion.uri if champion else "", "digest": champion.digest if champion else ""})


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
