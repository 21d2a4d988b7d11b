"""What every rank has to have in common before the first step."""

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import random_state
from .random_state import RandomState
from .session import Session

NUM_PROBED = 32
"""Samples of the training split that stand for its data; a transform draws the same random numbers on every rank."""


def facts(session: Session) -> dict[str, Any]:
    """By name, as values that compare and print well."""
    return {
        "config digest": session.digests.training,
        "policy digest": session.digests.policy,
        "code": code_digest(session.task),
        "schedule": repr(session.schedule),
        "seed": session.job.seed,
        "training samples": session.num_train_samples,
        "data digest": data_digest(session),
        "first step": session.step,
        "initial weights": session.init_digest,
    }


def code_digest(task: object) -> str:
    """Of this package's sources and the task's own module; 16 hex digits."""
    return _digest(path.read_bytes() for path in _sources(task))


def _sources(task: object) -> Iterator[Path]:
    package = Path(__file__).parents[2]
    yield from sorted(package / name for name in package.glob("components/**/*.py"))
    own = inspect.getsourcefile(type(task))
    if own is not None:
        yield Path(own)


def data_digest(session: Session) -> str:
    """Of samples spread over the training split; 16 hex digits. Leaves the random state as it is."""
    before = RandomState.now(session.device)
    random_state.seed(session.job.seed)
    step = max(1, session.num_train_samples // NUM_PROBED)
    digest = _digest(
        _bytes(leaf)
        for index in range(0, session.num_train_samples, step)
        for leaf in tree_leaves(session.train_set[index])
    )
    before.set_again(session.device)
    return digest


def _bytes(leaf: object) -> bytes:
    if isinstance(leaf, Tensor):
        return leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if leaf.numel() else b""
    return repr(leaf).encode()


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
