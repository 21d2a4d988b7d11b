"""What the pod of this step says of itself: the image that the workers run too, and who owns what it starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...access import NAMESPACE_VARIABLE, POD_VARIABLE
from ...errors import UserError
from .answers import MissingError
from .api import Cluster, Json

IMAGE_VARIABLE = "CONVERGATE_IMAGE"
_STEP_CONTAINER = "main"
"""Argo's name for the container of the step; beside it run its own."""


@dataclass(frozen=True)
class Origin:
    """Where a TrainJob comes from."""

    image: str
    owner: dict[str, str] | None
    """The ownerReference: the Workflow, or what else owns this pod; None outside a cluster."""


def find_origin(cluster: Cluster) -> Origin:
    """Ask the cluster about this pod, which `POD_NAME` names; outside a pod the environment has to name the image.

    Raises:
        UserError: when nothing names the image.
        ApiError: when the pod cannot be read.
    """
    name = os.environ.get(POD_VARIABLE)
    if not name:
        return Origin(_image(None), None)
    try:
        pod = cluster.get(cluster.core("pods", name))
    except MissingError as error:
        raise UserError(
            f"{POD_VARIABLE}={name}: no such pod in namespace {cluster.namespace}"
            f" → set {POD_VARIABLE} and {NAMESPACE_VARIABLE} by the downward API"
        ) from error
    return Origin(_image(pod), _owner(pod))


def _image(pod: Json | None) -> str:
    containers = pod["spec"]["containers"] if pod else []
    mine = [one for one in containers if one["name"] == _STEP_CONTAINER] or containers[:1]
    image = str(mine[0]["image"]) if mine else os.environ.get(IMAGE_VARIABLE)
    if not image:
        raise UserError(
            f"the image of the workers is not known → set {IMAGE_VARIABLE}, or run in a pod with {POD_VARIABLE}"
        )
    return image


def _owner(pod: Mapping[str, Any]) -> dict[str, str]:
    """The pod's own owner, a Workflow before others; where it has none, the pod.

    Neither `controller` nor `blockOwnerDeletion` is set: the first is not true, and the second takes a right on the
    owner's finalizers.
    """
    owners = pod["metadata"].get("ownerReferences") or []
    chosen = next((one for one in owners if one["kind"] == "Workflow"), owners[0] if owners else None)
    if chosen is None:
        chosen = {"apiVersion": "v1", "kind": "Pod"} | {key: pod["metadata"][key] for key in ("name", "uid")}
    return {key: chosen[key] for key in ("apiVersion", "kind", "name", "uid")}
