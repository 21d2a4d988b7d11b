"""Why a TrainJob failed: the first error of the first failing pod, and what its exit code means."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from ...access import CONFIG_MAP, QUEUE_VARIABLE
from ...errors import ExitCode
from ..launch import LaunchError
from .answers import MESSAGE_CHARACTERS, ApiError
from .api import Cluster, Json
from .objects import NODE
from .status import attempt, container, index, lost

_ERROR_TAIL_LINES = 200
_SIGNALS = 128
"""Added to a signal's number by a shell, and by the kubelet."""
_OF_ITS_OWN = (ExitCode.NEGATIVE, ExitCode.USAGE)
"""Exit codes of a pod whose own workers failed; others end when those of another node did."""
_MEANT: dict[int, ExitCode] = {code: ExitCode(code) for code in (ExitCode.USAGE, ExitCode.OUTSIDE)}
"""Exit codes of the workers that the launching step passes on; any other is a negative end."""


@dataclass(frozen=True)
class PodFailure:
    """The end of a pod that failed."""

    pod: str
    place: int
    attempt: int
    finished: str
    exit_code: int
    reason: str
    message: str
    lost: str


def failures(pods: Sequence[Json]) -> list[PodFailure]:
    """The pods that failed."""
    return [failure for pod in pods if (failure := _failure(pod))]


def _failure(pod: Mapping[str, Any]) -> PodFailure | None:
    ended = (container(pod).get("state") or {}).get("terminated") or {}
    code = int(ended.get("exitCode") or 0)
    gone = lost(pod)
    if not code and not gone and pod["status"].get("phase") != "Failed":
        return None
    return PodFailure(
        pod=pod["metadata"]["name"],
        place=index(pod),
        attempt=attempt(pod),
        finished=str(ended.get("finishedAt") or ""),
        exit_code=code,
        reason=str(ended.get("reason") or pod["status"].get("reason") or ""),
        message=str(ended.get("message") or "").strip(),
        lost=gone,
    )


def explain(
    cluster: Cluster, job: Json, ended: Json, seen: Sequence[PodFailure], never_ran: str | None = None
) -> LaunchError:
    """The error of a failed TrainJob.

    Args:
        cluster: for the log of the failing pod, where it left no message.
        job: the TrainJob.
        ended: its condition `Failed`.
        seen: the failures of its pods over all its starts; JobSet deletes those of earlier ones.
        never_ran: where its pods never ran all at once, what they were seen to wait for last.
    """
    name = job["metadata"]["name"]
    if ended["reason"] == "DeadlineExceeded":
        seconds = job["spec"].get("activeDeadlineSeconds")
        if never_ran is not None:
            return LaunchError(
                f"TrainJob {name} was ended by its deadline of {seconds} s, and its pods had never all run"
                f" ({never_ran or 'no pods were seen'})"
                f" → make room for them, or let it queue: {QUEUE_VARIABLE} in ConfigMap {CONFIG_MAP}",
                ExitCode.OUTSIDE,
            )
        return LaunchError(
            f"TrainJob {name} was ended by its deadline of {seconds} s, which comes from the budget"
            " → raise budget.max_gpu_hours, or shorten the run"
        )
    last = [one for one in seen if one.attempt == max(each.attempt for each in seen)]
    # A node that is lost, or leaves, makes the others end too: what a pod has of its own comes first.
    last.sort(key=lambda one: (one.exit_code not in _OF_ITS_OWN, bool(one.lost), one.finished, one.place))
    if not last:
        message = " ".join(f"{ended['reason']}: {ended['message']}".split())
        return LaunchError(f"TrainJob {name} failed: {message} → kubectl describe trainjob {name}", ExitCode.OUTSIDE)
    first = last[0]
    if first.lost:
        return LaunchError(f"{first.lost}, and the restarts are used up", ExitCode.OUTSIDE)
    where = f"node {first.place}" + (f" (restart {first.attempt})" if first.attempt else "")
    return LaunchError(f"{where}: {_words(cluster, first)}", _MEANT.get(first.exit_code, ExitCode.NEGATIVE))


def _words(cluster: Cluster, failure: PodFailure) -> str:
    if failure.reason == "OOMKilled":
        return "out of memory: the container was killed (OOMKilled) → more memory in the runtime, or a smaller batch"
    if failure.message:
        return shorten(failure.message, MESSAGE_CHARACTERS, placeholder=" …")
    by_signal = failure.exit_code - _SIGNALS
    how = f"exit code {failure.exit_code}"
    if by_signal in set(signal.Signals):
        how = f"ended by {signal.Signals(by_signal).name}"
    line = _last_error(cluster, failure.pod)
    return f"{how}: {line}" if line else how


def _last_error(cluster: Cluster, pod: str) -> str:
    """The first line of the log's end that names an error, else its last one."""
    try:
        stamped = cluster.log(pod, NODE, patience=cluster.pace.read, tailLines=_ERROR_TAIL_LINES).splitlines()
    except ApiError:
        return ""
    lines = [line.partition(" ")[2].rstrip() for line in stamped]
    errors = [line for line in lines if "Error" in line and not line.startswith((" ", "Traceback"))]
    return next(iter(errors or [line for line in reversed(lines) if line]), "")[:MESSAGE_CHARACTERS]
