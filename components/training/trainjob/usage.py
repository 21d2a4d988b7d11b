"""How long a TrainJob's pods ran: what it costs, without the time in a queue, restarts included."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from .status import container


class Usage:
    """Adds up the time of every pod that was seen, also of those that were deleted since."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[datetime, datetime | None]] = {}

    def look(self, pods: Iterable[Mapping[str, Any]]) -> None:
        """Take note of what the pods say of their start and end, and of those that are gone: they ended before now."""
        here = set()
        for pod in pods:
            uid, state = pod["metadata"]["uid"], container(pod).get("state") or {}
            here.add(uid)
            began = (state.get("terminated") or state.get("running") or {}).get("startedAt")
            if began:
                ended = (state.get("terminated") or {}).get("finishedAt")
                self._spans[uid] = (_time(began), _time(ended) if ended else None)
        now = datetime.now(UTC)
        gone = {uid: began for uid, (began, ended) in self._spans.items() if ended is None and uid not in here}
        self._spans |= {uid: (began, now) for uid, began in gone.items()}

    def node_seconds(self) -> float:
        """The sum over all pods; one that was running when last seen counts until now."""
        now = datetime.now(UTC)
        return sum(max(0.0, ((ended or now) - began).total_seconds()) for began, ended in self._spans.values())


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp)
