"""The newest that is whole, on every rank; what fails on one rank fails on all, and at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convergate.components.checkpoint import CheckpointError, CheckpointRef, CheckpointStore
from convergate.components.checkpoint.fallback import restore_newest
from convergate.components.errors import ConvergateError, UserError
from convergate.components.storage import S3Error

from ...checkpoints import commit
from ...processes import in_processes


def _restored(rank: int, root: str, fails: Callable[[int, CheckpointRef], None]) -> tuple[int, list[int]]:
    damaged: list[int] = []

    def load(ref: CheckpointRef) -> int:
        fails(rank, ref)
        return ref.step

    found = restore_newest(CheckpointStore(root, "run"), load, on_damage=lambda ref, _: damaged.append(ref.step))
    assert found is not None
    assert found[0].step == found[1]
    return found[1], damaged


def _damage_on_one(rank: int, ref: CheckpointRef) -> None:
    if rank == 1 and ref.step == 20:
        raise CheckpointError("a bit is flipped")


def _falls_back(rank: int, root: str) -> None:
    assert _restored(rank, root, _damage_on_one) == (10, [20])


def test_damage_that_one_rank_meets_is_damage_for_all(s3: str, tmp_path: Path) -> None:
    for step in (10, 20):
        commit(s3, "run", {"w": torch.ones(1)}, step=step)
    in_processes(2, tmp_path, _falls_back, s3)


ERRORS: dict[str, ConvergateError] = {
    "outage": S3Error("permission denied"),
    "another model": UserError("is another model's"),
    "all damaged": CheckpointError("a bit is flipped"),
}


def _fails_alike(rank: int, root: str, kind: str) -> None:
    def fail(rank: int, _: CheckpointRef) -> None:
        if rank == 1:
            raise ERRORS[kind]

    with pytest.raises(type(ERRORS[kind]), match="none of 1" if kind == "all damaged" else str(ERRORS[kind])):
        _restored(rank, root, fail)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_of_one_rank_is_an_error_of_all(s3: str, tmp_path: Path, kind: str) -> None:
    commit(s3, "run", {"w": torch.ones(1)})
    in_processes(2, tmp_path, _fails_alike, s3, kind)


def _cannot_list(rank: int, root: str) -> None:
    with pytest.raises(S3Error, match="no such bucket"):
        _restored(rank, root, lambda *_: None)


def test_a_listing_that_fails_on_rank_0_fails_on_all(s3: str, tmp_path: Path) -> None:
    in_processes(2, tmp_path, _cannot_list, "s3://no-such-bucket-here/x")
