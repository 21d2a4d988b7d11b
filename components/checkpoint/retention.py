"""What is deleted: checkpoints beyond retention after a save, and what was never committed or was given up, by gc.

Neither comes to a release: retention follows the markers of one run, gc the folders of a run's root that are named
as a checkpoint's, and it refuses the release prefix.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from ..errors import UserError
from ..storage import S3Error, S3Location, S3Store
from ..storage.s3 import PendingUpload
from .manifest import CheckpointError
from .reading import read_marker
from .refs import COMMITS, FOLDER, TOMBSTONES, CheckpointRef, Tombstone
from .store import CheckpointStore

_log = logging.getLogger(__name__)
READERS = 8
"""Threads that read small documents; the client has a connection for each."""
RELEASES = "releases"
"""Folder below `storage.uri` where promoted checkpoints are copied to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints of a run stay, beside the newest, which always does."""

    keep_last: int
    """How many of the newest regular ones."""
    keep_best: int = 0
    """How many by their metric; of equal ones the newest. One without the metric, or with a NaN, is none of them."""
    keep_every: int | None = None
    """Steps: multiples of it stay for good, and don't count for `keep_best`."""
    every_steps: int = 1
    """Steps between two regular checkpoints."""
    metric: str = ""
    mode: str = "min"
    """Whether the lowest, `min`, or the highest, `max`, is best."""


def retain(store: CheckpointStore, policy: Retention) -> list[CheckpointRef]:
    """Delete the checkpoints of a run that its policy doesn't keep; returns them. Runs after a commit.

    The newest was verified in its commit, a moment ago, and it stays: so the last one that was verified is never
    deleted. Of the others only the regular ones are kept: what an interruption saved in between pushes none of them
    out, and a rollback finds the same ones with and without it. What a tombstone gave up is left to `collect`.

    The marker goes first, so that half a deletion is no checkpoint. One that cannot be deleted, or cannot be compared
    with the others, stays, with a warning; S3 that fails here fails no run.
    """
    try:
        live = list(store.live())
    except (S3Error, CheckpointError) as error:
        _log.warning("checkpoints beyond retention stay: %s", error)
        return []
    regular = [ref for ref in live if ref.step % policy.every_steps == 0]
    lasting = {ref for ref in live if policy.keep_every is not None and ref.step % policy.keep_every == 0}
    kept = {*live[:1], *regular[: policy.keep_last], *lasting}
    if policy.keep_best and not kept.issuperset(live):
        kept |= _best([ref for ref in regular if ref not in lasting], policy)
    return [ref for ref in live if ref not in kept and _deleted(store, ref)]


def _deleted(store: CheckpointStore, ref: CheckpointRef) -> bool:
    try:
        store.delete(ref)
    except (S3Error, CheckpointError) as error:
        _log.warning("a checkpoint beyond retention stays: %s", error)
        return False
    return True


def _best(refs: Sequence[CheckpointRef], policy: Retention) -> set[CheckpointRef]:
    """The best of those that have the metric, of equal ones the newest; and those that may be better."""

    def value(ref: CheckpointRef) -> float | None:
        try:
            return read_marker(ref.uri).metrics.get(policy.metric, math.nan)
        except (S3Error, CheckpointError) as error:
            _log.warning("a checkpoint that cannot be compared stays: %s", error)
            return None

    with ThreadPoolExecutor(READERS) as pool:
        values = dict(zip(refs, pool.map(value, refs), strict=True))
    sign = -1 if policy.mode == "max" else 1
    scored = [(sign * found, ref) for ref, found in values.items() if found is not None and not math.isnan(found)]
    unknown = {ref for ref, found in values.items() if found is None}
    return {ref for _, ref in sorted(scored, key=lambda pair: pair[0])[: policy.keep_best]} | unknown


def find_runs(uri: str) -> list[S3Location]:
    """The roots of the runs at a URI: itself, or those of its folders that are one.

    Raises:
        S3Error: when S3 fails; that is never taken for 'no runs'.
    """
    place, store = S3Location.parse(uri), S3Store()
    if place.key and _is_root(place):
        return [place]
    folders = list(store.folders(place))
    with ThreadPoolExecutor(READERS) as pool:
        return [folder for folder, found in zip(folders, pool.map(_is_root, folders), strict=True) if found]


def _is_root(place: S3Location) -> bool:
    names = (folder.name for folder in S3Store().folders(place))
    return any(name in (COMMITS, TOMBSTONES) or FOLDER.fullmatch(name) for name in names)


@dataclass(frozen=True, slots=True)
class Garbage:
    """A folder below a run's root that nobody will read, or an upload in one that nobody will finish."""

    folder: S3Location
    reason: Literal["never committed", "given up", "abandoned upload"]
    since: datetime
    """Nothing has happened to it from then on."""
    size: int
    """Bytes, those of unfinished uploads too."""
    objects: tuple[S3Location, ...] = ()
    uploads: tuple[PendingUpload, ...] = ()
    marker: S3Location | None = None
    """Of a checkpoint that was given up."""
    problem: str = ""
    """Why it could not be deleted."""


def collect(roots: Iterable[S3Location], grace: timedelta, *, dry_run: bool = False) -> list[Garbage]:
    """Delete what no run will use, once nothing has happened to it for `grace`; returns it.

    That is a checkpoint that a tombstone gave up, counted from then; a folder that no marker names; an upload that
    was begun and never completed. Safe beside a running save, which adds a part to its folder all the time, as long
    as `grace` is far longer than a part may take. The clock of this machine counts, which S3 holds to 15 minutes
    (it refuses the signature otherwise: RequestTimeTooSkewed).

    Args:
        roots: of the runs, as `find_runs` gives them.
        grace: how long nothing may have happened to it.
        dry_run: delete nothing.

    Returns:
        What was deleted, or would be; one that could not be has its `problem`, and the rest is deleted.

    Raises:
        UserError: where releases are kept.
        S3Error: when S3 fails before anything is deleted.
    """
    before = datetime.now(UTC) - grace
    found = [garbage for root in roots for garbage in _garbage(root) if garbage.since < before]
    return found if dry_run else [_deleted_garbage(garbage) for garbage in found]


def _garbage(root: S3Location) -> Iterator[Garbage]:
    """What of a run is not the folder of a checkpoint that counts, however young."""
    if RELEASES in root.key.split("/"):
        raise UserError(f"{root} is below `{RELEASES}`, where promoted checkpoints stand → nothing is collected there")
    store, run = S3Store(), CheckpointStore(str(root.parent), root.name)
    # Folders before markers: what is committed meanwhile is not taken for never committed.
    uploads: dict[S3Location, list[PendingUpload]] = defaultdict(list)
    for upload in store.uploads(root):
        uploads[upload.location.parent].append(upload)
    seen = {folder for folder in (*store.folders(root), *uploads) if folder.parent == root}
    folders = sorted((folder for folder in seen if FOLDER.fullmatch(folder.name)), key=str)
    named = _named_by_markers(run, folders)
    dated = [(Tombstone.parse(entry.location), entry.modified) for entry in store.entries(root / TOMBSTONES)]
    for folder in folders:
        ref = named.get(folder)
        given_up = [when for tombstone, when in dated if ref and tombstone and tombstone.covers(ref)]
        if ref is None:
            yield _whole_folder(folder, uploads[folder])
        elif given_up:
            whole = _whole_folder(folder, uploads[folder])
            yield replace(whole, reason="given up", since=max(whole.since, min(given_up)), marker=ref.marker)
        else:
            for upload in uploads[folder]:
                size, since = _progress(upload)
                yield Garbage(folder, "abandoned upload", since, size, uploads=(upload,))


def _named_by_markers(run: CheckpointStore, folders: Sequence[S3Location]) -> dict[S3Location, CheckpointRef]:
    """The folders that a marker names. It is read only where it may name any of several."""
    alike: dict[str, list[S3Location]] = defaultdict(list)
    for folder in folders:
        alike[folder.name.rpartition("-")[0]].append(folder)
    named = {}
    for ref in run.committed():
        candidates = alike.get(ref.name, [])
        if len(candidates) > 1:
            try:
                candidates = [run.root / read_marker(ref.uri).folder]
            except CheckpointError as error:
                _log.warning("folders that a damaged marker may name stay: %s", error)
        named.update(dict.fromkeys(candidates, ref))
    return named


def _whole_folder(folder: S3Location, uploads: Sequence[PendingUpload]) -> Garbage:
    entries = list(S3Store().entries(folder))
    begun = [_progress(upload) for upload in uploads]
    return Garbage(
        folder,
        "never committed" if entries else "abandoned upload",
        max([entry.modified for entry in entries] + [since for _, since in begun], default=datetime.now(UTC)),
        sum(entry.size for entry in entries) + sum(size for size, _ in begun),
        tuple(entry.location for entry in entries),
        tuple(uploads),
    )


def _progress(upload: PendingUpload) -> tuple[int, datetime]:
    """The bytes that an upload has, and when the last of them came."""
    parts = list(S3Store().parts(upload))
    return sum(part.size for part in parts), max([upload.initiated, *(part.modified for part in parts)])


def _deleted_garbage(garbage: Garbage) -> Garbage:
    """Delete it, the marker first, and note the first problem."""
    store, problems = S3Store(), []
    try:
        if garbage.marker is not None:
            store.delete(garbage.marker)
    except S3Error as error:
        return replace(garbage, problem=str(error))
    for delete in (
        *(partial(store.abort, upload) for upload in garbage.uploads),
        *(partial(store.delete, location) for location in garbage.objects),
    ):
        try:
            delete()
        except S3Error as error:
            problems.append(str(error))
    return replace(garbage, problem=next(iter(problems), ""))
