"""What ranks tell each other: one finds something for all, and an error of one is an error of all.

So none waits in a collective for a rank that raised. Without a process group there is one rank.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from ..errors import ConvergateError

T = TypeVar("T")


def everyones(mine: T) -> list[T]:
    """Every rank's value, by rank; a collective."""
    if not dist.is_initialized():
        return [mine]
    everyone = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def from_rank_0(find: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank; a collective.

    Raises:
        ConvergateError: what it raises there, on every rank.
    """
    if not dist.is_initialized():
        return find()
    told: list[Any] = [outcome(find) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told)
    found: T
    found, error = told[0]
    raise_any([error])
    return found


def outcome(act: Callable[[], T]) -> tuple[T | None, ConvergateError | None]:
    """What it gives, or the error that it raises."""
    try:
        return act(), None
    except ConvergateError as error:
        return None, error


def raise_any(errors: Sequence[ConvergateError | None]) -> None:
    """Raise the first error, if there is one.

    Raises:
        ConvergateError: that one.
    """
    for error in errors:
        if error is not None:
            raise error
