"""Checkpoints of any tensors, committed, for tests that need one."""

from collections.abc import Mapping
from typing import Any

from convergate.components.checkpoint import CheckpointRef, CheckpointStore
from convergate.components.checkpoint.reading import read_marker
from convergate.components.checkpoint.saver import Saver
from convergate.components.storage import S3Location
from torch import Tensor


def commit(
    uri: str, run_id: str, tensors: Mapping[str, Tensor], attempt: int = 1, step: int = 10, **others: Any
) -> CheckpointRef:
    """Save and wait until it is committed."""
    store = CheckpointStore(uri, run_id)
    saver = Saver(store)
    saver.begin(tensors, attempt=attempt, step=step, **{"training_digest": "", "state": {}, "metrics": {}} | others)
    saver.close()
    return CheckpointRef(attempt, step, store.root)


def folder(ref: CheckpointRef) -> S3Location:
    """Where its objects lie."""
    return ref.root / read_marker(ref.uri).folder


def blob(ref: CheckpointRef) -> S3Location:
    """The object of rank 0."""
    return folder(ref) / "rank-00000.bin"
