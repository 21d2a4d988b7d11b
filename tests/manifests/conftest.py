"""The overlays as `kubectl kustomize` builds them."""

import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
WITH_TRAINER = ("local", "gpu", "multi-tenant")
OVERLAYS = (*WITH_TRAINER, "argo")

Build = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def build(require_tool: Callable[[str], Path]) -> Build:
    """The objects of a folder below manifests/."""
    return lambda folder: _built(str(require_tool("kubectl")), folder)


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest, build: Build) -> list[dict[str, Any]]:
    """The objects of each overlay."""
    return build(f"overlays/{request.param}")


@pytest.fixture(params=WITH_TRAINER)
def with_trainer(request: pytest.FixtureRequest, build: Build) -> list[dict[str, Any]]:
    """The objects of each overlay that starts TrainJobs."""
    return build(f"overlays/{request.param}")


@cache
def _built(kubectl: str, folder: str) -> list[dict[str, Any]]:
    command = [kubectl, "kustomize", str(MANIFESTS / folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert "deprecated" not in answer.stderr.lower(), answer.stderr
    return list(yaml.safe_load_all(answer.stdout))


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] in kinds]


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, with the name of what holds it."""
    for one in objects:
        where = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Deployment":
            yield where, one["spec"]["template"]
        if one["kind"] == "ClusterTrainingRuntime":
            for job in one["spec"]["template"]["spec"]["replicatedJobs"]:
                yield where, job["template"]["spec"]["template"]
        if one["kind"] in ("WorkflowTemplate", "CronWorkflow"):
            yield from _of_workflow(where, one["spec"].get("workflowSpec", one["spec"]))


def _of_workflow(where: str, workflow: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pods of a workflow's templates, as Argo makes them of the workflow and the template."""
    for template in workflow.get("templates", ()):
        if "container" in template:
            spec = {
                "containers": [{"name": "main", **template["container"]}],
                "securityContext": template.get("securityContext", workflow.get("securityContext", {})),
                "serviceAccountName": template.get("serviceAccountName", workflow.get("serviceAccountName")),
                "automountServiceAccountToken": template.get(
                    "automountServiceAccountToken", workflow.get("automountServiceAccountToken")
                ),
                "volumes": [*workflow.get("volumes", ()), *template.get("volumes", ())],
            }
            yield f"{where}/{template['name']}", {"metadata": template.get("metadata", {}), "spec": spec}
