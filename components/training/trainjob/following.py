"""Look at a TrainJob until it ends, and tell what changes: its state, its pods, the log of rank 0."""

from collections.abc import Callable
from time import monotonic, sleep

from ...errors import ExitCode
from ..launch import LaunchError
from .answers import ApiError, DeniedError, InvalidError, MissingError
from .api import Cluster, Json
from .failure import PodFailure, explain, failures
from .logs import LogReader
from .objects import MANAGER
from .status import (
    DEAD_NODE,
    SELECTOR,
    STUCK,
    current,
    failed,
    has_log,
    headline,
    index,
    is_complete,
    lost,
    newest,
    stuck,
    warnings,
)
from .usage import Usage

_EVENTS_LIMIT = 500
_LISTED = 1000


class StuckError(LaunchError):
    """The pods will not start by waiting, or not as they should; the TrainJob is there still."""


class Follower:
    """Follows one TrainJob.

    Args:
        cluster: where it is.
        name: its name.
        uid: its uid: another of the same name is not it.
        nodes: its pods.
        on_line: gets each line to show.
    """

    def __init__(self, cluster: Cluster, name: str, uid: str, nodes: int, on_line: Callable[[str], None]) -> None:
        self._cluster, self._name, self._uid, self._nodes = cluster, name, uid, nodes
        self._on_line = on_line
        self._logs = LogReader(cluster)
        self._told: set[str] = set()
        self._headline = ""
        self._all_ran = False
        self._failures: dict[str, PodFailure] = {}
        self._stuck_since: float | None = None
        self._leaving: dict[str, float] = {}
        """Since when a pod, by its uid, was seen to leave."""
        self.usage = Usage()
        """What its pods have cost so far."""

    def until_complete(self) -> None:
        """Return when it is complete.

        Raises:
            LaunchError: when it failed, with the first error of its first failing pod, or was deleted by somebody.
            StuckError: when a pod cannot start by waiting, or starts without our patch of the runtime.
            ApiError: when the cluster refuses to tell, or is away for too long.
        """
        while True:
            job = self._look()
            ended = failed(job)
            pods = self._pods()
            self.usage.look(pods)
            self._failures |= {one.pod: one for one in failures(pods)}
            self._all_ran |= len(current(pods)) == self._nodes and all(map(has_log, current(pods)))
            complete = is_complete(job)
            if not complete:
                self._refuse_unpatched(job)
            if not complete and ended is None:
                self._tell(job, pods)
            self._show_log(pods)
            if complete:
                return
            if ended is not None:
                never_ran = None if self._all_ran else self._headline
                raise explain(self._cluster, job, ended, list(self._failures.values()), never_ran)
            self._refuse_stuck(pods)
            sleep(self._cluster.pace.poll)

    def _look(self) -> Json:
        gone = f"TrainJob {self._name} was deleted by somebody while it ran → run the step again"
        try:
            job = self._cluster.get(self._cluster.trainjobs(self._name))
        except MissingError as error:
            raise LaunchError(gone, ExitCode.OUTSIDE) from error
        if job["metadata"]["uid"] != self._uid or job["metadata"].get("deletionTimestamp"):
            raise LaunchError(gone, ExitCode.OUTSIDE)
        return job

    def _pods(self) -> list[Json]:
        query = {"labelSelector": SELECTOR.format(name=self._name), "limit": _LISTED}
        found: list[Json] = self._cluster.get(self._cluster.core("pods"), **query)["items"]
        return found

    def _tell(self, job: Json, pods: list[Json]) -> None:
        for pod in pods:
            if (why := lost(pod)) and why not in self._told:
                self._say_once(f"{why}; it is made anew once it has ended")
                self._told.add(why)
        self._tell_what_does_not_leave(pods)
        line = headline(job, pods, self._nodes)
        if line != self._headline:
            self._headline = line
            self._on_line(line)
        if len(current(pods)) < self._nodes or any(not has_log(pod) for pod in current(pods)):
            self._show_warnings()

    def _tell_what_does_not_leave(self, pods: list[Json]) -> None:
        """A Job makes a pod anew once its node has told that it ended: a dead one never does."""
        for pod in newest(pods):
            metadata = pod["metadata"]
            if not metadata.get("deletionTimestamp"):
                continue
            since = self._leaving.setdefault(metadata["uid"], monotonic())
            allowed = float(metadata.get("deletionGracePeriodSeconds") or 0) + self._cluster.pace.ending
            if monotonic() - since > allowed:
                node = pod["spec"].get("nodeName") or "unknown"
                self._say_once(
                    f"pod {metadata['name']} was deleted, and node {node} does not tell that it ended: it is not made"
                    f" anew before → {DEAD_NODE.format(node=node)}"
                )

    def _show_warnings(self) -> None:
        try:
            found = self._cluster.get(self._cluster.core("events"), fieldSelector="type=Warning", limit=_EVENTS_LIMIT)[
                "items"
            ]
        except DeniedError as error:
            self._say_once(f"no events are shown: {error}")
            return
        for line in warnings(found, self._name):
            self._say_once(line)

    def _show_log(self, pods: list[Json]) -> None:
        """The lines of rank 0. That they cannot be read is no reason to end: the job's conditions tell its end."""
        first = next((pod for pod in newest(pods) if index(pod) == 0 and has_log(pod)), None)
        if first is None:
            return
        try:
            lines = self._logs.new_lines(first)
        except DeniedError as error:
            self._say_once(f"no log is shown: {error}")
        except (MissingError, InvalidError):  # the pod went, or its container is being replaced
            return
        except ApiError as error:  # its node does not answer; whether the server does, the next look tells
            if (uid := first["metadata"]["uid"]) not in self._told:
                self._told.add(uid)
                self._on_line(f"no log is shown for now: {error}")
        else:
            for line in lines:
                self._on_line(line)

    def _refuse_unpatched(self, job: Json) -> None:
        """Who updates a TrainJob by an older type of it writes it back without what that type does not know."""
        if not any(one["manager"] == MANAGER for one in job["spec"].get("runtimePatches") or ()):
            raise StuckError(
                f"TrainJob {self._name} has lost its spec.runtimePatches, and with them the config: a controller that"
                " does not know them has written it, as Kueue before 0.17 does → update Kueue",
                ExitCode.OUTSIDE,
            )

    def _refuse_stuck(self, pods: list[Json]) -> None:
        found = stuck(pods)
        if found is None:
            # A pull that is tried again is no start.
            if all(has_log(pod) for pod in current(pods)):
                self._stuck_since = None
            return
        if self._stuck_since is None:
            self._stuck_since = monotonic()
            self._say_once(f"pod {found.pod} does not start: {found.reason}: {found.message} → {STUCK[found.reason]}")
        if monotonic() - self._stuck_since >= self._cluster.pace.stuck:
            raise StuckError(
                f"pod {found.pod} did not start within {self._cluster.pace.stuck:.0f} s: {found.reason}:"
                f" {found.message} → {STUCK[found.reason]}",
                ExitCode.USAGE,
            )

    def _say_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._on_line(line)
