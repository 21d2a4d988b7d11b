"""Two processes that save together, as the ranks of a training do."""

import faulthandler
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import sleep
from typing import Any

import torch
import torch.distributed as dist
from convergate.components.checkpoint import CheckpointRef
from convergate.components.errors import ConvergateError
from scene import be_impatient
from story import SECONDS, Heard, Writer
from victims import Process, Victim

PRELOADED = ["boto3", "torch.distributed.checkpoint", "convergate.components.checkpoint.saver", "ranks"]
"""Modules that a rank has when it starts: it is forked from a process that has them."""


@dataclass
class Ranks:
    """The processes of one attempt, and what came of them."""

    processes: list[Any] = field(default_factory=list)
    reported: list[CheckpointRef] = field(default_factory=list)
    """By rank 0."""
    errors: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    """The traces of errors that are not told in one line."""
    alive: list[int] = field(default_factory=list)
    """Ranks that had to be ended."""

    def kill(self, rank: int) -> None:
        """SIGKILL; returns when it is gone."""
        process = Process(self.processes[rank].pid, Victim.WORKER)
        process.end()
        while not process.ended():
            sleep(0.001)


def start_forkserver() -> None:
    """Start the process that ranks are forked from, and wait until it has loaded what they need."""
    path = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))  # it knows no `sys.path`
    multiprocessing.set_forkserver_preload(PRELOADED)
    first = multiprocessing.get_context("forkserver").Process(target=int)
    first.start()
    first.join()


def run(ranks: Ranks, uri: str, meeting: Path, steps: list[int], num_bytes: int, attempt: int) -> None:
    """Let two ranks save at these steps, each in a process of its own, until both have ended."""
    context = multiprocessing.get_context("forkserver")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    for rank, (_, told) in enumerate(pipes):
        arguments = (rank, told, dict(os.environ), uri, str(meeting), steps, num_bytes, attempt)
        ranks.processes.append(context.Process(target=_save, args=arguments))
    for process, (_, told) in zip(ranks.processes, pipes, strict=True):
        process.start()
        told.close()
    for rank, (process, (listening, _)) in enumerate(zip(ranks.processes, pipes, strict=True)):
        if not _listen(listening, ranks):
            ranks.alive.append(rank)
            process.kill()
        process.join()


def _listen(listening: Connection, ranks: Ranks) -> bool:
    """Take in what a rank tells; whether it ended in time."""
    try:
        while listening.poll(SECONDS):
            name, value = listening.recv()
            getattr(ranks, name).append(value)
    except EOFError:
        return True
    finally:
        listening.close()
    return False


def _save(
    rank: int,
    told: Connection,
    environment: dict[str, str],
    uri: str,
    meeting: str,
    steps: list[int],
    num_bytes: int,
    attempt: int,
) -> None:
    """One rank, to its end."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    heard = Heard.by(lambda line: told.send(("log", line)))

    def tell(name: str, value: object) -> None:
        with heard.lock:  # other threads log
            told.send((name, value))

    torch.set_num_threads(1)
    be_impatient()
    try:
        dist.init_process_group("gloo", store=dist.FileStore(meeting, 2), rank=rank, world_size=2)
        _save_at(steps, num_bytes, Writer(uri, attempt, keep_last=1, rank=rank, world_size=2), tell)
    except Exception:
        tell("crashes", traceback.format_exc())
    os._exit(0)  # gloo would wait for a rank that is dead


def _save_at(steps: list[int], num_bytes: int, writer: Writer, tell: Callable[[str, object], None]) -> None:
    try:
        for step in steps:
            reported = writer.save(step, num_bytes)
            if writer.rank == 0:
                tell("reported", reported)
    except ConvergateError as error:
        tell("errors", str(error))
    except RuntimeError as error:  # of gloo: the other rank is gone
        tell("log", str(error))
    try:
        writer.saver.close()
    except ConvergateError as error:
        tell("errors", str(error))
