"""What is sent: names, labels, deadline; and that the stand-in refuses what a cluster would."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from convergate.components.training.trainjob import deadline_seconds
from convergate.components.training.trainjob.objects import (
    NAME_CHARACTERS,
    config_map,
    label_value,
    run_labels,
    sha256,
    trainjob,
    trainjob_name,
)
from convergate.components.training.trainjob.rights import LAUNCH_RIGHTS
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_api import scene
from kubernetes_api.admission import metadata_problems, schema_problems, trainjob_problems, unknown_fields

TRAINJOBS = "trainjobs.trainer.kubeflow.org"


def job(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "runtime": "convergate-torch",
        "runtime_kind": "ClusterTrainingRuntime",
        "image": "registry.test/train:1",
        "arguments": ["--nodes", "2"],
        "config_digest": sha256("x"),
        "nodes": 2,
        "procs_per_node": 1,
        "resources": {"limits": {"cpu": "4", "nvidia.com/gpu": "1"}, "requests": {"cpu": "500m"}},
        "deadline_seconds": 100,
        "labels": run_labels("r", "train", sha256("x"), {}),
        "owner": scene.WORKFLOW,
    }
    return trainjob("r-train-1", **given | changes)


@given(st.text(max_size=80), st.sampled_from(["canary", "train"]))
def test_every_run_has_a_name_and_labels_that_a_cluster_takes(run_id: str, phase: Any) -> None:
    name = trainjob_name(run_id, phase)
    assert len(name) <= NAME_CHARACTERS
    assert name == trainjob_name(run_id, phase)
    labels = run_labels(run_id, phase, sha256(run_id), {"convergate.io/experiment": run_id})
    assert metadata_problems(TRAINJOBS, {"metadata": {"name": name, "labels": labels}}) == []
    assert trainjob_problems({"metadata": {"name": name}, "spec": {"runtimeRef": {"name": "x"}}}, None)[0].endswith(
        "not found"
    )


def test_runs_and_phases_that_look_alike_have_names_of_their_own() -> None:
    runs = ["digits_1", "digits-1", "Digits-1", "digits" * 20 + "1", "digits" * 20 + "2"]
    assert len({trainjob_name(run, phase) for run in runs for phase in ("canary", "train")}) == 10  # type: ignore[arg-type]
    assert trainjob_name("digits-1", "train").startswith("digits-1-train-")
    assert label_value("a/b c") == "a-b-c"


@pytest.mark.parametrize(("hours", "world", "seconds"), [(2.0, 1, 8100), (2.0, 16, 1350), (0.001, 7, 901)])
def test_the_deadline_is_the_budget_over_all_processes_and_the_start(hours: float, world: int, seconds: int) -> None:
    assert deadline_seconds(hours, world) == seconds


def test_only_other_work_is_another_launch() -> None:
    def digest(**changes: Any) -> str:
        return str(job(**changes)["metadata"]["annotations"]["convergate.io/launch-digest"])

    assert digest() == digest(deadline_seconds=7) == digest(owner=None)
    assert len({digest(), digest(nodes=3), digest(image="other"), digest(config_digest=sha256("y"))}) == 4


def test_what_is_sent_is_what_the_crd_knows_and_a_queue_is_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    for resource, body in ((TRAINJOBS, job()), ("configmaps", config_map("text"))):
        assert schema_problems(resource, body) == unknown_fields(resource, body) == []
    short = sha256("text")[:16]
    assert config_map("text")["metadata"]["labels"]["convergate.io/config-sha256"] == short
    assert config_map("text")["metadata"]["name"] == f"convergate-config-{short}"
    assert run_labels("r", "train", sha256("text"), {})["convergate.io/config-sha256"] == short
    monkeypatch.setenv("CONVERGATE_QUEUE", "team-a")
    assert job()["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"


def test_the_role_of_the_launcher_gives_what_it_uses(require_tool: Callable[[str], Path]) -> None:
    require_tool("kubectl")
    given = {
        (verb, group, resource)
        for one in scene.rendered("local")
        if one["kind"].endswith("Role") and one["metadata"]["name"] in ("convergate-launch", "convergate-runtime")
        for rule in one["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert given == set(LAUNCH_RIGHTS)


def patched(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = changed
    for part in parents:
        at = at[part]
    at[last] = value
    return changed


PATCHES = "spec.runtimePatches"
CONTAINER = f"{PATCHES}.0.trainingRuntimeSpec.template.spec.replicatedJobs.0.template.spec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.podTemplateOverrides", [{"x": 1}], 'unknown field "spec.podTemplateOverrides"'),
        ("spec.trainer.numNodes", "2", "Input should be a valid integer"),
        (f"{CONTAINER}.resources", {"limits": {}} | {"claims": [1]}, "unknown field"),
        ("spec.trainer.env", [{"name": "PET_NNODES", "value": "1"}], "must not have reserved envs"),
        (f"{CONTAINER}.env", [{"name": "A", "value": "1"}], "must not have envs for the"),
        (f"{CONTAINER}.name", "sidecar", "must not have container that doesn't exist"),
        (f"{PATCHES}.0.manager", "convergate", "manager: Invalid value"),
        (PATCHES, [{"manager": "a.b/c"}, {"manager": "a.b/c"}], "Duplicate value: a.b/c"),
        ("spec.runtimeRef.name", "other", "not found"),
        ("metadata.name", "1-starts-with-a-digit", "RFC 1035"),
        ("metadata.labels", {"a": "x" * 64}, "metadata.labels: Invalid value"),
        ("spec.activeDeadlineSeconds", 0, "greater than or equal to 1"),
    ],
)
def test_the_stand_in_refuses_what_a_cluster_refuses(
    tmp_path: Path, require_tool: Callable[[str], Path], path: str, value: Any, said: str
) -> None:
    require_tool("kubectl")
    with scene.cluster(tmp_path) as cluster:
        url = f"{cluster.api.url}/apis/trainer.kubeflow.org/v1alpha1/namespaces/{scene.NAMESPACE}/trainjobs"
        assert send("POST", url, job())[0] == 201
        other = patched({**job(), "metadata": {"name": "another"}}, path, value)
        code, answer = send("POST", f"{url}?fieldValidation=Strict", other)
        assert (code in (400, 422), said in answer["message"]) == (True, True), answer
        stored = send("GET", f"{url}/r-train-1", None)[1]
        code, answer = send("PUT", f"{url}/r-train-1", patched(stored, "spec.trainer.numNodes", 3))
        assert (code, "immutable" in answer["message"]) == (422, True)


def send(method: str, url: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
    data = json.dumps(body).encode() if body is not None else None
    request = Request(url, data, {"Authorization": "Bearer admin"}, method=method)  # noqa: S310 - a local server
    try:
        with urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)
