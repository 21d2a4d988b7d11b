"""S3 as the runs use it. Small objects under names that nobody else uses are written, and deleted again."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from secrets import token_hex
from typing import Any

from ...components.errors import ConvergateError
from ...components.storage import BucketNotFoundError, ObjectExistsError, S3Error, S3Location, S3Store
from ...components.storage.answers import translated
from ...components.storage.checksums import server_compares
from ...components.storage.client import endpoint_url, s3_client, shown_endpoint
from .row import Row, examined

MAX_SKEW_SECONDS = 60.0
"""S3 refuses signatures that are 15 minutes off; leases and ages suffer earlier."""
_DATA = b"convergate doctor: may be deleted"


def examine_storage(root: str, *, embedded: bool = False) -> list[Row]:
    """Every check of S3; the later ones only where it can be reached and written.

    Args:
        root: `storage.uri` of the config.
        embedded: whether it is our own, started for the while.
    """
    place = S3Location.parse(root)
    probe = place / "doctor" / token_hex(8)
    checks: list[tuple[str, Callable[[], Row]]] = [
        ("S3", lambda: _reachable(place, embedded=embedded)),
        ("S3: write, read, delete", lambda: _writable(probe)),
        ("S3: conditional writes", lambda: _conditional(probe)),
        ("S3: checksums", lambda: _checksums(probe)),
        ("S3: clock", lambda: _clock(place)),
    ]
    rows: list[Row] = []
    for name, check in checks:
        if any(row.state == "failed" for row in rows[:2]):
            rows.append(Row.unknown(name, "not examined: see above"))
        else:
            rows.append(examined(name, check))
    return rows


def _reachable(place: S3Location, *, embedded: bool) -> Row:
    where = "the embedded server, started for the while" if embedded else shown_endpoint()
    try:
        list(S3Store().entries(place, limit=1))
    except BucketNotFoundError:
        own = endpoint_url()
        fix = f"aws s3 mb s3://{place.bucket}" + (f" --endpoint-url {own}" if own and not embedded else "")
        return Row.failed("S3", f"{where}: there is no bucket {place.bucket}", fix)
    return Row.ok("S3", f"{place} on {where}")


def _writable(probe: S3Location) -> Row:
    store = S3Store()
    name = "S3: write, read, delete"
    store.write(probe, _DATA)
    try:
        whole = store.read(probe) == _DATA
    finally:
        _remove(probe)
    if not whole:
        return Row.failed(name, "what was read is not what was written", "see the server's log: what stands before it?")
    if store.exists(probe):
        return Row.unknown(name, f"{probe} could be written and not deleted", "retention needs s3:DeleteObject")
    return Row.ok(name, f"under {probe.parent}")


def _conditional(probe: S3Location) -> Row:
    """A second create-only write of the same object has to be refused."""
    name = "S3: conditional writes"
    where: Any = {"Bucket": probe.bucket, "Key": probe.key}
    S3Store().write(probe, _DATA)
    try:
        with translated(probe, "create"):
            s3_client().put_object(**where, Body=_DATA, IfNoneMatch="*")
    except ObjectExistsError:
        return Row.ok(name, "honoured (If-None-Match)")
    finally:
        _remove(probe)
    return Row.unknown(
        name,
        "ignored: two writers within milliseconds can both win, and the ledger's records are not create-only",
        "a server that honours If-None-Match: AWS, MinIO, Ceph Squid; or one run at a time",
    )


def _checksums(probe: S3Location) -> Row:
    name = "S3: checksums"
    try:
        compared = [server_compares(probe, in_parts=in_parts) for in_parts in (False, True)]
    except ModuleNotFoundError:
        return Row.unknown(name, "not known without awscrt", "pip install 'convergate[train]'")
    except S3Error as error:
        return Row.unknown(name, f"not known: {error}")
    if all(compared):
        return Row.ok(name, "compared by the server (CRC64-NVME), for objects and parts")
    return Row.unknown(name, "not compared by the server: every checkpoint is read back once", "nothing has to be done")


def _clock(place: S3Location) -> Row:
    name = "S3: clock"
    with translated(place, "list"):
        answer = s3_client().list_objects_v2(Bucket=place.bucket, Prefix=f"{place.key}/", MaxKeys=1)
    stamp = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if not stamp:
        return Row.unknown(name, "the server does not tell its time")
    skew = (datetime.now(UTC) - parsedate_to_datetime(stamp)).total_seconds()
    if abs(skew) > MAX_SKEW_SECONDS:
        direction = "ahead of" if skew > 0 else "behind"
        return Row.failed(name, f"this machine is {abs(skew):.0f} s {direction} it", "timedatectl set-ntp true")
    return Row.ok(name, f"within {max(1.0, abs(skew)):.0f} s of this machine's")


def _remove(probe: S3Location) -> None:
    with suppress(ConvergateError):
        S3Store().delete(probe)
