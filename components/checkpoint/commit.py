"""What ranks tell each other on S3, and the commit: a checkpoint exists from the moment that its marker does."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from ..storage import ObjectExistsError, S3Location, S3Store
from ..storage.transfer import TRIES
from .manifest import CheckpointError, Manifest, Marker, Report, document_digest, manifest_location
from .refs import CheckpointRef

_POLL_SECONDS = (0.02, 0.5)
"""Between two looks for reports: at first, and at most."""


def write_report(folder: S3Location, rank: int, report: Report) -> None:
    """Tell rank 0 that this rank's part is on S3.

    Raises:
        CheckpointError: when it cannot be written as it is.
        S3Error: when S3 fails.
    """
    data = report.signed(folder.name, rank).to_bytes()
    _create(folder / f"{_reporter(rank)}{document_digest(data)}.json", data)


def others_reports(folder: S3Location, world_size: int, seconds: float) -> list[Report]:
    """The reports of ranks 1 and up, once all are there.

    Raises:
        CheckpointError: when one is not there after so many seconds, or is none.
        S3Error: when S3 fails.
    """
    store, missing = S3Store(), {_reporter(rank) for rank in range(1, world_size)}
    found: list[S3Location] = []
    until, pause = monotonic() + seconds, _POLL_SECONDS[0]
    while missing:
        found = [location for location in store.list(folder) if _is_report(location)]
        missing -= {_reporter(rank) for rank in map(_rank_of, found)}
        if not missing:
            break
        if monotonic() > until:
            names = ", ".join(sorted(reporter.rstrip("-") for reporter in missing))
            raise CheckpointError(f"no report from {names} → see their logs")
        sleep(pause)
        pause = min(2 * pause, _POLL_SECONDS[1])
    if len(found) != world_size - 1:
        raise CheckpointError(f"{folder} has {len(found)} reports of {world_size - 1} ranks → who else writes?")
    return [_read_report(location, folder) for location in found]


def commit(ref: CheckpointRef, folder: S3Location, described: Mapping[str, Any], reports: Sequence[Report]) -> None:
    """Write the manifest, and then the marker.

    Args:
        ref: the checkpoint.
        folder: where its objects lie.
        described: the manifest, but for objects and tensors.
        reports: every rank's.

    Raises:
        CheckpointError: when another writer committed it, or a document cannot be written as it is.
        S3Error: when S3 fails.
    """
    manifest = Manifest(
        **described,
        objects=tuple(stored for report in reports for stored in report.objects),
        tensors=tuple(stored for report in reports for stored in report.tensors),
    )
    _require_all(folder, manifest)
    data = manifest.to_bytes()
    read_back = any(report.verified == "read back" for report in reports)
    marker = Marker.of(manifest, data, folder.name, "read back" if read_back else "by the server")
    _create(manifest_location(folder), data)
    try:
        _create(ref.marker, marker.to_bytes(), lambda found: Marker.parse(found, "").folder != marker.folder)
    except ObjectExistsError as error:
        raise CheckpointError(
            f"{ref.marker} is another writer's → one `train` at a time for run {manifest.run_id}"
        ) from error


def _create(location: S3Location, data: bytes, is_anothers: Callable[[bytes], bool] = lambda _: False) -> None:
    """Write a document where there is none, and read it back: few servers compare what is sent without a checksum.

    Where a server ignores `If-None-Match`, the document of another writer may have come in between; it stands.
    """
    store = S3Store()
    store.create(location, data)
    for _ in range(TRIES):
        found = store.read(location)
        if found == data:
            return
        with suppress(CheckpointError):
            if is_anothers(found):
                raise ObjectExistsError(f"{location} is another writer's")
        store.write(location, data)
    raise CheckpointError(f"{location} comes back otherwise than it was written → check the network and the server")


def _reporter(rank: int) -> str:
    return f"rank-{rank:05}-"


def _rank_of(report: S3Location) -> int:
    return int(report.name.split("-")[1])


def _is_report(location: S3Location) -> bool:
    return re.fullmatch(r"rank-\d{5}-[0-9a-f]{64}\.json", location.name) is not None


def _require_all(folder: S3Location, manifest: Manifest) -> None:
    """A last look before the commit: what was uploaded long ago may have been collected since.

    Raises:
        CheckpointError: when an object is not there, or has another size.
    """
    found = {entry.location.name: entry.size for entry in S3Store().entries(folder)}
    for stored in manifest.objects:
        if found.get(stored.name) != stored.size:
            raise CheckpointError(f"{folder / stored.name} is not what was uploaded any more → who deletes there?")


def _read_report(location: S3Location, folder: S3Location) -> Report:
    """A report, compared with the SHA-256 in its name; read again where it differs."""
    for _ in range(TRIES):
        data = S3Store().read(location)
        if location.name.endswith(f"-{document_digest(data)}.json"):
            report, rank = Report.parse(data, str(location)), _rank_of(location)
            report.check(folder.name, rank)
            return report
    raise CheckpointError(f"{location} is not what its name says → check the network and the server")
