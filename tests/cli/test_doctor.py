"""doctor, on real S3 servers, a real MLflow, and a stand-in of a cluster that has our manifests applied."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.storage import S3Location, S3Store
from kubernetes_api import scene
from kubernetes_api.store import Key

from ..manifests.pod_security import violations
from .conftest import Convergate

NODE = {"metadata": {"name": "gpu-1"}, "status": {"allocatable": {"cpu": "16", "nvidia.com/gpu": "4"}}}
NOBODY = "http://127.0.0.1:9"
"""Where no server listens."""
KEYS = {"AWS_ACCESS_KEY_ID": "aWQ=", "AWS_SECRET_ACCESS_KEY": "c2VjcmV0LXZhbHVl"}


def states(rows: list[dict[str, str]]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in rows}


def row(rows: list[dict[str, str]], name: str) -> dict[str, str]:
    return next(one for one in rows if one["name"] == name)


@pytest.fixture
def cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> Iterator[scene.Cluster]:
    require_tool("kubectl")
    with scene.cluster(tmp_path) as running:
        be(running, monkeypatch, "admin")
        running.api.put("nodes", NODE)
        set_settings(running, AWS_ENDPOINT_URL=NOBODY, MLFLOW_TRACKING_URI=NOBODY)
        for kind in ("ledger", "check", "train", "evaluate", "gate", "promote"):
            running.api.put("secrets", {"metadata": {"name": f"convergate-s3-{kind}"}, "data": KEYS}, scene.NAMESPACE)
        yield running


def set_settings(running: scene.Cluster, **data: str) -> None:
    """What ConfigMap convergate holds."""
    key = Key("configmaps", scene.NAMESPACE, "convergate")
    settings = running.api.store.get(key)
    assert settings is not None
    running.api.store.update(key, {**settings, "data": data})


def be(running: scene.Cluster, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    folder = Path(running.environment()["KUBECONFIG"]).parent
    monkeypatch.setenv("KUBECONFIG", str(running.api.kubeconfig(folder, token, scene.NAMESPACE)))


def config(tmp_path: Path, root: str, **more: Any) -> str:
    body: dict[str, Any] = yaml.safe_load(
        Path(__file__).parents[2].joinpath("manifests/configs/digits.yaml").read_text()
    )
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**body, "storage": {"uri": root}, **more}))
    return str(file)


def test_s3_with_conditional_writes_and_mlflow(
    convergate: Convergate, tmp_path: Path, moto: str, mlflow_server: str
) -> None:
    answer = convergate("doctor", config(tmp_path, f"{moto}/team"), "--json")
    assert answer.code == 0
    assert row(answer.json, "S3: conditional writes")["figure"] == "honoured (If-None-Match)"
    assert states(answer.json)["S3: clock"] == "ok"
    assert mlflow_server in row(answer.json, "MLflow")["figure"]
    assert list(S3Store().list(S3Location.parse(moto))) == []


def test_s3_without_them_says_so_and_what_it_means(convergate: Convergate, tmp_path: Path, s3: str) -> None:
    answer = convergate("doctor", config(tmp_path, s3))
    assert answer.code == 0
    assert " – S3: conditional writes   ignored: two writers" in answer.out
    assert "→ a server that honours If-None-Match" in answer.out
    assert answer.out.endswith("nothing has to be mended\n")
    assert list(S3Store().list(S3Location.parse(s3))) == []


def test_s3_that_cannot_be_reached_or_has_no_bucket_fails(
    convergate: Convergate, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = convergate("doctor", config(tmp_path, "s3://nobody-made-this"), "--json")
    assert answer.code == 1
    own = os.environ["AWS_ENDPOINT_URL"]
    assert row(answer.json, "S3")["fix"] == f"aws s3 mb s3://nobody-made-this --endpoint-url {own}"
    assert row(answer.json, "S3: clock")["figure"] == "not examined: see above"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    answer = convergate("doctor", config(tmp_path, s3))
    assert answer.code == 1
    assert "✗ S3 " in answer.out
    assert "→ check the credentials" in answer.out


def test_a_cluster_with_our_manifests_is_fine_for_an_administrator(
    convergate: Convergate, cluster: scene.Cluster
) -> None:
    answer = convergate("doctor", "--cluster", "--namespace", scene.NAMESPACE, "--json")
    assert answer.code == 0, answer.out
    figures = {one["name"]: one["figure"] for one in answer.json if one["state"] == "ok"}
    assert figures.keys() >= {"Kubeflow Trainer", "JobSet", "Argo Workflows", "accounts"}
    assert figures["rights: convergate-train"] == figures["rights: convergate-pipeline"] == "all 11 that a launch takes"
    assert figures["rights: convergate-worker"] == "none of what the user's code must not be allowed to"
    assert figures["runtime"] == "ClusterTrainingRuntime convergate-torch: no GPU, 120 s to save"
    assert figures["Secret convergate-s3-train"] == "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
    assert figures["nodes"] == "1, allocatable: 4 × nvidia.com/gpu"
    assert states(answer.json)["Kueue"] == states(answer.json)["network policies"] == "unknown"
    assert "c2VjcmV0" not in answer.out


def test_a_step_account_is_told_what_it_may_not_ask(
    convergate: Convergate, cluster: scene.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(cluster, monkeypatch, f"{scene.NAMESPACE}/convergate-train")
    answer = convergate("doctor", "--cluster", "--namespace", scene.NAMESPACE, "--json")
    assert answer.code == 0, answer.out
    assert row(answer.json, "rights: yours")["figure"] == "may launch TrainJobs"
    for name in ("rights: convergate-worker", "Secret convergate-s3-gate", "nodes", "accounts"):
        assert states(answer.json)[name] == "unknown"
    assert "you may not read Secrets" in row(answer.json, "Secret convergate-s3-gate")["figure"]


def test_somebody_without_rights_is_told_what_is_not_known_and_whom_to_ask(
    convergate: Convergate, cluster: scene.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(cluster, monkeypatch, f"{scene.NAMESPACE}/somebody")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    rows = examine(convergate)
    # An overlay has no Role of this user, whatever a step's account would be told.
    assert not [one for one in rows if "→" in one["figure"] or "Role of" in one["fix"]]
    for name in ("retries", "runtime", "accounts", "ConfigMap convergate", "nodes"):
        assert row(rows, name)["state"] == "unknown"
        assert row(rows, name)["fix"].startswith("an administrator: kubectl get ")
    # Where S3 and MLflow are stands in what could not be read.
    for name in ("S3: conditional writes", "MLflow"):
        assert row(rows, name)["figure"] == "not known: it stands in ConfigMap convergate, which could not be read"
        assert row(rows, name)["fix"].startswith("kubectl run convergate-doctor ")


def test_a_runtime_that_the_admission_policy_refuses_fails(
    convergate: Convergate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    require_tool("kubectl")
    title = "admission policy"
    with scene.cluster(tmp_path, overlay="gpu") as running:
        be(running, monkeypatch, "admin")
        assert row(examine(convergate), title)["state"] == "ok"
        runtime = running.api.store.get(scene.RUNTIME)
        assert runtime is not None
        metadata = {"name": "team-torch", "namespace": scene.NAMESPACE, "labels": runtime["metadata"]["labels"]}
        own = {**runtime, "kind": "TrainingRuntime", "metadata": metadata}
        running.api.put("trainingruntimes.trainer.kubeflow.org", own, scene.NAMESPACE)
        set_settings(running, CONVERGATE_RUNTIME="team-torch")
        found = row(examine(convergate), title)
        assert found["state"] == "failed"
        assert found["figure"] == "it refuses the TrainJobs of TrainingRuntime team-torch"
        key = Key(scene.OF_THE_CLUSTER["ValidatingAdmissionPolicyBinding"], "", "convergate-trainjobs")
        binding = running.api.store.get(key)
        assert binding is not None
        exempt = {"namespaceSelector": {"matchLabels": {"admission": "ours"}}}
        running.api.store.update(key, {**binding, "spec": {**binding["spec"], "matchResources": exempt}})
        assert row(examine(convergate), title)["state"] == "unknown"
        running.api.store.delete(key)
        assert row(examine(convergate), title)["figure"].startswith("not there: a step's token could start a TrainJob")


def test_what_is_missing_or_wrong_in_a_cluster_fails_with_its_fix(
    convergate: Convergate, cluster: scene.Cluster
) -> None:
    cluster.api.store.delete(Key("serviceaccounts", scene.NAMESPACE, "convergate-gate"))
    cluster.api.store.delete(Key("secrets", scene.NAMESPACE, "convergate-s3-train"))
    wrong = {"metadata": {"name": "convergate-s3-train"}, "data": {"accessKey": "x"}}
    cluster.api.put("secrets", wrong, scene.NAMESPACE)

    def with_gpu(pod: dict[str, Any]) -> None:
        pod["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.5gb"] = 1

    cluster.change_runtime(with_gpu)
    set_settings(cluster, CONVERGATE_QUEUE="team-a", AWS_ENDPOINT_URL=NOBODY)
    cluster.api.store.delete(Key("secrets", scene.NAMESPACE, "convergate-s3-gate"))
    cluster.api.rbac = type(cluster.api.rbac)(
        [
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "all"}}
            | {"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "all"}}
            | {"roleRef": {"kind": "ClusterRole", "name": "all"}}
            | {"subjects": [{"kind": "ServiceAccount", "name": "convergate-worker", "namespace": scene.NAMESPACE}]},
        ]
    )
    answer = convergate("doctor", "--cluster", "--namespace", scene.NAMESPACE, "--json")
    assert answer.code == 1
    failed = {one["name"]: one for one in answer.json if one["state"] == "failed"}
    assert failed["accounts"]["figure"] == "not there: convergate-gate"
    assert failed["Secret convergate-s3-train"]["figure"].startswith("has accessKey and not AWS_ACCESS_KEY_ID")
    assert failed["Secret convergate-s3-gate"]["figure"] == f"not there: {NOBODY} knows no cloud role"
    assert failed["queue"]["figure"] == "team-a: Kueue is not installed, and CONVERGATE_QUEUE names it"
    assert failed["nodes"]["figure"].endswith("the runtime asks for nvidia.com/mig-1g.5gb")
    assert failed["rights: convergate-worker"]["figure"] == "the user's code may get secrets"
    assert failed["rights: convergate-train"]["fix"] == "kubectl apply -k manifests/overlays/…"
    assert all(one["fix"] for one in failed.values())


def test_without_an_own_s3_keys_may_be_a_role_and_other_settings_are_training_s(
    convergate: Convergate, cluster: scene.Cluster
) -> None:
    set_settings(cluster, NCCL_DEBUG="INFO")
    cluster.api.store.delete(Key("secrets", scene.NAMESPACE, "convergate-s3-train"))
    rows = examine(convergate)
    secret, settings = row(rows, "Secret convergate-s3-train"), row(rows, "ConfigMap convergate")
    assert (secret["state"], settings["state"]) == ("unknown", "unknown")
    assert "right under Argo, with a cloud role of convergate-train and of convergate-worker" in secret["figure"]
    assert "Kubeflow Pipelines has one account for all kinds" in secret["figure"]
    assert settings["figure"] == "no step reads NCCL_DEBUG; the pods of TrainJobs get all of it"
    assert "no keys are set here" in row(rows, "S3: conditional writes")["figure"]


def test_the_s3_and_mlflow_of_the_cluster_are_examined_from_here_where_they_answer(
    convergate: Convergate, cluster: scene.Cluster, tmp_path: Path, moto: str, mlflow_server: str
) -> None:
    set_settings(cluster, AWS_ENDPOINT_URL=os.environ["AWS_ENDPOINT_URL"], MLFLOW_TRACKING_URI=mlflow_server)
    with pytest.MonkeyPatch.context() as here:
        here.setenv("AWS_ENDPOINT_URL", NOBODY)
        here.delenv("MLFLOW_TRACKING_URI")
        file = config(tmp_path, "s3://bucket", checkpoint={"uri": f"{moto}/checkpoints"})
        answer = convergate("doctor", file, "--cluster", "--json")
        assert os.environ["AWS_ENDPOINT_URL"] == NOBODY
        assert "MLFLOW_TRACKING_URI" not in os.environ
    assert f"{moto}/checkpoints" in row(answer.json, "S3")["figure"]
    assert row(answer.json, "S3: conditional writes")["figure"] == "honoured (If-None-Match)"
    assert mlflow_server in row(answer.json, "MLflow")["figure"]
    assert list(S3Store().list(S3Location.parse(moto))) == []


def test_what_cannot_be_reached_from_here_gets_the_command_that_asks_from_inside(
    convergate: Convergate, cluster: scene.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    set_settings(cluster, AWS_ENDPOINT_URL=NOBODY, MLFLOW_TRACKING_URI=NOBODY.replace("127", "me:secret@127"))
    rows = examine(convergate)
    found = row(rows, "S3: conditional writes")
    assert (found["state"], found["figure"]) == ("unknown", f"not known: {NOBODY} cannot be reached from here")
    assert row(rows, "MLflow") == {**found, "name": "MLflow"}
    command = shlex.split(found["fix"])
    # By default kubectl deletes the pod after a minute, which the pull of a large image takes.
    assert "--pod-running-timeout=10m" in command
    assert command[:5] == ["kubectl", "run", "convergate-doctor", "-n", scene.NAMESPACE]
    dry = [*(part for part in command if part not in ("--rm", "--attach")), "--dry-run=client", "-o", "json"]
    ran = subprocess.run(dry, capture_output=True, check=False, text=True)
    assert ran.returncode == 0, ran.stderr
    pod = json.loads(ran.stdout)
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["convergate", "doctor", "--root", "s3://convergate/checkpoints"]
    assert container["image"] == "convergate/train-python:0.1.0"
    sources = [source["name"] for one in container["envFrom"] for source in one.values()]
    assert sources == ["convergate", "convergate-s3-train", "convergate-mlflow"]
    assert violations(pod["spec"]) == []


def test_another_runtime_has_to_be_in_the_role(convergate: Convergate, cluster: scene.Cluster) -> None:
    runtime = cluster.api.store.get(scene.RUNTIME)
    assert runtime is not None
    other = {**runtime, "metadata": {"name": "team-torch", "labels": runtime["metadata"]["labels"]}}
    cluster.api.put("clustertrainingruntimes.trainer.kubeflow.org", other)
    set_settings(cluster, CONVERGATE_RUNTIME="team-torch", AWS_ENDPOINT_URL=NOBODY)
    found = row(examine(convergate), "rights: convergate-train")
    assert (found["state"], found["figure"]) == ("failed", "may not get clustertrainingruntimes team-torch")
    assert "resourceNames of ClusterRole convergate-runtime" in found["fix"]


def test_the_namespace_is_the_context_s_and_only_a_cluster_has_one(
    convergate: Convergate, cluster: scene.Cluster
) -> None:
    answer = convergate("doctor", "--cluster", "--json")
    assert answer.code == 0, answer.out
    assert row(answer.json, "API server")["figure"].endswith(f"namespace {scene.NAMESPACE}")
    answer = convergate("doctor", "--namespace", "team")
    assert (answer.code, "→ --cluster" in answer.error) == (2, True)
    answer = convergate("doctor", "--cluster", "--namespace", "")
    assert (answer.code, "is empty" in answer.error) == (2, True)


def test_s3_is_probed_where_it_is_told(convergate: Convergate, moto: str, mlflow_server: str) -> None:
    answer = convergate("doctor", "--root", f"{moto}/checkpoints", "--json")
    assert (answer.code, f"{moto}/checkpoints" in row(answer.json, "S3")["figure"]) == (0, True)
    assert convergate("doctor", "--root", "elsewhere").code == 2


def controller(retry: str) -> dict[str, Any]:
    """The ConfigMap of Argo's controller, as Kubeflow Pipelines 2.17 applies it."""
    ttl = {f"secondsAfter{one}": 3600 for one in ("Completion", "Success", "Failure")}
    spec = {"ttlStrategy": ttl, **({"templateDefaults": {"retryStrategy": {"retryPolicy": retry}}} if retry else {})}
    return {
        "metadata": {"name": "workflow-controller-configmap"},
        "data": {"workflowDefaults": yaml.dump({"spec": spec})},
    }


def examine(convergate: Convergate) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = convergate("doctor", "--cluster", "--namespace", scene.NAMESPACE, "--json").json
    return rows


@pytest.mark.parametrize(
    ("retry", "state", "said"),
    [
        ("OnError", "unknown", "a step that fails is not tried again, only one whose pod was lost"),
        ("Always", "unknown", "a failed DAG is tried again as a whole"),
        ("", "ok", "a step that fails is tried again"),
    ],
)
def test_what_the_workflow_controller_makes_of_retries_and_how_long_it_keeps_runs(
    convergate: Convergate, cluster: scene.Cluster, retry: str, state: str, said: str
) -> None:
    cluster.api.put("configmaps", controller(retry), scene.NAMESPACE)
    rows = examine(convergate)
    retries = row(rows, "retries")
    assert retries["state"] == state
    assert said in retries["figure"]
    assert ("take templateDefaults out of workflowDefaults: kubectl edit" in retries["fix"]) == bool(retry)
    assert "Always" not in retries["fix"]
    assert row(rows, "runs are kept")["figure"].startswith("3600 s after their end, with pods, logs and TrainJobs;")


def test_a_workflow_controller_that_cannot_be_read_or_understood_is_no_fault(
    convergate: Convergate, cluster: scene.Cluster
) -> None:
    found = row(examine(convergate), "retries")
    assert found["state"] == "unknown"
    assert found["figure"].endswith(f"there is no ConfigMap workflow-controller-configmap in {scene.NAMESPACE}")
    body = {"metadata": {"name": "workflow-controller-configmap"}, "data": {"workflowDefaults": "spec: ["}}
    cluster.api.put("configmaps", body, scene.NAMESPACE)
    assert "is not YAML of a Workflow" in row(examine(convergate), "retries")["figure"]


def test_a_trainer_older_than_ours_fails_where_runs_train_as_trainjobs(
    convergate: Convergate, cluster: scene.Cluster, tmp_path: Path
) -> None:
    assert "2.2 or newer" in row(examine(convergate), "Kubeflow Trainer")["figure"]
    cluster.api.old_trainer = True
    found = row(examine(convergate), "Kubeflow Trainer")
    assert found["state"] == "failed"
    assert "older than 2.2" in found["figure"]
    assert found["fix"].startswith("update it: https://")
    where = ("--cluster", "--namespace", scene.NAMESPACE, "--json")
    local = convergate("doctor", config(tmp_path, "s3://bucket"), *where).json
    assert states(local)["Kubeflow Trainer"] == "unknown"


@pytest.mark.parametrize(
    ("versions", "image", "state", "said"),
    [
        (("v1beta1",), None, "failed", "serves no kueue.x-k8s.io/v1beta2"),
        (("v1beta2", "v1beta1"), None, "unknown", "cannot be told from here; 0.17 or newer is needed"),
        (("v1beta2",), "registry.k8s.io/kueue/kueue:v0.16.2", "failed", "0.16; 0.17 or newer"),
        (("v1beta2",), "mirror.test:5000/kueue:v0.17.0-1@sha256:12", "ok", "0.17"),
        (("v1beta2",), "mirror.test:5000/kueue@sha256:12", "unknown", "does not tell it"),
    ],
)
def test_a_queue_wants_a_kueue_that_leaves_our_jobs_as_they_are(
    convergate: Convergate, cluster: scene.Cluster, versions: tuple[str, ...], image: str | None, state: str, said: str
) -> None:
    cluster.api.serve("kueue.x-k8s.io", *versions)
    cluster.api.serve("apps", "v1")
    set_settings(cluster, CONVERGATE_QUEUE="team-a", AWS_ENDPOINT_URL=NOBODY)
    cluster.api.put("localqueues.kueue.x-k8s.io", {"metadata": {"name": "team-a"}}, scene.NAMESPACE)
    if image:
        pod = {"containers": [{"name": "manager", "image": image}]}
        body = {"metadata": {"name": "kueue-controller-manager"}, "spec": {"template": {"spec": pod}}}
        cluster.api.put("deployments.apps", body, "kueue-system")
    rows = examine(convergate)
    assert row(rows, "queue")["state"] == "ok"
    found = row(rows, "Kueue's version")
    assert (found["state"], said in found["figure"]) == (state, True), found


def test_a_queue_that_takes_no_jobs_fails(convergate: Convergate, cluster: scene.Cluster) -> None:
    cluster.api.serve("kueue.x-k8s.io", "v1beta2")
    set_settings(cluster, CONVERGATE_QUEUE="team-a", AWS_ENDPOINT_URL=NOBODY)
    active = {"type": "Active", "status": "False", "reason": "ClusterQueueDoesNotExist", "message": "Can't submit"}
    body = {"metadata": {"name": "team-a"}, "status": {"conditions": [active]}}
    cluster.api.put("localqueues.kueue.x-k8s.io", body, scene.NAMESPACE)
    found = row(examine(convergate), "queue")
    assert (found["state"], found["fix"]) == ("failed", f"kubectl describe localqueue team-a -n {scene.NAMESPACE}")
    assert found["figure"].endswith("takes no jobs: ClusterQueueDoesNotExist: Can't submit")


def test_without_trainer_only_a_config_that_trains_in_the_step_passes(
    convergate: Convergate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    require_tool("kubectl")
    with scene.cluster(tmp_path, without=("trainer.kubeflow.org", "jobset.x-k8s.io")) as bare:
        be(bare, monkeypatch, "admin")
        where = ("--cluster", "--namespace", scene.NAMESPACE, "--json")
        assert convergate("doctor", *where).code == 1
        assert (
            states(convergate("doctor", config(tmp_path, "s3://bucket"), *where).json)["Kubeflow Trainer"] == "unknown"
        )


def test_a_cluster_that_cannot_be_reached_is_4_and_a_wrong_config_2(
    convergate: Convergate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    require_tool("kubectl")
    with scene.cluster(tmp_path) as gone:
        be(gone, monkeypatch, "admin")
    answer = convergate("doctor", "--cluster")
    assert answer.code == 4
    assert "gave no good answer" in answer.error
    assert answer.error.endswith("→ kubectl get --raw /readyz")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert "no cluster is configured" in convergate("doctor", "--cluster").error
    assert convergate("doctor", str(tmp_path / "none.yaml")).code == 2
