"""Objects as an API server keeps them: a version for each change, uids, finalizers, owners and their dependents."""

import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple
from uuid import uuid4

from .admission import TRAINJOBS

Json = dict[str, Any]


class Key(NamedTuple):
    """Where an object stands; `resource` is `trainjobs.trainer.kubeflow.org`, `pods` …"""

    resource: str
    namespace: str
    name: str


class ConflictError(Exception):
    """Another uid, or another version, than was expected."""


ENDING_LOOKS = 2
"""How often a pod that was deleted is still seen: its grace."""


class Store:
    """All objects of the cluster."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._objects: dict[Key, Json] = {}
        self._version = 0
        self._looks: dict[str, int] = {}
        self.holds: Callable[[Json], bool] = lambda pod: False
        """Whether a pod that was deleted has not ended yet; asked at each look."""
        self.deleted: list[str] = []
        """Names of what is gone, in the order of its end."""
        self.started_anew: list[str] = []
        """TrainJobs whose pods were started anew while they waited for the end of those: Trainer takes no notice of a
        deletionTimestamp, and makes the JobSet of one that has not ended whenever there is none."""

    def get(self, key: Key) -> Json | None:
        with self.lock:
            return deepcopy(self._objects.get(key))

    def list(self, resource: str, namespace: str = "") -> list[Json]:
        with self.lock:
            found = [
                value
                for key, value in self._objects.items()
                if key.resource == resource and namespace in ("", key.namespace)
            ]
            return deepcopy(found)

    def create(self, key: Key, body: Json) -> Json:
        """Raises KeyError where there is one."""
        with self.lock:
            if key in self._objects:
                raise KeyError(key.name)
            metadata = {**body.get("metadata", {}), "uid": str(uuid4()), "creationTimestamp": self._now()}
            metadata |= {"namespace": key.namespace} if key.namespace else {}
            self._objects[key] = {**deepcopy(body), "metadata": metadata | {"name": key.name}}
            return self._changed(key)

    def update(self, key: Key, body: Json) -> Json:
        with self.lock:
            self._objects[key] = deepcopy(body)
            return self._changed(key)

    def delete(self, key: Key, policy: str = "Background", uid: str | None = None) -> Json:
        """As the API server: what has finalizers or a grace stays for now, with its deletionTimestamp."""
        with self.lock:
            body = self._objects[key]
            if uid is not None and uid != body["metadata"]["uid"]:
                raise ConflictError(f"the UID in the precondition ({uid}) does not match the UID in record")
            dependents = self._dependents(body["metadata"]["uid"])
            if policy == "Foreground" and dependents:
                body["metadata"] |= {"deletionTimestamp": self._now(), "finalizers": ["foregroundDeletion"]}
                for one in dependents:
                    self.delete(one, policy)
            elif key.resource == "pods" and body.get("status", {}).get("phase") in ("Pending", "Running"):
                if "deletionTimestamp" not in body["metadata"]:
                    body["metadata"]["deletionTimestamp"] = self._now()
                    self._looks[body["metadata"]["uid"]] = ENDING_LOOKS
            else:
                self._remove(key)
            return self._changed(key) if key in self._objects else body

    def look(self) -> None:
        """Time passes: pods that were deleted come nearer to their end, and what waited for them goes."""
        with self.lock:
            for key, body in list(self._objects.items()):
                uid = body["metadata"]["uid"]
                if uid in self._looks:
                    self._looks[uid] -= 1
                    if not self.holds(body) and self._looks[uid] <= 0:
                        self._remove(key)
            for key, body in list(self._objects.items()):
                waits = body["metadata"].get("finalizers") == ["foregroundDeletion"]
                if waits and not self._dependents(body["metadata"]["uid"]):
                    if key.resource == TRAINJOBS and not _has_ended(body):
                        self.started_anew.append(key.name)
                    self._remove(key)

    def _remove(self, key: Key) -> None:
        body = self._objects.pop(key)
        self._looks.pop(body["metadata"]["uid"], None)
        self.deleted.append(key.name)
        for one in self._dependents(body["metadata"]["uid"]):
            self.delete(one, "Foreground")

    def _dependents(self, uid: str) -> "list[Key]":
        return [
            key
            for key, body in self._objects.items()
            if any(owner["uid"] == uid for owner in body["metadata"].get("ownerReferences") or [])
        ]

    def _changed(self, key: Key) -> Json:
        self._version += 1
        self._objects[key]["metadata"]["resourceVersion"] = str(self._version)
        return deepcopy(self._objects[key])

    def _now(self) -> str:
        self._version += 1
        return f"2026-01-01T{self._version // 3600:02}:{self._version // 60 % 60:02}:{self._version % 60:02}Z"

    @property
    def version(self) -> str:
        return str(self._version)


def _has_ended(job: Json) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)
