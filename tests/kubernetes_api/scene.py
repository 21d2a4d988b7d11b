"""A cluster that has our manifests applied, with a step's pod in it that may launch a TrainJob."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from .play import Play, Scene
from .server import ApiServer
from .store import Json, Key

OVERLAYS = Path(__file__).parents[2] / "manifests" / "overlays"
NAMESPACE = "kubeflow"
"""Of overlay `local`."""
POD = "retrain-train-1"
IMAGE = "registry.test/convergate/train-python:7"
RUNTIME = Key("clustertrainingruntimes.trainer.kubeflow.org", "", "convergate-torch")
OF_THE_CLUSTER = {
    "ClusterTrainingRuntime": RUNTIME.resource,
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies.admissionregistration.k8s.io",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings.admissionregistration.k8s.io",
}
"""What is put into the cluster and not into the namespace."""
WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "retrain-1", "uid": "0f-w"}


@cache
def rendered(overlay: str) -> list[Json]:
    """What `kubectl apply -k` would send."""
    answer = subprocess.run(["kubectl", "kustomize", OVERLAYS / overlay], capture_output=True, check=True, text=True)
    return list(yaml.safe_load_all(answer.stdout))


class Cluster:
    """A running stand-in."""

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self.api, self._folder = api, folder

    def play(self, *scenes: Scene) -> Play:
        return Play(self.api, NAMESPACE, *scenes)

    def environment(self, account: str = "convergate-train") -> dict[str, str]:
        """What the pod of the launching step sees."""
        return {
            "KUBECONFIG": str(self.api.kubeconfig(self._folder, f"{NAMESPACE}/{account}", NAMESPACE)),
            "POD_NAME": POD,
            "POD_NAMESPACE": NAMESPACE,
        }

    def objects(self, resource: str) -> list[Json]:
        return self.api.store.list(resource, NAMESPACE)

    @property
    def jobs(self) -> list[Json]:
        return self.objects("trainjobs.trainer.kubeflow.org")

    def delete_pod(self, pod: Json) -> None:
        """As the eviction API, or the taint manager."""
        self.api.store.delete(Key("pods", NAMESPACE, pod["metadata"]["name"]))

    def change_runtime(self, change: Any) -> None:
        """Let the administrator change the runtime; `change` gets its node's pod spec."""
        runtime = self.api.store.get(RUNTIME)
        assert runtime is not None
        change(runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"])
        self.api.store.update(RUNTIME, runtime)

    def requests(self, account: str = "convergate-train") -> set[tuple[str, str, str]]:
        """What an account asked for: verb, group and resource."""
        user = f"system:serviceaccount:{NAMESPACE}:{account}"
        return {(one.verb, one.group, one.resource) for by, one in self.api.asked if by == user}


@contextmanager
def cluster(folder: Path, without: tuple[str, ...] = (), overlay: str = "local") -> Iterator[Cluster]:
    """A cluster with an overlay applied and a step's pod, owned by its Workflow."""
    objects = rendered(overlay)
    with ApiServer(objects, without) as api:
        for one in objects:
            if one["kind"] in OF_THE_CLUSTER:
                api.put(OF_THE_CLUSTER[one["kind"]], one)
            if one["kind"] in ("ConfigMap", "ServiceAccount"):
                api.put(f"{one['kind'].lower()}s", one, one["metadata"]["namespace"])
        containers = [{"name": "wait", "image": "argoexec"}, {"name": "main", "image": IMAGE}]
        metadata = {"name": POD, "ownerReferences": [{**WORKFLOW, "controller": True, "blockOwnerDeletion": True}]}
        api.put(
            "pods",
            {"metadata": metadata, "spec": {"containers": containers}, "status": {"phase": "Running"}},
            NAMESPACE,
        )
        yield Cluster(api, folder)
        assert api.store.started_anew == []


def enter(running: Cluster, monkeypatch: pytest.MonkeyPatch, account: str = "convergate-train") -> None:
    """Let this process be the step's pod."""
    for name, value in running.environment(account).items():
        monkeypatch.setenv(name, value)
