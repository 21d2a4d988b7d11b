"""The cluster's API when it is busy, away, forbids, or lacks something; and a step that is cancelled or killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from convergate.components.access import config_map_name
from convergate.components.errors import ConvergateError, ExitCode, OutsideError, UserError
from convergate.components.training.job import Job
from convergate.components.training.launch import InterruptedRunError, LaunchError
from convergate.components.training.trainjob import launch_trainjob
from convergate.components.training.trainjob.api import own_namespace
from convergate.components.training.trainjob.objects import sha256
from convergate.components.training.trainjob.pace import Pace
from kubernetes_api import Fault, Play, nothing, scene, started

CONFIG = "schema_version: 1\n"
FAST = Pace(poll=0.001, connect=2, read=2, first_retry=0.001, longest_retry=0.01, outage=1, stuck=0.05, ending=2)
JOB = Job(
    run_id="r", config_text=CONFIG, seed=5, checkpoint_uri="s3://b/c", trace_uri="s3://b/t", result_uri="s3://b/r"
)
LAUNCHER = """
import json, sys
from convergate.components.errors import ConvergateError
from convergate.components.training.job import Job
from convergate.components.training.trainjob import launch_trainjob
from convergate.components.training.trainjob.pace import Pace
job, pace = json.load(sys.stdin)
try:
    launch_trainjob([Job(**job)], job["config_text"], run_id="r", phase="train", nodes=2, procs_per_node=1,
        max_restarts=1, deadline_seconds=100, pace=Pace(**pace), on_line=lambda line: print(line, flush=True))
except ConvergateError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def launch(**options: Any) -> list[str]:
    shown: list[str] = []
    arguments: dict[str, Any] = {"run_id": "r", "phase": "train", "nodes": 2, "procs_per_node": 1, "max_restarts": 1}
    arguments |= {"deadline_seconds": 100, "on_line": shown.append, "pace": FAST}
    launch_trainjob([JOB], CONFIG, **arguments | options)
    return shown


def scenes(cluster: scene.Cluster) -> None:
    cluster.play(
        started, lambda play: play.log(0, "step 1"), nothing, lambda play: play.log(0, "step 2"), Play.complete
    )


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET .*/trainjobs/", 429, times=3, reason="TooManyRequests"),
        Fault("GET .*/trainjobs/", 500, times=4, reason="InternalError"),
        Fault("GET .*/pods$", 503, times=4),
        Fault("GET .*/pods$", drop="in", times=3),
        Fault("POST .*/trainjobs", 409, times=2, reason="Conflict"),
        Fault("POST .*/trainjobs", drop="before", times=2),
        Fault("POST .*/trainjobs", drop="after"),
        Fault("POST .*/configmaps", drop="after"),
        Fault("GET .*/clustertrainingruntimes/", 500, times=2),
        Fault("GET .*/trainingruntimes/", drop="before", times=2),
    ],
    ids=lambda fault: f"{fault.match}-{fault.status or fault.drop}",
)
def test_a_busy_or_broken_answer_is_asked_for_again(cluster: scene.Cluster, fault: Fault) -> None:
    scenes(cluster)
    cluster.api.faults.append(fault)
    shown = launch()
    assert fault.met == fault.times
    assert [line for line in shown if "step" in line] == ["step 1", "step 2"]
    assert sum("tried again" in line for line in shown) == sum("answers again" in line for line in shown) == 1
    assert len(cluster.jobs) == 1


def test_it_waits_as_long_as_the_server_asks(cluster: scene.Cluster) -> None:
    scenes(cluster)
    cluster.api.faults.append(Fault("POST .*/trainjobs", 429, headers={"Retry-After": "1"}))
    began = monotonic()
    launch(pace=replace(FAST, longest_retry=5, outage=20))
    assert monotonic() - began >= 1


def test_an_outage_ends_the_step_and_not_the_job_and_a_retry_follows_it(cluster: scene.Cluster) -> None:
    fault = Fault("GET .*/pods$", 503, times=10**6)
    cluster.play(lambda play: [started(play), cluster.api.faults.append(fault)], nothing)
    with pytest.raises(
        OutsideError, match=r"no good answer for .* \(503 injected\) → .* goes on, and a retried step follows it"
    ):
        launch()
    assert len(cluster.jobs) == 1
    cluster.api.faults.clear()
    cluster.play(nothing, Play.complete)
    assert "followed on" in launch()[0]


@pytest.mark.parametrize(
    ("account", "missing"),
    [
        ("convergate-gate", "get trainingruntimes.trainer.kubeflow.org in namespace kubeflow"),
        ("convergate-worker", "get trainingruntimes.trainer.kubeflow.org in namespace kubeflow"),
    ],
)
def test_a_missing_right_is_named_with_the_role_to_apply(
    cluster: scene.Cluster, monkeypatch: pytest.MonkeyPatch, account: str, missing: str
) -> None:
    scene.enter(cluster, monkeypatch, account)
    with pytest.raises(OutsideError) as raised:
        launch()
    assert str(raised.value) == (
        f"system:serviceaccount:kubeflow:{account} may not {missing}"
        f" → kubectl apply -k manifests/overlays/… applies the Role of {account}"
    )
    assert raised.value.exit_code == ExitCode.OUTSIDE


def test_credentials_that_are_not_accepted(cluster: scene.Cluster) -> None:
    cluster.api.faults.append(Fault("GET", 401, reason="Unauthorized"))
    with pytest.raises(OutsideError, match=r"\(401\) → a token"):
        launch()


def test_a_token_that_is_refused_for_a_while_is_tried_again_where_one_was_taken_before(cluster: scene.Cluster) -> None:
    scenes(cluster)
    fault = Fault("GET .*/pods$", 401, times=4, reason="Unauthorized")
    cluster.api.faults.append(fault)
    shown = launch()
    assert fault.met == 4
    assert [line for line in shown if "step" in line] == ["step 1", "step 2"]
    assert sum("answer well (401 injected): tried again" in line for line in shown) == 1
    assert len(cluster.jobs) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"\(401 injected\) → a token that .*"),
        (403, "cannot read pods: forbidden: .*"),
        (400, "cannot read pods: .*"),
        (404, "cannot read pods: the cluster does not serve v1 .*"),
    ],
)
def test_a_refusal_while_it_runs_ends_the_step_and_not_the_job(cluster: scene.Cluster, status: int, words: str) -> None:
    reason = {401: "Unauthorized", 403: "Forbidden", 400: "BadRequest", 404: ""}[status]
    fault = Fault("GET .*/pods$", status, times=10**6, reason=reason)
    cluster.play(lambda play: [started(play), cluster.api.faults.append(fault)], nothing, nothing)
    shown: list[str] = []
    with pytest.raises(OutsideError, match=f"{words}; TrainJob r-train-.* goes on, and a retried step") as raised:
        launch(on_line=shown.append)
    assert raised.value.exit_code == ExitCode.OUTSIDE
    assert len(cluster.jobs) == 1
    assert cluster.api.store.deleted == []
    cluster.api.faults.clear()
    cluster.play(nothing, Play.complete)
    assert "followed on" in launch()[0]


def test_rights_to_logs_and_events_are_not_needed_for_the_end(cluster: scene.Cluster) -> None:
    cluster.play(Play.pods, started, lambda play: play.log(0, "unseen"), Play.complete)
    cluster.api.faults += [Fault("GET .*/(log|events)", 403, times=99, reason="Forbidden")]
    shown = launch()
    assert sum(line.startswith(("no log is shown: ", "no events are shown: ")) for line in shown) == 2


@pytest.mark.parametrize("fault", [Fault("GET .*/log", 500, times=3), Fault("GET .*/log", drop="in", times=3)])
def test_a_log_that_a_dead_node_does_not_give_keeps_nothing_up(cluster: scene.Cluster, fault: Fault) -> None:
    cluster.play(started, lambda play: play.log(0, "step 1"), nothing, nothing, Play.complete)
    cluster.api.faults.append(fault)
    shown = launch(pace=replace(FAST, first_retry=100))
    assert fault.met == fault.times
    assert [line for line in shown if "step 1" in line] == ["step 1"]
    (told,) = [line for line in shown if "log" in line]
    assert told.startswith("no log is shown for now: cannot read pods/r-train-")
    assert "injected" in told or not fault.status


def test_a_cluster_without_trainer_or_without_our_runtime_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: scene.Cluster
) -> None:
    cluster.api.store.delete(scene.RUNTIME)
    with pytest.raises(ConvergateError, match="no ClusterTrainingRuntime convergate-torch → kubectl apply -k"):
        launch()
    with scene.cluster(tmp_path, without=("trainer.kubeflow.org",)) as bare:
        scene.enter(bare, monkeypatch)
        with pytest.raises(OutsideError, match="^Kubeflow Trainer is not installed → https://"):
            launch()


def test_a_trainer_that_would_drop_our_fields_is_refused_by_its_version(cluster: scene.Cluster) -> None:
    cluster.api.old_trainer = True
    with pytest.raises(OutsideError, match=r"^Kubeflow Trainer is older than 2.2 .* → update it: https://") as raised:
        launch()
    assert raised.value.exit_code == ExitCode.OUTSIDE
    assert cluster.jobs == []


def test_a_job_that_a_controller_wrote_back_without_our_patch_is_ended_with_that_reason(cluster: scene.Cluster) -> None:
    cluster.play(Play.suspend, Play.forget_new_fields, started)
    with pytest.raises(
        LaunchError, match="lost its spec.runtimePatches.* as Kueue before 0.17 .* → update Kueue"
    ) as it:
        launch()
    assert it.value.exit_code == ExitCode.OUTSIDE
    assert cluster.jobs == cluster.objects("pods")[1:] == []


def test_no_cluster_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(OutsideError, match="no cluster is configured: .* → run in a pod, or set KUBECONFIG"):
        launch()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"clusters: [", "it is not YAML of a kubeconfig"),
        (b"\xff\xfe\x00", "it is not YAML of a kubeconfig"),
        (b"- a list", "it is not YAML of a kubeconfig"),
        (None, "Is a directory"),
    ],
)
def test_a_kubeconfig_that_is_none_is_the_users_to_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "kubeconfig"
    file.mkdir() if content is None else file.write_bytes(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    for namespace in ("kubeflow", ""):
        monkeypatch.setenv("POD_NAMESPACE", namespace)
        with pytest.raises(UserError) as raised:
            launch()
        assert str(raised.value) == f"KUBECONFIG {file}: {said} → a file that `kubectl config view` shows"


def test_the_namespace_is_that_of_the_context_else_the_one_of_kubeflow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    for context, expected in (({"cluster": "it", "namespace": "team-a"}, "team-a"), ({"cluster": "it"}, "kubeflow")):
        file = tmp_path / expected
        clusters = [{"name": "it", "cluster": {"server": "http://127.0.0.1:9"}}]
        body = {"current-context": "it", "contexts": [{"name": "it", "context": context}], "clusters": clusters}
        file.write_text(json.dumps(body | {"users": []}))
        monkeypatch.setenv("KUBECONFIG", str(file))
        assert own_namespace() == expected


def test_a_config_map_that_holds_something_else_is_not_mounted(cluster: scene.Cluster) -> None:
    name = config_map_name(sha256(CONFIG))
    cluster.api.put("configmaps", {"metadata": {"name": name}, "data": {"config.yaml": "other"}}, scene.NAMESPACE)
    with pytest.raises(OutsideError, match=f"ConfigMap {name} .* holds another config .* → kubectl delete configmap"):
        launch()
    assert cluster.jobs == []


def test_an_object_that_the_cluster_refuses_is_the_users_to_mend(cluster: scene.Cluster) -> None:
    with pytest.raises(OutsideError, match="activeDeadlineSeconds: must be greater") as raised:
        launch(deadline_seconds=0)
    assert raised.value.exit_code == ExitCode.USAGE


def test_the_job_is_deleted_when_the_launcher_ends_for_another_reason(cluster: scene.Cluster) -> None:
    cluster.play(started, nothing)

    def full(line: str) -> None:
        if "running" in line:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        launch(on_line=full)
    assert cluster.jobs == []
    shown: list[str] = []
    cluster.play(started, Play.forget_new_fields)
    with pytest.raises(LaunchError, match="lost its spec.runtimePatches"):
        launch(on_line=shown.append)
    assert "nobody follows TrainJob r-train-" in shown[-1]
    assert shown[-1].endswith("it is deleted")


def test_an_interrupt_deletes_the_job_and_waits_for_its_pods(cluster: scene.Cluster) -> None:
    cluster.play(started, lambda play: os.kill(os.getpid(), signal.SIGINT), nothing)
    with pytest.raises(InterruptedRunError) as raised:
        launch()
    assert raised.value.exit_code == ExitCode.INTERRUPTED
    assert cluster.jobs == []
    assert [one["metadata"]["name"] for one in cluster.objects("pods")] == [scene.POD]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Step:
    """A launching step as a process of its own, whose output is read while it runs."""

    def __init__(self, cluster: scene.Cluster) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            env={**os.environ, **cluster.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pace = {"poll": 0.02, "connect": 5, "read": 5, "ending": 5}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([JOB.model_dump(), pace]))
        self.process.stdin.close()

    def read_until(self, words: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if words in line:
                return
        pytest.fail(f"the step ended without saying {words!r}")

    def __enter__(self) -> "Step":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_twice_it_waits_for_its_pods_but_for_a_person(
    cluster: scene.Cluster, again: signal.Signals
) -> None:
    saving = iter([None] * 20)

    def holds(pod: dict[str, Any]) -> bool:
        still = next(saving, "saved") is None
        if still:
            os.kill(os.getpid(), again)
        return still

    cluster.api.store.holds = holds
    cluster.play(started, lambda play: os.kill(os.getpid(), signal.SIGTERM), nothing)
    shown: list[str] = []
    with pytest.raises(InterruptedRunError) as raised:
        launch(on_line=shown.append)
    assert raised.value.exit_code == ExitCode.TERMINATED
    assert cluster.jobs == []
    left = [one["metadata"]["name"] for one in cluster.objects("pods")] != [scene.POD]
    assert left == (again is signal.SIGINT)
    assert any("is deleted, and its pods may still be ending" in line for line in shown) == left


def test_a_step_that_gets_sigterm_leaves_no_job(cluster: scene.Cluster) -> None:
    cluster.play(started)
    with Step(cluster) as step:
        step.read_until("2 of 2 pods running")
        step.process.send_signal(signal.SIGTERM)
        step.read_until("interrupted by SIGTERM")
        assert step.process.wait(30) == ExitCode.TERMINATED
    assert cluster.jobs == []
    job, *pods = cluster.api.store.deleted
    assert len(pods) == 2
    assert all(pod.startswith(f"{job}-node-0-") for pod in pods)


def test_a_step_that_is_killed_leaves_a_job_that_its_workflow_owns_and_a_retry_follows(cluster: scene.Cluster) -> None:
    cluster.play(started)
    with Step(cluster) as step:
        step.read_until("2 of 2 pods running")
        step.process.kill()
        assert step.process.wait(30) == -signal.SIGKILL
    (job,) = cluster.jobs
    assert job["metadata"]["ownerReferences"] == [scene.WORKFLOW]
    cluster.play(nothing, Play.complete)
    assert "followed on" in launch()[0]
    assert [one["metadata"]["uid"] for one in cluster.jobs] == [job["metadata"]["uid"]]


def test_a_signal_while_the_job_is_being_created_comes_after_its_answer(cluster: scene.Cluster) -> None:
    cluster.play(nothing)
    main = threading.main_thread()
    create = cluster.api._create

    def interrupted(*arguments: Any) -> Any:
        if "trainjobs" in arguments[0].resource:
            assert main.ident is not None
            signal.pthread_kill(main.ident, signal.SIGTERM)
        return create(*arguments)

    cluster.api._create = interrupted  # type: ignore[method-assign]
    with pytest.raises(InterruptedRunError):
        launch()
    assert cluster.jobs == []
    assert len(cluster.api.store.deleted) == 1
