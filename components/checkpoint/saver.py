"""Saving: a copy into the staging buffer while training waits, and everything else in a thread while it goes on.

One save is in flight at most. The thread of each rank uploads, then reports; rank 0's waits for every report, writes
the manifest, and with the marker commits. There is no collective in the threads: they meet on S3 alone.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from ..errors import ConvergateError
from ..storage import S3Location
from ..storage.streams import Pace, allowed_seconds, upload
from .commit import commit, others_reports, write_report
from .dcp_storage import S3Writer
from .manifest import CheckpointError, Report, StoredObject, key_file, require_private_key
from .ranks import everyones
from .reading import without_advice
from .refs import CheckpointRef
from .store import CheckpointStore

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_log = logging.getLogger(__name__)
ROUND_SECONDS = 20.0
"""So long a rank waits for its own upload before all ask each other again: far less than a collective's timeout."""
REPORT_SECONDS = 120.0
"""So long rank 0 waits for the other ranks' reports, beyond what the largest upload may take."""


@dataclass(frozen=True)
class _Save:
    """One save in flight."""

    ref: CheckpointRef
    folder: S3Location
    described: dict[str, Any]
    """The manifest, but for objects and tensors."""
    sealed: bool
    before_report: Callable[[], None]
    after_commit: Callable[[CheckpointRef], None]
    started: float


class Saver:
    """Saves the checkpoints of one run from one rank; every rank has one, and calls it alike."""

    def __init__(self, store: CheckpointStore, rank: int = 0, world_size: int = 1, pace: Pace | None = None) -> None:
        require_private_key()
        self.longest_seconds = 0.0
        """From `begin` until the marker stands (this rank's report, on others than rank 0), at worst."""
        self._store, self._rank, self._world_size, self._pace = store, rank, world_size, pace
        self._writer = S3Writer(rank)
        self._signature: tuple[Any, ...] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None

    def begin(
        self,
        tensors: Mapping[str, "Tensor"],
        *,
        attempt: int,
        step: int,
        training_digest: str,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        previous: str | None = None,
        sealed: bool = False,
        skip_if_busy: bool = False,
        before_report: Callable[[], None] = lambda: None,
        after_commit: Callable[[CheckpointRef], None] = lambda _: None,
    ) -> bool:
        """Stage a checkpoint and start its upload; a collective, which every rank calls.

        Args:
            tensors: name to tensor; replicated ones are written once, sharded ones by their owners. They may change
                as soon as this returns.
            attempt: this start of the processes, from 1.
            step: updates done.
            training_digest: of the config, so that a resume under another config is noticed.
            state: what is no tensor, as JSON values; rank 0's is kept.
            metrics: the latest validation's.
            previous: URI of the checkpoint that this process went on from, or began to save before.
            sealed: a SHA-256 of each part too, which an attacker cannot match as they could a CRC; always with a key.
            skip_if_busy: leave this one out where an earlier save is not done on some rank, instead of waiting for it.
            before_report: called in the thread when the upload is complete, before this rank says so.
            after_commit: called in rank 0's thread once the checkpoint is committed.

        Returns:
            False where it was left out; the same on every rank.

        Raises:
            CheckpointError: when an earlier save failed, on every rank; or when a value is no tensor.
        """
        nonce = self._agree_to_begin(tensors, skip_if_busy)
        if nonce is None:
            return False
        started, ref = monotonic(), CheckpointRef(attempt, step, self._store.root)
        described: dict[str, Any] = {
            "run_id": self._store.run_id,
            "attempt": attempt,
            "step": step,
            "world_size": self._world_size,
            "training_digest": training_digest,
            "previous": previous,
            "metrics": dict(metrics),
            "state": deepcopy(dict(state)),
        }
        self._stage(tensors)
        in_flight = _Save(
            ref=ref,
            folder=self._store.root / f"{ref.name}-{nonce}",
            described=described,
            sealed=sealed or key_file() is not None,
            before_report=before_report,
            after_commit=after_commit,
            started=started,
        )
        self._in_flight = self._thread.submit(self._publish, in_flight)
        return True

    @property
    def busy(self) -> bool:
        """Whether a save of this rank is in flight."""
        return self._in_flight is not None and not self._in_flight.done()

    @property
    def staged_bytes(self) -> int:
        """Of this rank's object in the last save."""
        return len(self._writer.staged)

    def check(self) -> None:
        """Raise what ended a save in the thread; costs nothing else.

        Raises:
            CheckpointError: when a save failed. Nothing of it counts; unless only the answer to its very last
                request is missing: then it may be there, and whole.
        """
        if self._in_flight is not None and self._in_flight.done():
            done, self._in_flight = self._in_flight, None
            done.result()

    def drain(self) -> None:
        """Wait until no rank's save is in flight; a collective. What was begun is committed then.

        Raises:
            CheckpointError: when one failed, on every rank.
        """
        while self._any_busy(self._gather((self.busy, self._problem(), None))):
            self._wait()

    def close(self) -> None:
        """Wait for the save in flight and end the thread.

        Raises:
            CheckpointError: when it failed.
        """
        self._thread.shutdown()
        self.check()

    def _agree_to_begin(self, tensors: Mapping[str, "Tensor"], skip_if_busy: bool) -> str | None:
        """Until no rank is busy: what names the folder, the same on every rank; and whether to plan anew."""
        signature = _signature(tensors)
        mine = (signature != self._signature, token_hex(4))
        while self._any_busy(everyone := self._gather((self.busy, self._problem(), mine))):
            if skip_if_busy:
                return None
            self._wait()
        if any(changed for _, _, (changed, _) in everyone):
            self._signature = None
        return everyone[0][2][1]

    def _problem(self) -> str:
        """What ended this rank's save, if it did."""
        failed = self._in_flight.exception() if self._in_flight is not None and self._in_flight.done() else None
        return "" if failed is None else str(failed) or repr(failed)

    def _any_busy(self, everyone: Sequence[tuple[bool, str, Any]]) -> bool:
        """Whether a rank's save is in flight; where one failed, every rank raises: none waits for another in vain."""
        if any(problem for _, problem, _ in everyone):
            self.check()
            raise CheckpointError(next(problem for _, problem, _ in everyone if problem))
        return any(busy for busy, _, _ in everyone)

    def _wait(self) -> None:
        if self._in_flight is not None:
            wait([self._in_flight], ROUND_SECONDS)

    def _gather(self, mine: T) -> list[T]:
        return everyones(mine) if self._world_size > 1 else [mine]

    def _stage(self, tensors: Mapping[str, "Tensor"]) -> None:
        if self._signature is not None:
            self._writer.stage_again(tensors)
            return
        try:
            with without_advice():
                planner = DefaultSavePlanner(flatten_state_dict=False)
                save(dict(tensors), storage_writer=self._writer, planner=planner, no_dist=self._world_size == 1)
        except CheckpointException as error:
            failed, (cause, _) = min(error.failures.items())
            raise CheckpointError(f"{self._store.root}: rank {failed}: {cause}") from error
        self._signature = _signature(tensors)

    def _publish(self, one: _Save) -> None:
        """Upload, report, and on rank 0 commit."""
        try:
            report = self._upload(one)
            one.before_report()
            if self._rank == 0:
                seconds = allowed_seconds(self._writer.most_bytes) + REPORT_SECONDS
                reports = [report, *others_reports(one.folder, self._world_size, seconds)]
                commit(one.ref, one.folder, one.described, reports)
            else:
                write_report(one.folder, self._rank, report)
        except ConvergateError as error:
            raise CheckpointError(f"saving {one.ref.uri} failed: rank {self._rank}: {error}") from error
        self.longest_seconds = max(self.longest_seconds, monotonic() - one.started)
        if self._rank == 0:
            try:
                one.after_commit(one.ref)
            except Exception as error:
                _log.warning("%s is committed; what was to follow failed: %s", one.ref.uri, error)

    def _upload(self, one: _Save) -> Report:
        staged = self._writer.staged
        if not staged:
            return Report(objects=(), tensors=self._writer.tensors, verified="by the server")
        name = self._writer.object_name
        done = upload(one.folder / name, staged, sealed=one.sealed, pace=self._pace)
        stored = StoredObject(
            name=name, size=done.size, part_bytes=done.part_bytes, crc64nvme=done.crc64nvme, parts=done.parts
        )
        return Report(objects=(stored,), tensors=self._writer.tensors, verified=done.verified)


def _signature(tensors: Mapping[str, "Tensor"]) -> tuple[Any, ...]:
    """What a plan depends on."""
    return (
        list(tensors),
        [getattr(tensor, "shape", None) for tensor in tensors.values()],
        [getattr(tensor, "dtype", None) for tensor in tensors.values()],
        [getattr(tensor, "placements", None) for tensor in tensors.values()],
    )


__all__ = ["Saver"]
