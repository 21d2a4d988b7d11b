"""What is installed in a cluster, and whether its version and settings fit what we ask of it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...components.access import NAMESPACE
from ...components.training.trainjob.answers import NEW_FIELDS, OLD_TRAINER, ApiError, MissingError
from ...components.training.trainjob.api import TRAINER, Cluster, Json
from .row import Row

TRAINER_GROUP, ARGO_GROUP, KUEUE_GROUP = "trainer.kubeflow.org", "argoproj.io", "kueue.x-k8s.io"
KUEUE_INSTALL = "https://kueue.sigs.k8s.io/docs/installation/"
_PARTS = {
    TRAINER_GROUP: ("Kubeflow Trainer", "https://www.kubeflow.org/docs/components/trainer/", True),
    "jobset.x-k8s.io": ("JobSet", "it comes with Kubeflow Trainer's manifests", True),
    ARGO_GROUP: ("Argo Workflows", "it comes with Kubeflow Pipelines: https://www.kubeflow.org/docs/components/", True),
    KUEUE_GROUP: ("Kueue", f"{KUEUE_INSTALL}, where jobs have to queue", False),
}
"""API groups that have to be served, how to install them, and whether it goes without."""
_KUEUE_NEEDED = (0, 17)
"""The first Kueue that knows what came with Trainer 2.2; an older one writes each TrainJob back without it."""
_KUEUE_DEPLOYMENT = "/apis/apps/v1/namespaces/kueue-system/deployments/kueue-controller-manager"
_TAG = re.compile(r":v?(\d+)\.(\d+)[^/:@]*(?:@.*)?$")
_CONTROLLER = "workflow-controller-configmap"


def examine_installed(cluster: Cluster, served: Mapping[str, Sequence[str]], *, trainjobs: bool) -> list[Row]:
    """A row for each part that has to be there, and for what Argo's controller does to every run.

    Args:
        cluster: the cluster, and the namespace of the runs.
        served: its API groups, each with its versions, as `group/version`.
        trainjobs: whether training is to run as TrainJobs; without, Trainer and JobSet may be missing.
    """
    rows = [_part(group, served, trainjobs=trainjobs) for group in _PARTS]
    if TRAINER_GROUP in served:
        rows[0] = _trainer(cluster, trainjobs=trainjobs)
    return rows + (_runs(cluster) if ARGO_GROUP in served else [])


def examine_kueue(cluster: Cluster, served: Mapping[str, Sequence[str]]) -> Row:
    """Whether Kueue, where TrainJobs queue, is new enough to leave them as they are."""
    name = "Kueue's version"
    needed = "0.17 or newer is needed: an older one drops runtimePatches and the deadline of a TrainJob"
    if f"{KUEUE_GROUP}/v1beta2" not in served.get(KUEUE_GROUP, ()):
        return Row.failed(name, f"serves no {KUEUE_GROUP}/v1beta2; {needed}", f"update it: {KUEUE_INSTALL}")
    ask = "kubectl -n kueue-system get deployment kueue-controller-manager -o jsonpath={..image}"
    try:
        found = cluster.get(_KUEUE_DEPLOYMENT)
    except ApiError:
        return Row.unknown(name, f"cannot be told from here; {needed}", f"an administrator: {ask}")
    images = [str(one["image"]) for one in found["spec"]["template"]["spec"]["containers"]]
    version = next((match for match in map(_TAG.search, images) if match), None)
    if version is None:
        return Row.unknown(name, f"{', '.join(images)} does not tell it; {needed}", ask)
    number = f"{version[1]}.{version[2]}"
    if (int(version[1]), int(version[2])) < _KUEUE_NEEDED:
        return Row.failed(name, f"{number}; {needed}", f"update it: {KUEUE_INSTALL}")
    return Row.ok(name, number)


def _part(group: str, served: Mapping[str, Sequence[str]], *, trainjobs: bool) -> Row:
    name, install, needed = _PARTS[group]
    needed = needed and (trainjobs or group not in (TRAINER_GROUP, "jobset.x-k8s.io"))
    if group in served:
        return Row.ok(name, group)
    return (Row.failed if needed else Row.unknown)(name, f"{group} is not served", install)


def _trainer(cluster: Cluster, *, trainjobs: bool) -> Row:
    """Whether its TrainJob has the fields that ours uses, asked of the schema that the API server publishes."""
    name = _PARTS[TRAINER_GROUP][0]
    try:
        schemas = cluster.get(f"/openapi/v3{TRAINER}")["components"]["schemas"]
        spec = next(body for key, body in schemas.items() if key.endswith(".TrainJob"))["properties"]["spec"]
        known = spec["properties"].keys()
    except (ApiError, KeyError, StopIteration):
        ask = "kubectl explain trainjob.spec.runtimePatches"
        return Row.unknown(name, f"{TRAINER_GROUP}; whether it is 2.2 or newer cannot be told from here", ask)
    if missing := [field for field in NEW_FIELDS if field not in known]:
        figure = f"{TRAINER_GROUP} is older than 2.2: a TrainJob has no spec.{', spec.'.join(missing)}"
        return (Row.failed if trainjobs else Row.unknown)(name, figure, OLD_TRAINER.partition(" → ")[2])
    return Row.ok(name, f"{TRAINER_GROUP}, 2.2 or newer: it knows spec.runtimePatches")


def _runs(cluster: Cluster) -> list[Row]:
    """What Argo's controller puts into every run: whether failed steps are tried again, and how long a run is kept."""
    retries, kept = "retries", "runs are kept"
    try:
        where, spec = _workflow_defaults(cluster)
    except ApiError as error:
        ask = f"an administrator: kubectl get configmap -A --field-selector metadata.name={_CONTROLLER} -o yaml"
        figure = f"not known: {str(error).partition(' → ')[0]}"
        return [Row.unknown(retries, figure, ask), Row.unknown(kept, figure)]
    row = Row.ok(retries, "a step that fails is tried again")
    if again := (spec.get("templateDefaults") or {}).get("retryStrategy"):
        what = "a failed DAG is tried again as a whole"
        if again.get("retryPolicy") == "OnError":
            what = "a step that fails is not tried again, only one whose pod was lost"
        figure = f"under Kubeflow Pipelines {what}: templateDefaults have a retryStrategy"
        fix = f"take templateDefaults out of workflowDefaults: kubectl edit configmap {_CONTROLLER} -n {where}"
        row = Row.unknown(retries, figure, fix)
    seconds = {value for value in (spec.get("ttlStrategy") or {}).values() if isinstance(value, int)}
    if not seconds:
        return [row, Row.ok(kept, "until somebody deletes them, or as long as --keep-days says")]
    figure = f"{' to '.join(map(str, sorted(seconds)))} s after their end, with pods, logs and TrainJobs"
    return [row, Row.ok(kept, f"{figure}; --keep-days says more")]


def _workflow_defaults(cluster: Cluster) -> tuple[str, Json]:
    """The namespace of Argo's controller, and the spec that it merges into each Workflow."""
    import yaml

    places = dict.fromkeys((cluster.namespace, NAMESPACE))
    for namespace in places:
        try:
            found = cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/{_CONTROLLER}")
        except MissingError:
            continue
        text = (found.get("data") or {}).get("workflowDefaults") or ""
        try:
            parsed: Any = yaml.safe_load(text) or {}
            return namespace, dict(parsed.get("spec") or {})
        except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
            raise ApiError(
                f"workflowDefaults of ConfigMap {_CONTROLLER} in {namespace} is not YAML of a Workflow"
            ) from error
    raise MissingError(f"there is no ConfigMap {_CONTROLLER} in {' nor in '.join(places)}")
