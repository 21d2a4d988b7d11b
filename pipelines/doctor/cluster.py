"""A cluster: what `installed` says of it, the runtime, the accounts, settings and Secrets, the nodes."""

from itertools import chain

from ...components.access import (
    ACCESS,
    CONFIG_MAP,
    MLFLOW_KEYS,
    MLFLOW_SECRET,
    PIPELINE,
    QUEUE_VARIABLE,
    RUNTIME_VARIABLE,
    S3_KEYS,
    WORKER,
    Kind,
    s3_secret,
    service_account,
    settings,
)
from ...components.errors import ConvergateError
from ...components.images import LIGHT_IMAGE
from ...components.training.trainjob.answers import APPLY, ApiError, DeniedError, MissingError
from ...components.training.trainjob.api import Cluster, Json
from ...components.training.trainjob.objects import NODE, runtime_name
from ...components.training.trainjob.pace import Pace
from ...components.training.trainjob.runtime import Runtime, find_runtime, is_gpu
from .installed import KUEUE_GROUP, KUEUE_INSTALL, TRAINER_GROUP, examine_installed, examine_kueue
from .rights import examine_policy, examine_rights
from .row import Row, examined
from .services import examine_services, without_user

PACE = Pace(outage=3.0)
"""A person waits for the answer."""


def examine_cluster(namespace: str, checkpoints: str, *, trainjobs: bool = True) -> list[Row]:
    """Every check of a cluster.

    Args:
        namespace: where the runs' pods are.
        checkpoints: `checkpoint.uri` of the config, where S3 is probed.
        trainjobs: whether training is to run as TrainJobs; without, Trainer may be missing.

    Raises:
        OutsideError: when there is no cluster, or it cannot be reached.
    """
    cluster = Cluster(namespace, PACE, lambda _line: None)
    version = cluster.get("/version")["gitVersion"]
    groups = cluster.get("/apis")["groups"]
    served = {str(one["name"]): [str(each["groupVersion"]) for each in one["versions"]] for one in groups}
    rows = [Row.ok("API server", f"{version} at {cluster.host}, namespace {namespace}")]
    rows += examine_installed(cluster, served, trainjobs=trainjobs)
    known, row = _settings(cluster)
    given = known or {}
    runtime: Runtime | None = None
    wanted = given.get(RUNTIME_VARIABLE) or runtime_name()
    if TRAINER_GROUP in served:
        runtime, found = _runtime(cluster, wanted)
        rows.append(found)
    of_the_cluster = None if runtime is not None and runtime.kind == "TrainingRuntime" else wanted
    rows.append(examined("accounts", lambda: _accounts(cluster)))
    rows += examine_rights(cluster, of_the_cluster, trainjobs=trainjobs)
    if trainjobs and runtime is not None:
        rows.append(examined("admission policy", lambda: examine_policy(cluster, runtime.kind, runtime.name)))
    rows.append(row)
    if given.get(QUEUE_VARIABLE):
        rows.append(examined("queue", lambda: _queue(cluster, given[QUEUE_VARIABLE], served.get(KUEUE_GROUP))))
        if KUEUE_GROUP in served:
            rows.append(examine_kueue(cluster, served))
    own_s3 = given.get("AWS_ENDPOINT_URL")
    rows += [_secret(cluster, s3_secret(kind), S3_KEYS, *_without_keys(kind, own_s3)) for kind in ACCESS]
    rows.append(_secret(cluster, MLFLOW_SECRET, MLFLOW_KEYS, "right for an MLflow without credentials", False))
    rows += examine_services(known, checkpoints, namespace, _image(runtime))
    rows.append(examined("nodes", lambda: _nodes(cluster, runtime)))
    rows.append(examined("network policies", lambda: _network(cluster)))
    return rows


def _runtime(cluster: Cluster, name: str) -> tuple[Runtime | None, Row]:
    try:
        runtime = find_runtime(cluster, name)
    except DeniedError as error:
        return None, Row.hidden("runtime", error, f"kubectl get clustertrainingruntime {name}")
    except ConvergateError as error:
        return None, Row.of("runtime", error)
    gpus = [f"{amount} × {resource}" for resource, amount in _limits(runtime).items() if is_gpu(resource)]
    figure = f"{runtime.kind} {runtime.name}: {', '.join(gpus) or 'no GPU'}, {runtime.termination_seconds} s to save"
    return runtime, Row.ok("runtime", figure)


def _limits(runtime: Runtime) -> Json:
    found = next(one for one in runtime.pod_spec["containers"] if one["name"] == NODE)
    limits: Json = (found.get("resources") or {}).get("limits") or {}
    return limits


def _queue(cluster: Cluster, name: str, versions: list[str] | None) -> Row:
    if not versions:
        return Row.failed("queue", f"{name}: Kueue is not installed, and {QUEUE_VARIABLE} names it", KUEUE_INSTALL)
    try:
        found = cluster.get(f"/apis/{versions[0]}/namespaces/{cluster.namespace}/localqueues/{name}")
    except DeniedError as error:
        return Row.hidden("queue", error, f"kubectl get localqueue {name} -n {cluster.namespace}")
    except MissingError:
        return Row.failed(
            "queue", f"there is no LocalQueue {name} in {cluster.namespace}", "kubectl get localqueues -A"
        )
    for one in (found.get("status") or {}).get("conditions") or ():
        if one["type"] == "Active" and one["status"] == "False":
            figure = f"LocalQueue {name} takes no jobs: {one['reason']}: {one['message']}"
            return Row.failed("queue", figure, f"kubectl describe localqueue {name} -n {cluster.namespace}")
    return Row.ok("queue", f"LocalQueue {name}")


def _accounts(cluster: Cluster) -> Row:
    wanted = [*map(service_account, ACCESS), WORKER, PIPELINE]
    try:
        missing = [name for name in wanted if not _there(cluster, "serviceaccounts", name)]
    except DeniedError as error:
        return Row.hidden("accounts", error, f"kubectl get serviceaccounts -n {cluster.namespace}")
    if missing:
        return Row.failed("accounts", f"not there: {', '.join(missing)}", APPLY)
    return Row.ok("accounts", f"all {len(wanted)} of convergate")


def _there(cluster: Cluster, plural: str, name: str) -> Json | None:
    try:
        return cluster.get(cluster.core(plural, name))
    except MissingError:
        return None


def _settings(cluster: Cluster) -> tuple[dict[str, str] | None, Row]:
    """What the steps get as variables, None where it can't be read; and the row of it."""
    name = f"ConfigMap {CONFIG_MAP}"
    try:
        found = _there(cluster, "configmaps", CONFIG_MAP)
    except DeniedError as error:
        return None, Row.hidden(name, error, f"kubectl get configmap {CONFIG_MAP} -n {cluster.namespace} -o yaml")
    except ApiError as error:
        return None, Row.of(name, error)
    if found is None:
        fix = f"kubectl create configmap {CONFIG_MAP} -n {cluster.namespace} --from-literal=AWS_ENDPOINT_URL=https://…"
        return {}, Row.unknown(name, "not there: S3 is AWS, and there is no MLflow", fix)
    data: dict[str, str] = found.get("data") or {}
    strange = sorted(data.keys() - set(chain.from_iterable(map(settings, ACCESS))))
    if strange:
        fix = f"kubectl edit configmap {CONFIG_MAP} -n {cluster.namespace}"
        # They may be meant for training's libraries (NCCL_DEBUG), or be misspelt.
        figure = f"no step reads {', '.join(strange)}; the pods of TrainJobs get all of it"
        return data, Row.unknown(name, figure, f"{fix}, where one is misspelt")
    return data, Row.ok(name, ", ".join(sorted(data)) or "empty: S3 is AWS, and there is no MLflow")


def _without_keys(kind: Kind, own_s3: str | None) -> tuple[str, bool]:
    """What it means that a kind has no keys, and whether it needs them."""
    if own_s3:
        return f"{without_user(own_s3)} knows no cloud role", True
    role = f"right under Argo, with a cloud role of {service_account(kind)}"
    if kind == "train":
        role += f" and of {WORKER}"
    return f"{role}; Kubeflow Pipelines has one account for all kinds, so that a role cannot tell them apart", False


def _image(runtime: Runtime | None) -> str:
    """An image of ours that the cluster can pull."""
    if runtime is None:
        return LIGHT_IMAGE
    return str(next(one for one in runtime.pod_spec["containers"] if one["name"] == NODE)["image"])


def _secret(cluster: Cluster, name: str, wanted: tuple[str, ...], absent: str, needed: bool) -> Row:
    """Whether a Secret has the right keys; their values are neither shown nor kept."""
    title = f"Secret {name}"
    try:
        found = _there(cluster, "secrets", name)
    except DeniedError:
        fix = f"an administrator: kubectl describe secret {name} -n {cluster.namespace}"
        return Row.unknown(title, f"you may not read Secrets; its keys should be {', '.join(wanted)}", fix)
    except ApiError as error:
        return Row.of(title, error)
    if found is None:
        fix = f"kubectl create secret generic {name} -n {cluster.namespace} --from-env-file=FILE"
        return (Row.failed if needed else Row.unknown)(title, f"not there: {absent}", fix)
    keys = set(found.get("data") or {})
    missing = [key for key in wanted if key not in keys] if wanted == S3_KEYS else [] if keys & set(wanted) else wanted
    if missing:
        fix = f"kubectl edit secret {name} -n {cluster.namespace}"
        return Row.failed(title, f"has {', '.join(sorted(keys)) or 'no keys'} and not {', '.join(missing)}", fix)
    return Row.ok(title, ", ".join(sorted(keys & set(wanted))))


def _nodes(cluster: Cluster, runtime: Runtime | None) -> Row:
    try:
        nodes = cluster.get("/api/v1/nodes", limit=1000)["items"]
    except DeniedError:
        fix = "an administrator: kubectl get nodes -o custom-columns=N:.metadata.name,G:.status.allocatable"
        return Row.unknown("nodes", "you may not list nodes", fix)
    gpus: dict[str, int] = {}
    for node in nodes:
        for resource, amount in (node["status"].get("allocatable") or {}).items():
            if is_gpu(resource) and int(amount):
                gpus[resource] = gpus.get(resource, 0) + int(amount)
    figure = f"{len(nodes)}, allocatable: {', '.join(f'{n} × {name}' for name, n in gpus.items()) or 'no GPU'}"
    missing = [name for name in (_limits(runtime) if runtime else ()) if is_gpu(name) and name not in gpus]
    if missing:
        fix = "install the device plugin (for NVIDIA the GPU Operator), or overlay local without GPUs"
        return Row.failed("nodes", f"{figure}; the runtime asks for {', '.join(missing)}", fix)
    return Row.ok("nodes", figure)


def _network(cluster: Cluster) -> Row:
    path = f"/apis/networking.k8s.io/v1/namespaces/{cluster.namespace}/networkpolicies"
    fix = "see your network plugin: Calico and Cilium enforce them, Flannel does not"
    try:
        number = len(cluster.get(path, limit=1000)["items"])
    except ApiError:
        return Row.unknown("network policies", "not known; nor whether the network enforces them", fix)
    return Row.unknown("network policies", f"{number} here; whether the network enforces them cannot be asked", fix)
