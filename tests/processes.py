"""Ranks as processes that start at once, for tests of what ranks do together."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist


def _rank(rank: int, world_size: int, store: Path, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    job(rank, *arguments)
    dist.destroy_process_group()


def in_processes(world_size: int, tmp_path: Path, job: Callable[..., None], *arguments: Any) -> None:
    """Run a job on each rank; fork, so that it starts at once."""
    context = multiprocessing.get_context("fork")
    store = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, store, job, arguments)) for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    ended = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert ended == [0] * world_size
