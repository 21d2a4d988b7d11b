"""The newest checkpoint that is whole, on every rank: a damaged one is left out, and the one before it taken."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from .manifest import CheckpointError
from .refs import CheckpointRef
from .store import CheckpointStore

T = TypeVar("T")
_log = logging.getLogger(__name__)


def restore_newest(
    store: CheckpointStore,
    load: Callable[[CheckpointRef], T],
    *,
    oldest_attempt: int = 1,
    wanted: Callable[[CheckpointRef], bool] = lambda _: True,
    on_damage: Callable[[CheckpointRef, str], None] = lambda *_: None,
) -> tuple[CheckpointRef, T] | None:
    """Load the newest checkpoint of which no rank finds a byte that differs; a collective.

    Args:
        store: of the run.
        load: loads it on this rank; its CheckpointError, on any rank, is damage.
        oldest_attempt: checkpoints of attempts before it don't count.
        wanted: those it is False for don't count; asked on rank 0.
        on_damage: told of each damaged one and what is wrong with it, on every rank.

    Returns:
        It, and what `load` gave; None where there is none at all.

    Raises:
        CheckpointError: when there are some, and all are damaged.
        S3Error: when S3 fails; that is never taken for damage, or for 'no checkpoint'.
    """
    refs = filter(wanted, store.live(oldest_attempt))
    num_damaged = 0
    while (ref := _from_rank_0(lambda: next(refs, None))) is not None:
        loaded, problem = _try(load, ref)
        found = next(filter(None, _everyones(problem)), "")
        if not found:
            assert loaded is not None
            return ref, loaded[0]
        num_damaged += 1
        _log.warning("a damaged checkpoint is left out: %s", found)
        on_damage(ref, found)
    if num_damaged:
        raise CheckpointError(f"{store.root}: none of {num_damaged} checkpoints verifies → start with --resume never")
    return None


def _try(load: Callable[[CheckpointRef], T], ref: CheckpointRef) -> tuple[tuple[T] | None, str]:
    try:
        return (load(ref),), ""
    except CheckpointError as error:
        return None, str(error)


def _from_rank_0(find: Callable[[], T]) -> T:
    if not dist.is_initialized():
        return find()
    found: list[T | None] = [find() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def _everyones(problem: str) -> list[str]:
    if not dist.is_initialized():
        return [problem]
    everyone = [""] * dist.get_world_size()
    dist.all_gather_object(everyone, problem)
    return everyone
