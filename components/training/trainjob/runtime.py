"""What the cluster's runtime gives the worker pods: how long they may save, and their resources."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from typing import Any

from ...errors import UserError
from .answers import APPLY, MissingError
from .api import TRAINER, Cluster, Json
from .objects import NODE
from .pace import GRACE_MARGIN_SECONDS

_DEFAULT_GRACE_SECONDS = 30
"""Kubernetes' own, where a pod says nothing."""
_GRACE_FIELD = "terminationGracePeriodSeconds"


@dataclass(frozen=True)
class Runtime:
    """A runtime for torch, and of it what a launch needs."""

    name: str
    kind: str
    pod_spec: Mapping[str, Any]

    @property
    def termination_seconds(self) -> int:
        """How long its pods may take to end."""
        return int(self.pod_spec.get(_GRACE_FIELD) or _DEFAULT_GRACE_SECONDS)

    def grace(self, needed_seconds: float | None) -> int:
        """How long the workers may take to save.

        Args:
            needed_seconds: what the pods' termination grace has to be at least; None where no save was measured.

        Raises:
            UserError: when the runtime gives less than is needed.
        """
        if needed_seconds is not None and needed_seconds > self.termination_seconds:
            raise UserError(
                f"{self.kind} {self.name}: {_GRACE_FIELD} = {self.termination_seconds} is shorter than a save takes,"
                f" as was measured → {_GRACE_FIELD}: {ceil(needed_seconds)} or more"
            )
        return max(1, self.termination_seconds - GRACE_MARGIN_SECONDS)

    def resources(self, procs_per_node: int) -> Json | None:
        """The container's resources with a GPU for each process; None where they stay as they are.

        `resourcesPerNode` replaces all that the container has, so the runtime's other values are kept here.
        """
        given = next(one for one in self.pod_spec["containers"] if one["name"] == NODE).get("resources") or {}
        gpu = next((name for name in given.get("limits") or {} if is_gpu(name)), None)
        if gpu is None or str(given["limits"][gpu]) == str(procs_per_node):
            return None
        wanted: Json = deepcopy(dict(given))
        for kind in ("limits", "requests"):
            wanted[kind] = {**(wanted.get(kind) or {}), gpu: str(procs_per_node)}
        return wanted


def is_gpu(resource: str) -> bool:
    """Whether a resource's name is that of GPUs, or of slices of one."""
    return resource.endswith("/gpu") or resource.startswith("nvidia.com/mig-")


def find_runtime(cluster: Cluster, name: str) -> Runtime:
    """Look a runtime up: the namespace's own before the cluster's.

    Raises:
        UserError: when there is none, or it is not made for us: no job or container `node`.
        ApiError: when it cannot be read.
    """
    try:
        kind = cluster.runtime_kind(name)
    except MissingError as error:
        raise UserError(f"there is no ClusterTrainingRuntime {name} → {APPLY}") from error
    own = f"namespaces/{cluster.namespace}/trainingruntimes"
    found = cluster.get(f"{TRAINER}/{own if kind == 'TrainingRuntime' else 'clustertrainingruntimes'}/{name}")
    try:
        jobs = {one["name"]: one for one in found["spec"]["template"]["spec"]["replicatedJobs"]}
        pod_spec = jobs[NODE]["template"]["spec"]["template"]["spec"]
        next(one for one in pod_spec["containers"] if one["name"] == NODE)
    except (KeyError, StopIteration) as error:
        raise UserError(f"{kind} {name}: it has no replicatedJob and container `{NODE}` → {APPLY}") from error
    return Runtime(name, kind, pod_spec)
