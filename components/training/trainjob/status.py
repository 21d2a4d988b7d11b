"""What a TrainJob's conditions, its pods and their events say, in words; pure functions of the API's JSON.

`Running` is never relied on: a TrainJob has no such condition, and one that Kueue resumed keeps its old ones.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .api import Json
from .objects import NODE, QUEUE_LABEL

JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
REPLICATED_JOB_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"
ATTEMPT_LABEL = "jobset.sigs.k8s.io/restart-attempt"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
SELECTOR = f"{JOBSET_LABEL}={{name}},{REPLICATED_JOB_LABEL}={NODE}"
STUCK = {
    "ErrImagePull": "check the image's name, and the imagePullSecrets of the runtime",
    "ImagePullBackOff": "check the image's name, and the imagePullSecrets of the runtime",
    "InvalidImageName": "check the image's name",
    "ErrImageNeverPull": "load the image onto the node, or another imagePullPolicy in the runtime",
    "CreateContainerConfigError": "create the Secret or ConfigMap that it names",
    "CreateContainerError": "kubectl describe pod",
    "RunContainerError": "kubectl describe pod",
}
"""Why a container does not start, and the fix; none of these heals by waiting alone."""
DEAD_NODE = (
    "is the node dead? kubectl get pods -o wide; kubectl delete node {node}, or kubectl taint node {node}"
    " node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
)
"""What has a pod replaced whose node will never tell that it ended."""
_NEW_POD = re.compile(r'(?<=")([^"]+-\d+-\d+)-[a-z0-9]{5}(?=")')
"""A pod that could not be made, in an event's message: another name at each try."""
_LOST_REASONS = ("NodeLost", "Evicted", "Preempting", "Shutdown", "Terminated", "NodeShutdown")
"""In a pod's `status.reason`: its node took it away."""


class Stuck(NamedTuple):
    """A pod that will not start by waiting."""

    pod: str
    reason: str
    message: str


def condition(of: Mapping[str, Any], kind: str) -> Json | None:
    """The condition of this type where it is true."""
    found: Iterable[Json] = (of.get("status") or {}).get("conditions") or []
    return next((one for one in found if one["type"] == kind and one["status"] == "True"), None)


def is_complete(job: Mapping[str, Any]) -> bool:
    """Whether it ended well."""
    return condition(job, "Complete") is not None


def failed(job: Mapping[str, Any]) -> Json | None:
    """The condition of a TrainJob that failed."""
    return condition(job, "Failed")


def attempt(pod: Mapping[str, Any]) -> int:
    """Which restart by JobSet a pod belongs to; 0 is the first start."""
    return int((pod["metadata"].get("labels") or {}).get(ATTEMPT_LABEL) or 0)


def index(pod: Mapping[str, Any]) -> int:
    """A pod's place in the job: the rank of its node."""
    metadata = pod["metadata"]
    return int({**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}.get(INDEX_LABEL) or 0)


def newest(pods: Sequence[Json]) -> list[Json]:
    """The pods of the newest start, the newest for each place, by place; replaced ones are left out."""
    start = max(map(attempt, pods), default=0)
    here = [pod for pod in pods if attempt(pod) == start]
    here.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
    return sorted({index(pod): pod for pod in here}.values(), key=index)


def current(pods: Sequence[Json]) -> list[Json]:
    """The newest pods but those that are leaving: no older one stands in for one that leaves."""
    return [pod for pod in newest(pods) if not pod["metadata"].get("deletionTimestamp")]


def headline(job: Mapping[str, Any], pods: Sequence[Json], nodes: int) -> str:
    """Where the job stands, in one line; another line is news."""
    if condition(job, "Suspended") is not None or job["spec"].get("suspend"):
        queue = (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)
        return f"waiting for quota: suspended{f', in queue {queue}' if queue else ''}"
    here = current(pods)
    pending = [pod for pod in here if _phase(pod) == "Pending"]
    restarts = max(map(attempt, pods), default=0)
    again = f", restart {restarts}" if restarts else ""
    if len(here) < nodes:
        return f"waiting for pods: {len(here)} of {nodes} there{again}"
    if pending:
        reasons = {reason: index(pod) for pod in reversed(pending) if (reason := waiting_for(pod))}
        shown = "; ".join(f"node {place}: {reason}" for reason, place in reversed(reasons.items()))
        return f"{len(pending)} of {nodes} pods pending{again}{f': {shown}' if shown else ''}"
    return f"{sum(_phase(pod) == 'Running' for pod in here)} of {nodes} pods running{again}"


def waiting_for(pod: Mapping[str, Any]) -> str:
    """Why a pod is pending: not scheduled, gated, or its container is kept from starting; empty where unknown."""
    for one in pod["status"].get("conditions") or []:
        if one["type"] == "PodScheduled" and one["status"] == "False":
            return str(one.get("message") or one.get("reason") or "")
    waiting = _waiting(pod) or {}
    reason = waiting.get("reason")
    if reason in STUCK:  # told in full elsewhere; while a pull is tried again, its reason and message come and go
        return "ImagePullBackOff" if reason == "ErrImagePull" else str(reason)
    return ": ".join(filter(None, [reason, waiting.get("message")]))


def stuck(pods: Sequence[Json]) -> Stuck | None:
    """The first pod that will not start by waiting."""
    for pod in current(pods):
        waiting = _waiting(pod) or {}
        if waiting.get("reason") in STUCK:
            return Stuck(pod["metadata"]["name"], waiting["reason"], waiting.get("message") or "")
    return None


def has_log(pod: Mapping[str, Any]) -> bool:
    """Whether its container has started."""
    state = container(pod).get("state") or {}
    return "running" in state or "terminated" in state


def container(pod: Mapping[str, Any]) -> Json:
    """The status of the container that trains; empty before there is one."""
    found = (pod["status"].get("containerStatuses") or []) + (pod["status"].get("initContainerStatuses") or [])
    return next((one for one in found if one["name"] == NODE), {})


def lost(pod: Mapping[str, Any]) -> str:
    """Why a pod was taken away by its node, a taint or a preemption; empty where it was not."""
    taken = condition(pod, "DisruptionTarget")
    status = pod["status"]
    if taken is not None:
        reason, message = taken.get("reason"), taken.get("message")
    elif status.get("reason") in _LOST_REASONS:
        reason, message = status["reason"], status.get("message")
    else:
        return ""
    node = pod["spec"].get("nodeName") or "unknown"
    return f"node {node} lost pod {pod['metadata']['name']}: {': '.join(filter(None, [reason, message]))}"


def warnings(events: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """What the cluster warns of about a TrainJob, its JobSet, Jobs and pods, each once, oldest first."""
    mine = [one for one in events if f"{one['involvedObject'].get('name')}-".startswith(f"{name}-")]
    mine.sort(key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))
    return list(dict.fromkeys(_warning(one) for one in mine if one.get("type") == "Warning"))


def _warning(event: Mapping[str, Any]) -> str:
    of, message = event["involvedObject"], " ".join(str(event.get("message") or "").split())
    return f"{of.get('kind')} {of.get('name')}: {event.get('reason')}: {_NEW_POD.sub(lambda found: found[1], message)}"


def _phase(pod: Mapping[str, Any]) -> str:
    return str(pod["status"].get("phase") or "")


def _waiting(pod: Mapping[str, Any]) -> Json | None:
    """The state of the first container that waits, init containers first."""
    statuses = (pod["status"].get("initContainerStatuses") or []) + (pod["status"].get("containerStatuses") or [])
    found = (one["state"]["waiting"] for one in statuses if (one.get("state") or {}).get("waiting"))
    return next(found, None)
