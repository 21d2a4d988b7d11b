"""The newest checkpoint that is whole, on every rank: a damaged one is left out, and the one before it taken."""

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

from .manifest import CheckpointError
from .ranks import everyones, from_rank_0, outcome, raise_any
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
        S3Error: when S3 fails, on any rank; that is never taken for damage, or for 'no checkpoint'.
        ConvergateError: anything else that `load` raises, on any rank.
    """
    refs = filter(wanted, store.live(oldest_attempt))
    num_damaged = 0
    while (ref := from_rank_0(lambda: next(refs, None))) is not None:
        loaded, error = outcome(partial(load, ref))
        errors = everyones(error)
        raise_any([one for one in errors if not isinstance(one, CheckpointError)])
        damage = next((str(one) for one in errors if one is not None), None)
        if damage is None:
            return ref, cast(T, loaded)
        num_damaged += 1
        _log.warning("a damaged checkpoint is left out: %s", damage)
        on_damage(ref, damage)
    if num_damaged:
        raise CheckpointError(f"{store.root}: none of {num_damaged} checkpoints verifies → start with --resume never")
    return None
