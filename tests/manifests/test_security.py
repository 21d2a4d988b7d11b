"""What nothing in the manifests may do, and that identities are those of the code."""

from copy import deepcopy
from typing import Any

import pytest
from convergate.components.access import (
    ACCESS,
    CONFIG_MAP,
    EXECUTOR,
    LAUNCH_SETTINGS,
    MLFLOW_SETTINGS,
    PIPELINE,
    RUNTIME,
    S3_SETTINGS,
    WITHOUT_ACCESS,
    WORKER,
    pod_labels,
    s3_secret,
    service_account,
)

from .conftest import MANIFESTS, Build, of_kind, pods
from .pod_security import violations

Objects = list[dict[str, Any]]
LAUNCHERS = {service_account("train"), PIPELINE}
"""The accounts whose pods start TrainJobs."""


def test_every_pod_is_restricted(objects: Objects) -> None:
    found = {where: violations(template["spec"]) for where, template in pods(objects)}
    assert found
    assert not any(found.values()), found


def test_every_container_has_a_read_only_root_and_limits(objects: Objects) -> None:
    for where, template in pods(objects):
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), where
            assert "memory" in container["resources"]["limits"], where
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, where  # noqa: S108


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pod: pod.update(hostNetwork=True), "hostNetwork"),
        (lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume x is a hostPath"),
        (lambda pod: pod["securityContext"].pop("runAsNonRoot"), "node: runAsNonRoot is not true"),
        (lambda pod: pod["securityContext"].pop("seccompProfile"), "node: no seccomp profile"),
        (lambda pod: pod["containers"][0]["securityContext"].update(privileged=True), "node: privileged"),
        (
            lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
            "node: allowPrivilegeEscalation is not false",
        ),
        (lambda pod: pod["containers"][0]["securityContext"].pop("capabilities"), "node: capabilities are not dropped"),
    ],
)
def test_the_checker_of_pods_finds_what_is_not_restricted(build: Build, change: Any, reason: str) -> None:
    objects = build("overlays/gpu")
    pod = next(deepcopy(template["spec"]) for where, template in pods(objects) if "TrainingRuntime" in where)
    change(pod)
    assert violations(pod) == [reason]


def test_roles_name_what_they_allow(objects: Objects) -> None:
    for role in of_kind(objects, "Role", "ClusterRole"):
        for rule in role["rules"]:
            for part in ("apiGroups", "resources", "verbs"):
                assert rule[part], role["metadata"]["name"]
                assert "*" not in "".join(rule[part]), role["metadata"]["name"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"], role["metadata"]["name"]
    own = {(role["kind"], role["metadata"]["name"]) for role in of_kind(objects, "Role", "ClusterRole")}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in own
        accounts = {one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")}
        for subject in binding["subjects"]:
            assert subject["kind"] == "ServiceAccount"
            assert subject["name"] in accounts
            assert subject["namespace"] == _namespace(objects)


def test_every_verb_is_explained(build: Build) -> None:
    for file in (*MANIFESTS.glob("base/roles-*.yaml"), *MANIFESTS.glob("components/*/roles.yaml")):
        lines = file.read_text().splitlines()
        verbs = [n for n, line in enumerate(lines) if line.startswith("      - ")]
        assert verbs
        # `watch` of one list is explained by the verb before it.
        unexplained = [lines[n].strip() for n in verbs if " # " not in lines[n]]
        assert unexplained in ([], ["- watch"]), file.name


def test_only_who_speaks_to_the_api_server_may_and_has_a_token(objects: Objects) -> None:
    trains = bool(of_kind(objects, "ClusterTrainingRuntime"))
    with_token = {
        account["metadata"]["name"]
        for account in of_kind(objects, "ServiceAccount")
        if account["automountServiceAccountToken"]
    }
    assert with_token == (LAUNCHERS if trains else {PIPELINE})
    allowed = {
        subject["name"]
        for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
    }
    assert allowed == {*with_token, EXECUTOR}
    for where, template in pods(objects):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False or pod["serviceAccountName"] in with_token, where


def test_there_is_no_secret_but_one_that_the_cluster_fills(objects: Objects) -> None:
    (token,) = of_kind(objects, "Secret")
    assert token["type"] == "kubernetes.io/service-account-token"
    assert token["metadata"]["name"] == f"{EXECUTOR}.service-account-token"
    assert not {"data", "stringData"} & token.keys()
    for settings in of_kind(objects, "ConfigMap"):
        assert not {
            name for name in settings["data"] if "SECRET" in name or "KEY_ID" in name.removesuffix("KMS_KEY_ID")
        }


def test_accounts_and_settings_are_those_of_the_code(objects: Objects) -> None:
    accounts = {one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")}
    assert accounts == {*map(service_account, ACCESS), WORKER, PIPELINE, EXECUTOR, WITHOUT_ACCESS}
    (settings,) = [one for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == CONFIG_MAP]
    assert settings["data"].keys() <= {*S3_SETTINGS, *MLFLOW_SETTINGS, *LAUNCH_SETTINGS}


def test_workers_run_as_the_code_says(with_trainer: Objects) -> None:
    template = next(template for where, template in pods(with_trainer) if where == f"ClusterTrainingRuntime/{RUNTIME}")
    assert template["metadata"]["labels"] == {**pod_labels(None), "app.kubernetes.io/component": "worker"}
    assert template["spec"]["serviceAccountName"] == WORKER
    (container,) = template["spec"]["containers"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": CONFIG_MAP, "optional": True}},
        {"secretRef": {"name": s3_secret("train"), "optional": True}},
    ]


def test_policies_select_our_pods_and_never_a_whole_namespace(objects: Objects) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    assert len(policies) >= 2
    for policy in policies:
        assert policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "convergate"
    components = {*ACCESS, "stop", "worker"}
    for policy in policies:
        selector = policy["spec"]["podSelector"]
        for expression in selector.get("matchExpressions", ()):
            assert set(expression["values"]) <= components


def test_workers_reach_neither_the_api_server_nor_mlflow(build: Build) -> None:
    objects = build("overlays/multi-tenant")
    of_workers = {
        policy["metadata"]["name"]
        for policy in of_kind(objects, "NetworkPolicy")
        if "Egress" in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], "worker")
    }
    assert of_workers == {"convergate-egress-dns", "convergate-egress-s3", "convergate-egress-workers"}
    of_promote = {
        policy["metadata"]["name"]
        for policy in of_kind(objects, "NetworkPolicy")
        if "Egress" in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], "promote")
    }
    assert of_promote == {f"convergate-egress-{name}" for name in ("dns", "s3", "api", "mlflow", "kfp")}


def test_a_team_s_namespace_enforces_the_restricted_standard(build: Build) -> None:
    (namespace,) = of_kind(build("overlays/multi-tenant"), "Namespace")
    labels = namespace["metadata"]["labels"]
    assert [labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")] == ["restricted"] * 3


def _namespace(objects: Objects) -> str:
    (found,) = {one["metadata"]["namespace"] for one in of_kind(objects, "ServiceAccount")}
    return str(found)


def _selects(selector: dict[str, Any], component: str) -> bool:
    wanted = selector.get("matchLabels", {}).get("app.kubernetes.io/component", component)
    return wanted == component and all(
        (component in expression["values"]) == (expression["operator"] == "In")
        for expression in selector.get("matchExpressions", ())
    )
