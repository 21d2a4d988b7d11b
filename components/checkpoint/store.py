"""Save, find, restore and retain the checkpoints of one run."""

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..storage import S3Error, S3Location, S3NotFoundError, S3Store
from .manifest import MANIFEST_NAME, CheckpointError, Manifest, StoredObject, StoredTensor, manifest_digest

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)
_NAME = re.compile(r"attempt-(\d+)-step-(\d+)$")
MODEL_PREFIX = "model."
"""Tensors of the model carry it in the state, so that the model alone can be loaded."""


@dataclass(frozen=True, slots=True, order=True)
class CheckpointRef:
    """A committed checkpoint; ordered by generation, the newest last."""

    attempt: int
    step: int
    prefix: S3Location

    @property
    def uri(self) -> str:
        """Its `s3://` URI."""
        return str(self.prefix)


class CheckpointStore:
    """The checkpoints below `<uri>/<run_id>`."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.root = S3Location.parse(uri) / run_id
        self.run_id = run_id
        self._store = S3Store()

    def save(
        self,
        tensors: Mapping[str, "Tensor"],
        *,
        attempt: int,
        step: int,
        rank: int,
        world_size: int,
        training_digest: str,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        previous: str | None = None,
    ) -> CheckpointRef:
        """Write a checkpoint; every rank calls it, and it returns once the manifest stands.

        Args:
            tensors: name to tensor; replicated ones are written once, sharded ones by their owners.
            attempt: this start of the processes, from 1.
            step: updates done.
            rank: of this process.
            world_size: processes in all.
            training_digest: of the config, so that a resume under another config is noticed.
            state: what is no tensor, as JSON values; rank 0's is kept.
            metrics: the latest validation's.
            previous: URI of the checkpoint before.

        Raises:
            CheckpointError: on every rank, when an object or the manifest cannot be written on any.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        from .dcp_storage import S3Writer

        prefix = self.root / f"attempt-{attempt:03}-step-{step:09}"

        def commit(objects: list[StoredObject], stored: list[StoredTensor]) -> None:
            manifest = Manifest(
                run_id=self.run_id,
                attempt=attempt,
                step=step,
                world_size=world_size,
                training_digest=training_digest,
                previous=previous,
                metrics=dict(metrics),
                state=dict(state),
                objects=objects,
                tensors=stored,
            )
            self._store.create(prefix / MANIFEST_NAME, manifest.to_bytes())

        writer = S3Writer(prefix, rank, commit)
        try:
            with _without_advice():
                save(dict(tensors), storage_writer=writer, no_dist=world_size == 1)
        except CheckpointException as error:
            failed, (cause, _) = min(error.failures.items())
            raise CheckpointError(f"{prefix} is not committed: rank {failed}: {cause}") from error
        return CheckpointRef(attempt, step, prefix)

    def committed(self) -> list[CheckpointRef]:
        """The committed checkpoints, newest first."""
        found = []
        for location in self._store.list(self.root):
            directory, _, name = location.key.rpartition("/")
            match = _NAME.search(directory)
            if name == MANIFEST_NAME and match:
                prefix = S3Location(location.bucket, directory)
                found.append(CheckpointRef(int(match[1]), int(match[2]), prefix))
        return sorted(found, reverse=True)

    def newest(self, oldest_attempt: int = 1) -> CheckpointRef | None:
        """The newest checkpoint of which every byte verifies, or None where there is none at all.

        Args:
            oldest_attempt: checkpoints of attempts before it don't count.

        Raises:
            CheckpointError: when there are checkpoints and none of them verifies.
            S3Error: when S3 fails; that is never taken for 'no checkpoint'.
        """
        refs = [ref for ref in self.committed() if ref.attempt >= oldest_attempt]
        for ref in refs:
            try:
                verify(ref.uri)
            except CheckpointError as error:
                _log.warning("skipping a damaged checkpoint: %s", error)
                continue
            return ref
        if refs:
            raise CheckpointError(f"{self.root}: none of {len(refs)} checkpoints verifies → start with --resume never")
        return None

    def retain(self, keep_last: int, keep_best: int, metric: str, mode: str) -> list[CheckpointRef]:
        """Delete all but the newest `keep_last` and the best `keep_best` by a validation metric.

        The manifest goes first, so that half a deletion is no checkpoint. One that cannot be deleted, or cannot be
        compared with the others, is left, with a warning. Returns what was deleted.
        """
        refs = self.committed()
        best = self._best(refs, keep_best, metric, mode) if keep_best else []
        deleted = []
        for ref in refs:
            if ref in refs[:keep_last] or ref in best:
                continue
            try:
                self._delete(ref)
                deleted.append(ref)
            except S3Error as error:
                _log.warning("a checkpoint beyond retention stays: %s", error)
        return deleted

    def _best(self, refs: list[CheckpointRef], num: int, metric: str, mode: str) -> list[CheckpointRef]:
        """The best `num` of those that have the metric, of equal ones the newest; and those that may be better."""
        sign = -1 if mode == "max" else 1
        scored, unknown = [], []
        for ref in refs:
            try:
                value = read_manifest(ref.uri)[0].metrics.get(metric, math.nan)
            except (CheckpointError, S3Error) as error:
                _log.warning("a checkpoint that cannot be compared stays: %s", error)
                unknown.append(ref)
                continue
            if not math.isnan(value):
                scored.append((sign * value, ref))
        return [ref for _, ref in sorted(scored, key=lambda pair: pair[0])[:num]] + unknown

    def _delete(self, ref: CheckpointRef) -> None:
        self._store.delete(ref.prefix / MANIFEST_NAME)
        for location in list(self._store.list(ref.prefix)):
            self._store.delete(location)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without DCP's warning that one process is alone, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def read_manifest(uri: str, digest: str | None = None) -> tuple[Manifest, str]:
    """A checkpoint's manifest and its digest.

    Raises:
        CheckpointError: when it differs from `digest`, or is no manifest.
    """
    location = S3Location.parse(uri) / MANIFEST_NAME
    data = S3Store().read(location)
    return Manifest.from_bytes(data, str(location), digest), manifest_digest(data)


def verify(uri: str, digest: str | None = None) -> Manifest:
    """Read every object of a checkpoint and compare it with the manifest.

    Raises:
        CheckpointError: when an object is missing, or differs.
    """
    from .dcp_storage import read_verified

    manifest, _ = read_manifest(uri, digest)
    for stored in manifest.objects:
        try:
            read_verified(S3Location.parse(uri), manifest, stored.name)
        except S3NotFoundError as error:
            raise CheckpointError(f"{uri}: the object {stored.name} is missing") from error
    return manifest


def restore(
    uri: str, digest: str | None = None, only: str = "", into: Mapping[str, "Tensor"] | None = None
) -> tuple[dict[str, "Tensor"], Manifest]:
    """Load tensors: into those of `into`, resharded, or all whose name starts with `only`, whole and on the CPU.

    Raises:
        CheckpointError: when the manifest's SHA-256 is not `digest`, or an object is missing or differs from the
            manifest.
        S3Error: when there is no manifest, or S3 fails; that is never taken for a damaged checkpoint.
    """
    import torch
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from .dcp_storage import S3Reader, build_metadata

    manifest, _ = read_manifest(uri, digest)
    entries: Mapping[str, Any] = build_metadata(manifest).state_dict_metadata
    loaded = (
        dict(into)
        if into is not None
        else {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if name.startswith(only)
        }
    )
    try:
        with _without_advice():
            load(loaded, storage_reader=S3Reader(S3Location.parse(uri), manifest), no_dist=True)
    except CheckpointException as error:
        _, (cause, _) = min(error.failures.items())
        if not isinstance(cause, Exception) or (isinstance(cause, S3Error) and not isinstance(cause, S3NotFoundError)):
            raise cause from error  # an interrupt, or S3 itself
        raise CheckpointError(f"{uri} cannot be loaded: {cause}") from error
    return loaded, manifest


def load_model_state(uri: str, digest: str | None = None) -> dict[str, "Tensor"]:
    """The model's state_dict alone, on the CPU, every byte verified.

    Raises:
        CheckpointError: when the manifest's SHA-256 is not `digest`, or an object is missing or differs from the
            manifest.
        S3Error: when there is no manifest, or S3 fails.
    """
    loaded, _ = restore(uri, digest, only=MODEL_PREFIX)
    return {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in loaded.items()}


def copy_checkpoint(uri: str, digest: str, target: S3Location) -> tuple[str, str]:
    """Copy a committed checkpoint, verified on the way, where retention never comes; returns (uri, digest).

    Repeating it is harmless: objects are the same bytes, and the manifest is written last.

    Raises:
        CheckpointError: when the source is not what its digest says.
    """
    from .dcp_storage import read_verified

    source, store = S3Location.parse(uri), S3Store()
    manifest, found = read_manifest(uri, digest)
    for stored in manifest.objects:
        store.write(target / stored.name, read_verified(source, manifest, stored.name))
    store.write(target / MANIFEST_NAME, store.read(source / MANIFEST_NAME), "application/json")
    return str(target), found
