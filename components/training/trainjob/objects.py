"""What is sent to the cluster: one TrainJob, and the ConfigMap with the config that it mounts."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ...access import (
    CONFIG_FOLDER,
    CONFIG_KEY,
    DIGEST_CHARACTERS,
    QUEUE_VARIABLE,
    RUNTIME,
    RUNTIME_VARIABLE,
    config_map_name,
)
from ..job import Job, Phase, jobs_to_argument
from .api import Json

NODE = "node"
"""The replicated job of the runtime, and its container: Trainer's names for what trains."""
ENTRYPOINT = ("convergate.components.process_one", "convergate.components.training.node")
MANAGER = "convergate.io/launcher"
"""Who owns our patch of the runtime; the webhook wants a domain and a name, and each once in a TrainJob."""
DIGEST_ANNOTATION = "convergate.io/launch-digest"
RUN_LABEL, PHASE_LABEL, CONFIG_LABEL = "convergate.io/run-id", "convergate.io/phase", "convergate.io/config-sha256"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
NAME_CHARACTERS = 45
"""Of a TrainJob's name: pods and Services add theirs, and all of it is a label of at most 63."""
_LABEL_CHARACTERS = 63


def sha256(text: str) -> str:
    """The digest of a config's bytes, which each pod compares."""
    return hashlib.sha256(text.encode()).hexdigest()


def trainjob_name(run_id: str, phase: Phase) -> str:
    """The name of a run's TrainJob: the same at each retry, a DNS label, at most `NAME_CHARACTERS` long."""
    ending = f"-{phase}-{sha256(f'{run_id}/{phase}')[:8]}"
    words = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    start = words if words[:1].isalpha() else f"run-{words}"
    return start[: NAME_CHARACTERS - len(ending)].rstrip("-") + ending


def label_value(text: str) -> str:
    """The nearest label value: 63 letters, digits, `-`, `_` and `.` at most, at both ends a letter or digit."""
    return re.sub(r"^[^a-zA-Z0-9]+|[^a-zA-Z0-9]+$", "", re.sub(r"[^a-zA-Z0-9._-]", "-", text)[:_LABEL_CHARACTERS])


def runtime_name() -> str:
    """The ClusterTrainingRuntime, or TrainingRuntime, that is asked for."""
    return os.environ.get(RUNTIME_VARIABLE) or RUNTIME


def config_map(config_text: str) -> Json:
    """The immutable ConfigMap with the config's text, byte for byte. It outlives the run, as others may share it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_map_name(sha256(config_text)),
            "labels": {"app.kubernetes.io/name": "convergate", CONFIG_LABEL: sha256(config_text)[:DIGEST_CHARACTERS]},
        },
        "immutable": True,
        "data": {CONFIG_KEY: config_text},
    }


def node_arguments(
    jobs: list[Job],
    config_digest: str,
    *,
    run_id: str,
    nodes: int,
    procs_per_node: int,
    max_restarts: int,
    grace_seconds: int,
) -> list[str]:
    """The arguments of each pod's entrypoint; rendezvous and rank come from what Trainer's torch plugin injects."""
    return [
        *(
            "--config",
            f"{CONFIG_FOLDER}/{CONFIG_KEY}",
            "--config-digest",
            config_digest,
            "--jobs",
            jobs_to_argument(jobs),
        ),
        *("--nodes", str(nodes), "--procs-per-node", str(procs_per_node), "--max-restarts", str(max_restarts)),
        *("--grace", str(grace_seconds), "--run-id", run_id),
    ]


def trainjob(
    name: str,
    *,
    runtime: str,
    runtime_kind: str,
    image: str,
    arguments: list[str],
    config_digest: str,
    nodes: int,
    procs_per_node: int,
    resources: Mapping[str, Any] | None,
    deadline_seconds: int,
    labels: Mapping[str, str],
    owner: Mapping[str, str] | None,
) -> Json:
    """The TrainJob, made of the CRD's own models, so that it has no field that they don't know.

    It is posted by us, and not by the SDK's `train()`: that sets no ownerReferences, and one that is patched in
    afterwards is missing when the launcher is killed in between, which leaves an orphan on its GPUs.

    Args:
        name: of `trainjob_name`.
        runtime: the runtime's name.
        runtime_kind: `ClusterTrainingRuntime` or `TrainingRuntime`.
        image: of the worker pods.
        arguments: of `node_arguments`.
        config_digest: SHA-256 of the config's text; its ConfigMap is mounted.
        nodes: pods.
        procs_per_node: processes in each.
        resources: replaces those of the runtime's container as a whole; None leaves them.
        deadline_seconds: how long it may be active.
        labels: of the TrainJob and its pods.
        owner: the ownerReference: with the owner, Kubernetes deletes the TrainJob.
    """
    from kubeflow_trainer_api import models

    trainer: Json = {
        "image": image,
        "command": ["python", "-m", *ENTRYPOINT],
        "args": arguments,
        "numNodes": nodes,
        "numProcPerNode": procs_per_node,
        "resourcesPerNode": resources,
    }
    spec: Json = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": runtime_kind, "name": runtime},
        "trainer": {key: value for key, value in trainer.items() if value is not None},
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _mounting(config_digest, labels)}],
        "activeDeadlineSeconds": deadline_seconds,
    }
    metadata: Json = {"name": name, "labels": _queued(labels), "annotations": {DIGEST_ANNOTATION: launch_digest(spec)}}
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    built = models.TrainerV1alpha1TrainJob.from_dict(
        {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata, "spec": spec}
    )
    assert built is not None
    sent: Json = built.to_dict()
    return sent


def launch_digest(spec: Mapping[str, Any]) -> str:
    """What tells one launch from another: all that is asked for, but the deadline, which changes no result."""
    asked = {key: value for key, value in spec.items() if key != "activeDeadlineSeconds"}
    return sha256(json.dumps(asked, sort_keys=True))


def _mounting(config_digest: str, labels: Mapping[str, str]) -> Json:
    """The patch of the runtime's pods: the config's volume and its mount, and the labels."""
    volume = {"name": "convergate-config", "configMap": {"name": config_map_name(config_digest)}}
    mount = {"name": "convergate-config", "mountPath": CONFIG_FOLDER, "readOnly": True}
    pod = {
        "metadata": {"labels": dict(labels)},
        "spec": {"volumes": [volume], "containers": [{"name": NODE, "volumeMounts": [mount]}]},
    }
    return {"template": {"spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": pod}}}]}}}


def _queued(labels: Mapping[str, str]) -> dict[str, str]:
    queue = os.environ.get(QUEUE_VARIABLE)
    return {**labels, QUEUE_LABEL: queue} if queue else dict(labels)


def run_labels(run_id: str, phase: Phase, config_digest: str, labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of a run's TrainJob and pods; the caller's are made to fit, and ours win."""
    ours = {
        "app.kubernetes.io/name": "convergate",
        RUN_LABEL: run_id,
        PHASE_LABEL: phase,
        CONFIG_LABEL: config_digest[:DIGEST_CHARACTERS],
    }
    return {key: label_value(value) for key, value in {**labels, **ours}.items()}
