"""What the pod of a step gets on a cluster: resources, time, retries, environment, identity, place.

Under kfp.local the Kubernetes part is ignored. KFP 2.17 has no setting for a read-only root file system, for pod
security beyond user and group, and one service account for all pods of a run; `/tmp` is a volume all the same, so
that a cluster whose own policy makes the root read-only can.
"""

from typing import Literal

from kfp import dsl, kubernetes

from ..components import access
from .placement import TRAIN_HOURS, Launcher, Placement

RETRIES = 2
MINUTES = 60
HOURS = 60 * MINUTES
Computing = Literal["canary", "train", "evaluate"]
_ON_GPUS, _ON_CPUS = ("4", "16Gi", "4Gi"), ("2", "4Gi", "1Gi")
"""CPUs, memory and the shared part of it (NCCL, data loaders) of a step that computes."""
_HOURS: dict[Computing, dict[Launcher, int]] = {
    "canary": {"local": 1, "trainjob": 6},
    "train": TRAIN_HOURS,
    "evaluate": {"local": 1, "trainjob": 1},
}
"""Timeouts of an attempt. A launching step waits in a queue too, before its TrainJob runs."""


def light(
    task: dsl.PipelineTask, placement: Placement, *, memory: str = "2Gi", seconds: int = 15 * MINUTES
) -> dsl.PipelineTask:
    """A step that neither computes nor waits for one: the environment of its kind, no cache, retries, a timeout."""
    kind = access.kind_of(task.name.replace("-", "_"))
    settings = {name: name for name in access.settings(kind)}
    kubernetes.use_config_map_as_env(task, access.CONFIG_MAP, settings, optional=True)
    _secret(task, access.s3_secret(kind), access.S3_KEYS)
    if access.ACCESS[kind].mlflow:
        _secret(task, access.MLFLOW_SECRET, access.MLFLOW_KEYS)
    return _pod(task, placement, kind, memory=memory, seconds=seconds)


def heavy(task: dsl.PipelineTask, step: Computing, placement: Placement) -> dsl.PipelineTask:
    """A step that computes in its own pod, or that watches the TrainJob which does; a retry of either goes on."""
    launches = step != "evaluate"
    hours = _HOURS[step][placement.launcher]
    if step == "train" and placement.train_hours is not None:
        hours = placement.train_hours
    if launches:
        task.set_env_variable(access.LAUNCHER_VARIABLE, placement.launcher)
    if launches and placement.launcher == "trainjob":
        return knowing_its_pod(light(task, placement, seconds=hours * HOURS))
    cpu, memory, shared = _ON_GPUS if placement.gpus else _ON_CPUS
    light(task, placement, memory=memory, seconds=hours * HOURS)
    task.set_cpu_request(cpu).set_cpu_limit(cpu)
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=shared)  # noqa: S108 - a volume
    gpus = placement.gpus if launches else min(placement.gpus, 1)
    if gpus:
        task.set_accelerator_type(placement.gpu_type).set_accelerator_limit(gpus)
    for key, value in placement.node_selector:
        kubernetes.add_node_selector(task, key, value)
    for taint in placement.tolerations:
        operator = "Exists" if taint.value is None else "Equal"
        kubernetes.add_toleration(task, key=taint.key, operator=operator, value=taint.value, effect=taint.effect)
    return task


def ending(task: dsl.PipelineTask, placement: Placement) -> dsl.PipelineTask:
    """A red end: without retries, which would only repeat it, and without credentials, which it has no use for."""
    return _pod(task, placement, None, retries=0)


def knowing_its_pod(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step that finds its own pod, whose namespace, image and owner a TrainJob gets."""
    kubernetes.use_field_path_as_env(task, access.POD_VARIABLE, "metadata.name")
    kubernetes.use_field_path_as_env(task, access.NAMESPACE_VARIABLE, "metadata.namespace")
    return task


def _secret(task: dsl.PipelineTask, name: str, keys: tuple[str, ...]) -> None:
    kubernetes.use_secret_as_env(task, name, {key: key for key in keys}, optional=True)


def _pod(
    task: dsl.PipelineTask,
    placement: Placement,
    kind: access.Kind | None,
    *,
    memory: str = "2Gi",
    seconds: int = 15 * MINUTES,
    retries: int = RETRIES,
) -> dsl.PipelineTask:
    task.set_cpu_request("1").set_cpu_limit("1").set_memory_request(memory).set_memory_limit(memory)
    task.set_caching_options(enable_caching=False)
    # Argo counts the maximum from the start of the first attempt: it has to hold all of them.
    most = f"{(retries + 1) * (seconds + 5 * MINUTES)}s"
    task.set_retry(num_retries=retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration=most)
    kubernetes.set_timeout(task, seconds=seconds)
    kubernetes.set_security_context(task, run_as_user=access.USER, run_as_group=access.USER, run_as_non_root=True)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.empty_dir_mount(task, "tmp", "/tmp")  # noqa: S108 - a volume of the pod's own
    for key, value in {**access.pod_labels(kind), **dict(placement.labels)}.items():
        kubernetes.add_pod_label(task, key, value)
    if placement.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(placement.image_pull_secrets))
    return task
