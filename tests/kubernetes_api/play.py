"""What the controllers, Kueue, the scheduler and the kubelets would do to one TrainJob, scripted.

A scene is a function of a Play; each look at the TrainJob plays the next one first, so that nothing depends on time.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from .admission import SINCE_2_2, TRAINJOBS
from .server import ApiServer
from .store import Json, Key

Scene = Callable[["Play"], object]


class Play:
    """Plays scenes to whatever TrainJob of the namespace is looked at.

    Args:
        api: the server.
        namespace: of the TrainJob.
        scenes: one for each look; after the last one nothing changes any more.
    """

    def __init__(self, api: ApiServer, namespace: str, *scenes: Scene) -> None:
        self._api, self._namespace, self._scenes = api, namespace, list(scenes)
        self.name = ""
        self.attempt = 0
        self._seconds = 0
        self._pods = 0
        api.on_look = self._look

    def _look(self, name: str) -> None:
        with self._api.store.lock:
            self._api.store.look()
            job = self._job(name)
            if job is None or job["metadata"].get("deletionTimestamp") or not self._scenes:
                return
            self.name = name
            self._scenes.pop(0)(self)

    def _job(self, name: str) -> Json | None:
        return self._api.store.get(Key(TRAINJOBS, self._namespace, name))

    @property
    def job(self) -> Json:
        found = self._job(self.name)
        assert found is not None
        return found

    # Conditions of the TrainJob.

    def condition(self, kind: str, reason: str, message: str, status: str = "True") -> None:
        job = self.job
        conditions = [one for one in job.get("status", {}).get("conditions", []) if one["type"] != kind]
        one = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": self._time()}
        job["status"] = {**job.get("status", {}), "conditions": [*conditions, one]}
        self._api.store.update(Key(TRAINJOBS, self._namespace, self.name), job)

    def suspend(self) -> None:
        """Kueue's webhook, which adds a patch of its own, and Trainer's controller."""
        job = self.job
        job["spec"]["suspend"] = True
        job["spec"]["runtimePatches"].append({"manager": "kueue.x-k8s.io/manager"})
        self._api.store.update(Key(TRAINJOBS, self._namespace, self.name), job)
        self.condition("Suspended", "Suspended", "TrainJob is suspended")

    def resume(self) -> None:
        job = self.job
        job["spec"]["suspend"] = False
        self._api.store.update(Key(TRAINJOBS, self._namespace, self.name), job)
        self.condition("Suspended", "Resumed", "TrainJob is resumed", "False")

    def forget_new_fields(self) -> None:
        """Kueue before 0.17 admits a job: it reads and writes it by the types of Trainer 2.1."""
        job = self.job
        job["spec"] = {key: value for key, value in job["spec"].items() if key not in SINCE_2_2} | {"suspend": False}
        self._api.store.update(Key(TRAINJOBS, self._namespace, self.name), job)

    def complete(self) -> None:
        self.condition("Complete", "AllJobsCompleted", "jobset completed successfully")

    def fail(self, reason: str = "FailedJobs", message: str = "jobset failed due to one or more job failures") -> None:
        self.condition("Failed", reason, message)

    def delete(self) -> None:
        self._api.store.delete(Key(TRAINJOBS, self._namespace, self.name))

    # Pods.

    def pods(self, *places: int, pending: str = "") -> None:
        """The Job's pods, as the runtime, the torch plugin and our patches make them; all places unless told."""
        job = self.job
        for place in places or range(job["spec"]["trainer"]["numNodes"]):
            self._pods += 1
            body = _pod(job, self._api.runtime(job, self._namespace) or {}, place, self.attempt, f"{self._pods:05}")
            scheduled = {"type": "PodScheduled", "status": "False" if pending else "True"}
            scheduled |= {"reason": "Unschedulable", "message": pending} if pending else {}
            body["status"] = {"phase": "Pending", "conditions": [scheduled], "containerStatuses": []}
            self._api.put("pods", body, self._namespace)

    def pod(self, place: int) -> Json:
        """The newest pod of a place."""
        found = [one for one in self._api.store.list("pods", self._namespace) if one["metadata"].get("place") == place]
        return found[-1]

    def set_pod(self, place: int, **changes: Any) -> None:
        body = self.pod(place)
        spec = {"nodeName": f"gpu-{place}"} if changes.get("phase") != "Pending" else {}
        body = {**body, "spec": body["spec"] | spec, "status": {**body["status"], **changes}}
        self._api.store.update(Key("pods", self._namespace, body["metadata"]["name"]), body)

    def waiting(self, place: int, reason: str, message: str = "") -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        self.set_pod(place, phase="Pending", conditions=[], containerStatuses=[{"name": "node", "state": state}])

    def run(self, *places: int) -> None:
        for place in places or range(self.job["spec"]["trainer"]["numNodes"]):
            state = {"running": {"startedAt": self._time()}}
            self.set_pod(place, phase="Running", conditions=[], containerStatuses=[{"name": "node", "state": state}])

    def log(self, place: int, *lines: str) -> None:
        kept = self._api.logs.setdefault(self.pod(place)["metadata"]["uid"], [])
        kept.extend((self._time(), line) for line in lines)

    def end(self, place: int, code: int = 0, message: str = "", reason: str = "") -> None:
        before = self.pod(place)["status"]["containerStatuses"][0].get("state") or {}
        state = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "finishedAt": self._time()}
        state |= before.get("running") or {}
        state |= {"message": message} if message else {}
        self.set_pod(
            place,
            phase="Failed" if code else "Succeeded",
            containerStatuses=[{"name": "node", "state": {"terminated": state}}],
        )

    def lose_node(self, place: int) -> None:
        """Its node does not answer any more, and the taint manager deletes the pod."""
        message = "Taint manager: deleting due to NoExecute taint"
        one = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": message}
        self.set_pod(place, conditions=[one])

    def restart(self) -> None:
        """JobSet deletes all pods and starts anew."""
        for one in self._api.store.list("pods", self._namespace):
            if "place" in one["metadata"]:
                key = Key("pods", self._namespace, one["metadata"]["name"])
                self._api.store.update(key, {**one, "status": {**one["status"], "phase": "Failed"}})
                self._api.store.delete(key)
        self.attempt += 1

    def event(self, kind: str, name: str, reason: str, message: str, type_: str = "Warning") -> None:
        self._pods += 1
        involved = {"kind": kind, "name": name.format(name=self.name), "namespace": self._namespace}
        body = {"metadata": {"name": f"event-{self._pods}"}, "involvedObject": involved, "type": type_}
        body |= {"reason": reason, "message": message, "lastTimestamp": self._time()}
        self._api.put("events", body, self._namespace)

    def tick(self, seconds: int) -> None:
        """Time passes."""
        self._seconds += seconds

    def _time(self) -> str:
        self._seconds += 1
        hours, minutes = self._seconds // 3600, self._seconds // 60 % 60
        return f"2026-01-01T{hours:02}:{minutes:02}:{self._seconds % 60:02}.{self._seconds:09}Z"


def nothing(play: Play) -> None:
    """A look at which nothing has changed."""


def started(play: Play) -> None:
    """All pods are there, and run."""
    play.pods()
    play.run()


def _pod(job: Json, runtime: Json, place: int, attempt: int, suffix: str) -> Json:
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    replicated = next(one for one in runtime["spec"]["template"]["spec"]["replicatedJobs"] if one["name"] == "node")
    spec = deepcopy(replicated["template"]["spec"]["template"]["spec"])
    labels = {
        "jobset.sigs.k8s.io/jobset-name": name,
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "jobset.sigs.k8s.io/restart-attempt": str(attempt),
        "batch.kubernetes.io/job-completion-index": str(place),
    }
    container = next(one for one in spec["containers"] if one["name"] == "node")
    container |= {key: trainer[key] for key in ("image", "command", "args") if key in trainer}
    if "resourcesPerNode" in trainer:
        container["resources"] = trainer["resourcesPerNode"]
    container["env"] = [
        *container.get("env", []),
        {"name": "PET_NNODES", "value": str(trainer["numNodes"])},
        {"name": "PET_NPROC_PER_NODE", "value": str(trainer["numProcPerNode"])},
        {"name": "PET_NODE_RANK", "value": str(place)},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": "29500"},
    ]
    for patch in (one for one in job["spec"].get("runtimePatches") or [] if "trainingRuntimeSpec" in one):
        one = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
        labels |= one.get("metadata", {}).get("labels", {})
        spec["volumes"] = [*spec.get("volumes", []), *one["spec"].get("volumes", [])]
        for patched in one["spec"].get("containers", []):
            container["volumeMounts"] = [*container.get("volumeMounts", []), *patched.get("volumeMounts", [])]
    owner = {"apiVersion": job["apiVersion"], "kind": "TrainJob", "name": name, "uid": job["metadata"]["uid"]}
    metadata = {"name": f"{name}-node-0-{place}-{suffix}", "labels": labels, "ownerReferences": [owner], "place": place}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
