"""Every overlay builds, and a cluster would accept every object of it."""

import os
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from convergate.components.access import RUNTIME
from convergate.components.images import TORCH_IMAGE
from kubeflow_trainer_api.models import TrainerV1alpha1ClusterTrainingRuntime

from .conftest import MANIFESTS, Build, of_kind

CUSTOM = ("ClusterTrainingRuntime", "LocalQueue", "WorkflowTemplate", "CronWorkflow")
VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35")
LOCAL_QUEUE = {
    "type": "object",
    "required": ["clusterQueue"],
    "additionalProperties": False,
    "properties": {
        "clusterQueue": {"type": "string", "maxLength": 253, "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "stopPolicy": {"enum": ["None", "Hold", "HoldAndDrain"]},
        "fairSharing": {"type": "object"},
    },
}
"""The spec of kueue.x-k8s.io/v1beta2, as Kueue 0.19's CRD has it; there is no Python package with its models."""


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_object(objects: list[dict[str, Any]], version: str) -> None:
    native = [one for one in objects if one["kind"] not in CUSTOM]
    assert len(native) > 20
    for one in native:
        kubernetes_validate.validate(one, version, strict=True)


def test_no_two_objects_are_the_same_one(objects: list[dict[str, Any]]) -> None:
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("version", VERSIONS)
def test_trainer_jobset_and_kubernetes_know_every_field_of_the_runtime(
    with_trainer: list[dict[str, Any]], version: str
) -> None:
    (runtime,) = of_kind(with_trainer, "ClusterTrainingRuntime")
    assert runtime["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    # What the models do not know is not in what they give back.
    model = TrainerV1alpha1ClusterTrainingRuntime.from_dict(runtime)
    assert model is not None
    assert model.to_dict() == runtime
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    as_the_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one"}, "spec": job["template"]["spec"]}
    kubernetes_validate.validate(as_the_job, version, strict=True)


def test_trainer_takes_the_runtime_as_its_webhooks_and_the_launcher_want_it(with_trainer: list[dict[str, Any]]) -> None:
    (runtime,) = of_kind(with_trainer, "ClusterTrainingRuntime")
    assert runtime["metadata"]["name"] == RUNTIME
    assert runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch"
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == "node"
    assert job["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "node"
    assert container["image"] == TORCH_IMAGE
    assert not [one for one in container.get("env", []) if one["name"].startswith("PET_")]
    # A pod failure policy goes with no other restart policy.
    assert pod["restartPolicy"] == "Never"
    shm = next(one for one in pod["volumes"] if one["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]  # noqa: S108


def test_an_overlay_in_another_namespace_leaves_this_one_s_binding(with_trainer: list[dict[str, Any]]) -> None:
    (binding,) = of_kind(with_trainer, "ClusterRoleBinding")
    (namespace,) = {subject["namespace"] for subject in binding["subjects"]}
    assert binding["metadata"]["name"] == f"convergate-runtime:{namespace}"


def test_what_teams_share_is_the_same_in_each_overlay_of_theirs(build: Build) -> None:
    shared = ("ClusterRole", "ClusterTrainingRuntime", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    of_one, of_another = (of_kind(build(f"overlays/{overlay}"), *shared) for overlay in ("gpu", "multi-tenant"))
    for one in (*of_one, *of_another):
        one["metadata"].pop("namespace", None)  # of no object of the cluster: kubectl clears it
    assert of_one == of_another


def test_a_second_apply_finds_nothing_to_change(objects: list[dict[str, Any]]) -> None:
    # What an API server fills in inside a list is taken out and put in again by every apply that leaves it out.
    for runtime in of_kind(objects, "ClusterTrainingRuntime"):
        for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]:
            assert (job["replicas"], job["groupName"]) == (1, "default")
    for policy in of_kind(objects, "ValidatingAdmissionPolicy"):
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]:
            assert rule["scope"] == "*"


def test_failures_are_told_apart_by_their_exit_code(with_trainer: list[dict[str, Any]]) -> None:
    (runtime,) = of_kind(with_trainer, "ClusterTrainingRuntime")
    job_set = runtime["spec"]["template"]["spec"]
    rules = job_set["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in rules] == [
        ("Ignore", None),
        ("Ignore", [143]),
        ("FailJob", [1, 2]),
    ]
    # Counted by node, since the Job's own back-off counts every failed pod of it, ignored ones too.
    job = job_set["replicatedJobs"][0]["template"]["spec"]
    assert (job["backoffLimitPerIndex"], job["maxFailedIndexes"]) == (6, 0)
    assert "backoffLimit" not in job
    (final,) = job_set["failurePolicy"]["rules"]
    assert (final["action"], final["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_a_queue_has_the_fields_of_kueue(build: Build) -> None:
    objects = build("overlays/multi-tenant")
    (queue,) = of_kind(objects, "LocalQueue")
    assert queue["apiVersion"] == "kueue.x-k8s.io/v1beta2"
    jsonschema.validate(queue["spec"], LOCAL_QUEUE)
    (settings,) = [one for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == "convergate"]
    assert settings["data"]["CONVERGATE_QUEUE"] == queue["metadata"]["name"]


def test_gpus_are_two_nodes_with_one_each(build: Build) -> None:
    (runtime,) = of_kind(build("overlays/gpu"), "ClusterTrainingRuntime")
    assert runtime["spec"]["mlPolicy"]["numNodes"] == 2
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_gang_scheduling_is_a_component_that_any_overlay_can_name(
    build: Build, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("gang")
    parts = ("base", "components/trainjob", "components/gang-scheduling")
    base, trainer, gang = (os.path.relpath(MANIFESTS / part, folder) for part in parts)
    (folder / "kustomization.yaml").write_text(f"resources: [{base}]\ncomponents: [{trainer}, {gang}]\n")
    (runtime,) = of_kind(build(str(folder)), "ClusterTrainingRuntime")
    assert runtime["spec"]["podGroupPolicy"] == {"coscheduling": {"scheduleTimeoutSeconds": 120}}
    model = TrainerV1alpha1ClusterTrainingRuntime.from_dict(runtime)
    assert model is not None
    assert model.to_dict() == runtime
