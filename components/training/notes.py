"""What worker processes leave for the launcher of their node: small files in a folder that it names.

Why they failed, whom they wait for, and how they ended. The launcher reads them rather than exit codes alone: of those
torchrun's agent tells only that a process ended.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConvergateError

FOLDER_VARIABLE = "CONVERGATE_FAILURES"
"""Names the folder."""
End = Literal["done", "interrupted"]
"""How a worker ended well: with all of its jobs' results written, or saved, for another start to go on."""


@dataclass(frozen=True, slots=True)
class AgentEnd:
    """Why torchrun's agent ended, where that was not well."""

    ended: dict[int, int]
    """Exit codes of the workers that failed, by rank; negative ones are signals."""
    rendezvous: str
    """torch's name of an error over which the nodes did not meet; empty where there was none."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker failed."""

    rank: int
    restart: int
    time: float
    """When, in seconds since 1970: the oldest is the cause of the others."""
    error: str
    exit_code: int
    lost: bool
    """Whether it is only what the end or the silence of another rank made of it."""


def restart() -> int:
    """How often this node's agent has started its workers again, in a worker."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def note_start() -> None:
    """The workers of this restart are at work: what earlier ones noted is over."""
    _write(f"start-{restart()}-{_rank()}", "")


def note_failure(error: Exception, failed_at: float, *, lost: bool) -> None:
    """Leave the error for the launcher."""
    text = str(error) if isinstance(error, ConvergateError) else f"{type(error).__name__}: {error}"
    first_line = text.splitlines()[0] if text else ""
    code = int(getattr(error, "exit_code", 1))
    note = Failure(_rank(), restart(), failed_at, first_line, code, lost)
    _write(f"failure-{restart()}-{_rank()}.json", json.dumps(asdict(note)))


def note_stall(waited_for: str) -> None:
    """Leave who is waited for, should NCCL's watchdog abort this process without an error; or take that back."""
    _write(f"stall-{_rank()}.txt", waited_for)


def note_end(end: End) -> None:
    """Leave how this worker ended."""
    _write(f"end-{_rank()}", end)


def note_agent(ended: Mapping[int, int] | None = None, rendezvous: str = "") -> None:
    """Leave why the agent ended."""
    _write("agent.json", json.dumps({"ended": dict(ended or {}), "rendezvous": rendezvous}))


def agent_end(folder: Path) -> AgentEnd:
    """Why the agent ended."""
    note = folder / "agent.json"
    if not note.exists():
        return AgentEnd({}, "")
    said = json.loads(note.read_text())
    return AgentEnd({int(rank): code for rank, code in said["ended"].items()}, said["rendezvous"])


def failures(folder: str | Path) -> list[Failure]:
    """Of all restarts."""
    return [Failure(**json.loads(path.read_text())) for path in Path(folder).glob("failure-*.json")]


def last_failures(folder: Path) -> list[Failure]:
    """Of the restart that came to work last; none where all of it was well, or was ended without a word."""
    newest = max((int(path.name.split("-")[1]) for path in folder.glob("start-*")), default=0)
    return [failure for failure in failures(folder) if failure.restart >= newest]


def stall(folder: Path, rank: int | str) -> str | None:
    """Whom a rank said that it waits for; None where it said nothing."""
    note = folder / f"stall-{rank}.txt"
    return note.read_text() if note.exists() else None


def ends(folder: Path) -> list[End]:
    """How workers ended that ended well."""
    found: list[End] = []
    for path in folder.glob("end-*"):
        found.append("interrupted" if path.read_text() == "interrupted" else "done")
    return found


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _write(name: str, text: str) -> None:
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        part = Path(folder, f".{name}")
        part.write_text(text)
        part.replace(Path(folder, name))  # whole, or not there


__all__ = [
    "FOLDER_VARIABLE",
    "AgentEnd",
    "End",
    "Failure",
    "agent_end",
    "ends",
    "failures",
    "last_failures",
    "note_agent",
    "note_end",
    "note_failure",
    "note_stall",
    "note_start",
    "restart",
    "stall",
]
