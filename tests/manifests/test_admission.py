"""A step may start its own worker pods by a TrainJob, and nothing by which it would take another step's rights."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import cel
import pytest
from convergate.components.access import PIPELINE, RUNTIME, service_account
from convergate.components.training.trainjob.objects import run_labels, trainjob

from .conftest import Build, of_kind

STEP = f"system:serviceaccount:team:{PIPELINE}"
KUEUE = {"manager": "kueue.x-k8s.io/manager", "trainingRuntimeSpec": {"template": {"spec": {}}}}
"""What Kueue's webhook adds to a TrainJob that is created."""

Judge = Callable[[dict[str, Any], str], list[str]]


@pytest.fixture
def judge(build: Build) -> Judge:
    """Why the policy denies an object of a user's; nothing where it does not."""
    (policy,) = of_kind(build("overlays/gpu"), "ValidatingAdmissionPolicy")
    spec = policy["spec"]

    def evaluate(one: dict[str, Any], user: str) -> list[str]:
        given: dict[str, Any] = {"object": one, "request": {"userInfo": {"username": user}}, "variables": {}}
        if not all(cel.evaluate(condition["expression"], given) for condition in spec["matchConditions"]):
            return []
        for variable in spec["variables"]:
            given["variables"][variable["name"]] = cel.evaluate(variable["expression"], given)
        return [rule["message"] for rule in spec["validations"] if not cel.evaluate(rule["expression"], given)]

    return evaluate


@pytest.fixture
def ours() -> dict[str, Any]:
    """What the launcher sends."""
    return trainjob(
        "run-1-train",
        runtime=RUNTIME,
        runtime_kind="ClusterTrainingRuntime",
        image="convergate/train-python:0.1.0",
        arguments=["--nodes", "2"],
        config_digest="0" * 64,
        nodes=2,
        procs_per_node=1,
        resources={"limits": {"nvidia.com/gpu": "1"}},
        deadline_seconds=600,
        labels=run_labels("run-1", "train", "0" * 64, {}),
        owner=None,
    )


def template(job: dict[str, Any]) -> Any:
    """The launcher's patch of the worker pods."""
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return node["template"]["spec"]["template"]


def pod(job: dict[str, Any]) -> Any:
    """Their spec."""
    return template(job)["spec"]


def labels(job: dict[str, Any]) -> Any:
    """Their labels."""
    return template(job)["metadata"]["labels"]


@pytest.mark.parametrize("account", [PIPELINE, service_account("train")])
def test_what_the_launcher_sends_is_let_through(judge: Judge, ours: dict[str, Any], account: str) -> None:
    assert judge(ours, f"system:serviceaccount:team:{account}") == []
    ours["spec"]["runtimePatches"].append(KUEUE)
    assert judge(ours, f"system:serviceaccount:team:{account}") == []
    del ours["spec"]["runtimePatches"]
    assert judge(ours, f"system:serviceaccount:team:{account}") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda job: pod(job).update(serviceAccountName="convergate-promote"), "runs under convergate-worker"),
        (
            lambda job: pod(job)["volumes"].append({"name": "s", "secret": {"secretName": "x"}}),
            "mounts ConfigMaps only",
        ),
        (lambda job: pod(job)["volumes"].append({"name": "t", "projected": {"sources": []}}), "mounts ConfigMaps only"),
        (lambda job: pod(job).update(initContainers=[{"name": "x"}]), "in the container of the runtime"),
        (lambda job: pod(job)["containers"][0].update(env=[{"name": "X", "valueFrom": {}}]), "no variables of its own"),
        (lambda job: job["spec"]["trainer"].update(env=[{"name": "X", "valueFrom": {}}]), "no variables of its own"),
        (lambda job: job["spec"]["runtimeRef"].update(name="torch-distributed"), "convergate-torch only"),
        (lambda job: job["spec"]["runtimeRef"].update(kind="TrainingRuntime"), "convergate-torch only"),
        (lambda job: job["spec"].update(initializer={"dataset": {}}), "no initializer"),
        (lambda job: pod(job).update(securityContext={"runAsUser": 0, "runAsNonRoot": False}), "its securityContext"),
        (
            lambda job: pod(job)["containers"][0].update(securityContext={"privileged": True, "runAsUser": 0}),
            "its securityContext",
        ),
        (lambda job: labels(job).update({"app.kubernetes.io/component": "promote"}), "the pod labels of a worker"),
        (lambda job: labels(job).update({"app.kubernetes.io/name": "mlflow"}), "the pod labels of a worker"),
        (
            lambda job: [labels(job).update({"app.kubernetes.io/component": "gate"}), template(job).pop("spec")],
            "of a worker",
        ),
    ],
)
def test_a_step_cannot_take_another_s_rights(judge: Judge, ours: dict[str, Any], change: Any, words: str) -> None:
    changed = deepcopy(ours)
    change(changed)
    (message,) = judge(changed, STEP)
    assert words in message
    # Behind another's patch as well.
    changed["spec"]["runtimePatches"].insert(0, KUEUE)
    assert judge(changed, STEP) == [message]
    # What people and controllers start is not this policy's.
    assert judge(changed, "system:serviceaccount:kueue-system:kueue-controller-manager") == []


def test_the_policy_denies(build: Build) -> None:
    objects = build("overlays/multi-tenant")
    (policy,) = of_kind(objects, "ValidatingAdmissionPolicy")
    (binding,) = of_kind(objects, "ValidatingAdmissionPolicyBinding")
    assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
    assert policy["spec"]["failurePolicy"] == "Fail"
