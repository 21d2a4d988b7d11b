"""Launch a TrainJob, find it again after a retry of the step, follow it, and leave nothing behind when interrupted."""

import contextlib
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...errors import OutsideError
from ..job import Job, Phase
from ..launch import InterruptedRunError, LaunchError
from .answers import ApiError, ExistsError
from .api import Cluster, Json, own_namespace
from .deleting import delete_and_wait, find, has_pods, wait_until_gone
from .following import Follower, StuckError
from .interrupts import Hold, SignalledError, raising_signals
from .objects import (
    DIGEST_ANNOTATION,
    config_map,
    node_arguments,
    run_labels,
    runtime_name,
    sha256,
    trainjob,
    trainjob_name,
)
from .own_pod import find_origin
from .pace import Pace
from .runtime import Runtime, find_runtime
from .status import DEAD_NODE, failed, is_complete

_LOOKS = 5
"""How often a TrainJob that comes and goes meanwhile is looked up again."""


def launch_trainjob(
    jobs: list[Job],
    config_text: str,
    *,
    run_id: str,
    phase: Phase,
    nodes: int,
    procs_per_node: int,
    max_restarts: int,
    deadline_seconds: int,
    labels: Mapping[str, str] | None = None,
    grace_seconds: float | None = None,
    on_line: Callable[[str], None] = print,
    on_usage: Callable[[float], None] | None = None,
    pace: Pace | None = None,
) -> None:
    """Run the jobs, one after the other, as a TrainJob, until all have ended well.

    The TrainJob's name comes from run and phase. One that an earlier try of the step left is followed on, or taken
    where it is complete; one that failed, or was asked for something else, is deleted and replaced. It has the
    Workflow of this step as its owner from the first moment, so that Kubernetes deletes it with the Workflow.

    Args:
        jobs: what the workers do.
        config_text: the run's config, for all jobs; mounted from an immutable ConfigMap.
        run_id: the run.
        phase: which of its launches.
        nodes: pods.
        procs_per_node: processes in each, of one GPU each where the runtime has any.
        max_restarts: restarts of all workers after one was lost.
        deadline_seconds: how long the job may be active (`deadline_seconds`).
        labels: more labels of the TrainJob and its pods, such as the experiment.
        grace_seconds: what the pods' termination grace has to be at least, where saves were measured.
        on_line: gets each line to show: states, warnings, and what rank 0 prints.
        on_usage: told at the end, whatever it was, how long the pods ran, in node-seconds: not the time in a queue.
        pace: time limits.

    Raises:
        LaunchError: when it failed, with the first error of its first failing pod and the meaning of its exit code.
        InterruptedRunError: when this process got SIGTERM or SIGINT meanwhile; the TrainJob is deleted.
        UserError: for a runtime that does not fit.
        OutsideError: when the cluster refuses, or is away for too long; a TrainJob that runs goes on.
    """
    launch = _Launch(
        Cluster(own_namespace(), pace or Pace(), on_line), trainjob_name(run_id, phase), nodes, on_line, on_usage
    )
    digest = sha256(config_text)

    def wanted(runtime: Runtime) -> Json:
        origin = find_origin(launch.cluster)
        return trainjob(
            launch.name,
            runtime=runtime.name,
            runtime_kind=runtime.kind,
            image=origin.image,
            arguments=node_arguments(
                jobs,
                digest,
                run_id=run_id,
                nodes=nodes,
                procs_per_node=procs_per_node,
                max_restarts=max_restarts,
                grace_seconds=runtime.grace(grace_seconds),
            ),
            config_digest=digest,
            nodes=nodes,
            procs_per_node=procs_per_node,
            resources=runtime.resources(procs_per_node),
            deadline_seconds=deadline_seconds,
            labels=run_labels(run_id, phase, digest, labels or {}),
            owner=origin.owner,
        )

    with raising_signals(launch.hold):
        launch.run(wanted, config_map(config_text))


@dataclass
class _Launch:
    """One launch, and what is known of its TrainJob so far."""

    cluster: Cluster
    name: str
    nodes: int
    on_line: Callable[[str], None]
    on_usage: Callable[[float], None] | None
    hold: Hold = field(default_factory=Hold)
    runtime: Runtime | None = None
    uid: str | None = None

    def run(self, wanted: Callable[[Runtime], Json], config: Json) -> None:
        """Create or find the TrainJob, follow it to its end, and delete it where it would be left alone."""
        try:
            self.runtime = find_runtime(self.cluster, runtime_name())
            body = wanted(self.runtime)
            self._ensure_config_map(config)
            self._follow(self._ensure_trainjob(body))
        except SignalledError as signalled:
            self._say(f"interrupted by {signal.Signals(signalled.signum).name}: TrainJob {self.name} is deleted")
            self._delete()
            raise InterruptedRunError(signalled.signum) from signalled
        except ApiError as error:
            # What the API server says of the launcher is no reason to end what runs, and a retried step finds it again.
            if self.uid is None:
                raise
            raise ApiError(f"{error}; TrainJob {self.name} goes on, and a retried step follows it") from error
        except BaseException as error:
            # After any other error nobody would follow it; one that ended by itself is left to be looked at.
            if self.runtime is not None and (isinstance(error, StuckError) or not isinstance(error, LaunchError)):
                if self.uid is not None:
                    self._say(f"nobody follows TrainJob {self.name} any more ({_shown(error)}): it is deleted")
                self._delete()
            raise

    def _follow(self, uid: str) -> None:
        follower = Follower(self.cluster, self.name, uid, self.nodes, self.on_line)
        try:
            follower.until_complete()
        finally:
            if self.on_usage is not None:
                self.on_usage(follower.usage.node_seconds())

    def _say(self, line: str) -> None:
        """Tell it, also where the output is what broke."""
        with contextlib.suppress(OSError):
            self.on_line(line)

    def _delete(self) -> None:
        self.hold.end()
        delete_and_wait(self.cluster, self.name, self.uid, self._pods_seconds, self.on_line)

    @property
    def _pods_seconds(self) -> float:
        return self.runtime.termination_seconds if self.runtime else 0.0

    def _ensure_config_map(self, wanted: Json) -> None:
        """Create the ConfigMap, or see that the one that is there holds the same text."""
        cluster, name = self.cluster, wanted["metadata"]["name"]
        try:
            cluster.create(cluster.core("configmaps"), wanted)
        except ExistsError as error:
            if cluster.get(cluster.core("configmaps", name)).get("data") != wanted["data"]:
                raise OutsideError(
                    f"ConfigMap {name} in namespace {cluster.namespace} holds another config than its name says"
                    f" → kubectl delete configmap {name} -n {cluster.namespace}"
                ) from error

    def _ensure_trainjob(self, wanted: Json) -> str:
        """The uid of the TrainJob that is asked for: found, or created."""
        cluster, name = self.cluster, self.name
        digest = wanted["metadata"]["annotations"][DIGEST_ANNOTATION]
        for _ in range(_LOOKS):
            found = find(cluster, name)
            if found is None:
                if has_pods(cluster, name):
                    self.on_line(f"pods of an earlier TrainJob {name} are ending: waiting until they are gone")
                    self._wait_until_gone(None)
                # A create that is on its way when a signal comes must not arrive after the delete.
                with contextlib.suppress(ExistsError):
                    self.uid = str(cluster.create(cluster.trainjobs(), wanted, sending=self.hold)["metadata"]["uid"])
                    self.on_line(_created(cluster, wanted))
                    return self.uid
                continue
            same = (found["metadata"].get("annotations") or {}).get(DIGEST_ANNOTATION) == digest
            if found["metadata"].get("deletionTimestamp"):
                self.on_line(f"TrainJob {name} of an earlier try is being deleted: waiting until it is gone")
            elif same and failed(found) is None:
                self.uid = str(found["metadata"]["uid"])
                self.on_line(
                    f"TrainJob {name} is {'complete already' if is_complete(found) else 'there already: followed on'}"
                )
                return self.uid
            else:
                why = "failed in an earlier try" if same else "was asked for another config or other jobs"
                self.on_line(f"TrainJob {name} {why}: it is deleted, and started anew")
                ended = is_complete(found) or failed(found) is not None
                cluster.delete(cluster.trainjobs(name), found["metadata"]["uid"], ended=ended)
            self._wait_until_gone(found["metadata"]["uid"])
        raise OutsideError(f"TrainJob {name} keeps coming and going → see who else creates it: kubectl get trainjob -w")

    def _wait_until_gone(self, uid: str | None) -> None:
        if not wait_until_gone(self.cluster, self.name, uid, self._pods_seconds):
            raise OutsideError(
                f"TrainJob {self.name} was deleted, and it or its pods do not go → {DEAD_NODE.format(node='NODE')}"
            )


def _shown(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


def _created(cluster: Cluster, job: Json) -> str:
    trainer, owners = job["spec"]["trainer"], job["metadata"].get("ownerReferences")
    owner = f"owned by {owners[0]['kind']} {owners[0]['name']}" if owners else "owned by nobody: started by hand"
    return (
        f"TrainJob {job['metadata']['name']} created in namespace {cluster.namespace}: {trainer['numNodes']} nodes"
        f" × {trainer['numProcPerNode']} processes, {owner}"
    )
