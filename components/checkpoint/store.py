"""Find and delete the checkpoints of a run, and note what no longer counts."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from ..errors import UserError
from ..storage import ObjectExistsError, S3Location, S3Store
from .manifest import CheckpointError
from .reading import read_marker
from .refs import ATTEMPTS, COMMITS, LARGEST_ATTEMPT, TOMBSTONES, CheckpointRef, Tombstone

_log = logging.getLogger(__name__)
FIRST_PAGE = 10
"""Markers in the first request of a listing."""


class CheckpointStore:
    """The checkpoints of one run, below `<uri>/<run_id>`."""

    def __init__(self, uri: str, run_id: str) -> None:
        if not run_id or "/" in run_id:
            raise UserError(f"{run_id!r} is no run id: a run has one folder → a name without a slash")
        self.root = S3Location.parse(uri) / run_id
        self.run_id = run_id
        self._store = S3Store()

    def committed(self) -> Iterator[CheckpointRef]:
        """Every committed checkpoint, newest first: also those that a tombstone covers.

        Mostly the first few are asked for: they are one small request, and the others one a thousand.
        """
        place = self.root / COMMITS
        first = list(self._store.entries(place, FIRST_PAGE))
        last = first[-1].location.key if first else ""
        rest = self._store.entries(place) if len(first) == FIRST_PAGE else ()
        entries = chain(first, (entry for entry in rest if entry.location.key > last))
        yield from filter(None, (CheckpointRef.of_marker(entry.location) for entry in entries))

    def live(self, oldest_attempt: int = 1) -> Iterator[CheckpointRef]:
        """The committed checkpoints that a run may go on from, newest first; what they hold is not looked at.

        Args:
            oldest_attempt: checkpoints of attempts before it don't count.

        Raises:
            S3Error: when S3 fails; that is never taken for 'no checkpoint'.
        """
        tombstones = self.tombstones()
        for ref in self.committed():
            if ref.attempt < oldest_attempt:
                return
            if not any(tombstone.covers(ref) for tombstone in tombstones):
                yield ref

    def tombstones(self) -> list[Tombstone]:
        """What was given up, one for each attempt that began; the keys say it all."""
        found = (Tombstone.parse(entry.location) for entry in self._store.entries(self.root / TOMBSTONES))
        return [tombstone for tombstone in found if tombstone is not None]

    def give_up(self, attempt: int, step: int) -> None:
        """Note that `attempt` goes on from `step`: nothing later of an attempt before it counts any more.

        Called before the attempt trains on. A process of an older attempt that still lives may commit, and is never
        heard.
        """
        self._store.write(self._tombstone(attempt, step), b"")

    def begin_attempt(self, step: int) -> int:
        """Begin an attempt after all others, which goes on from `step`; returns its number. A collective.

        For loops that do not number their attempts themselves.
        """
        from .ranks import from_rank_0

        return from_rank_0(lambda: self._claim(step))

    def newest_attempt(self) -> int:
        """The largest number of an attempt that is known here; 0 where there is none."""
        newest = next(self.committed(), None)
        claimed = (CheckpointRef.parse(str(entry.location)) for entry in self._store.entries(self.root / ATTEMPTS))
        given_up = [tombstone.attempt for tombstone in self.tombstones()]
        return max([0, *given_up, *(ref.attempt for ref in (newest, *claimed) if ref is not None)])

    def _claim(self, step: int) -> int:
        for attempt in range(self.newest_attempt() + 1, LARGEST_ATTEMPT + 1):
            with suppress(ObjectExistsError):
                # The claim is the number alone: of two that begin at once, from whatever steps, one gets it.
                self._store.create(self.root / ATTEMPTS / CheckpointRef(attempt, 0, self.root).name, b"")
                self.give_up(attempt, step)
                return attempt
        raise UserError(f"{self.root} has had {LARGEST_ATTEMPT} attempts → another run_id")

    def _tombstone(self, attempt: int, step: int) -> S3Location:
        return self.root / TOMBSTONES / CheckpointRef(attempt, step, self.root).name

    def delete(self, ref: CheckpointRef) -> None:
        """Delete a checkpoint, its marker first: half a deletion is no checkpoint."""
        try:
            folder = self.root / read_marker(ref.uri).folder
        except CheckpointError as error:
            _log.warning("a marker that cannot be read is deleted, and what it stood for left to gc: %s", error)
            self._store.delete(ref.marker)
            return
        self._store.delete(ref.marker)
        for location in list(self._store.list(folder)):
            self._store.delete(location)
