"""A TrainJob through the real SDK, over HTTP, under our Roles: created, queued, running, and each way that it ends."""

import contextlib
import json
import time
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import Any

import pytest
from convergate.components.errors import ExitCode, OutsideError, UserError
from convergate.components.training.job import Job
from convergate.components.training.launch import LaunchError
from convergate.components.training.trainjob import delete_leftovers, launch_trainjob, launcher
from convergate.components.training.trainjob.objects import sha256
from convergate.components.training.trainjob.pace import Pace
from convergate.components.training.trainjob.usage import Usage
from kubernetes_api import Play, nothing, scene, started

CONFIG = "schema_version: 1\nexperiment: digits # ü\n"
FAST = Pace(poll=0.001, connect=2, read=2, first_retry=0.001, longest_retry=0.01, outage=2, stuck=0.05, ending=2)
JOB = Job(
    run_id="digits-1",
    config_text=CONFIG,
    seed=5,
    checkpoint_uri="s3://convergate/checkpoints",
    trace_uri="s3://convergate/runs/digits-1/trace",
    result_uri="s3://convergate/runs/digits-1/training.json",
)


def launch(lines: list[str] | None = None, **options: Any) -> list[str]:
    """Launch two nodes of two processes; returns what was shown."""
    shown: list[str] = [] if lines is None else lines
    arguments: dict[str, Any] = {
        "run_id": "digits-1",
        "phase": "train",
        "nodes": 2,
        "procs_per_node": 2,
        "max_restarts": 1,
        "deadline_seconds": 4500,
        "labels": {"convergate.io/experiment": "digits"},
        "on_line": shown.append,
        "pace": FAST,
    }
    launch_trainjob([JOB], CONFIG, **arguments | options)
    return shown


def test_from_quota_to_its_end_with_what_rank_0_prints(cluster: scene.Cluster) -> None:
    name = "digits-1-train-" + sha256("digits-1/train")[:8]
    cluster.play(
        Play.suspend,
        nothing,
        Play.resume,
        lambda play: play.pods(pending="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        lambda play: [play.set_pod(place, conditions=[]) for place in (0, 1)],
        Play.run,
        lambda play: [play.log(0, "step 1 lr 0.1", "step 2 lr 0.2"), play.log(1, "of no interest")],
        nothing,
        lambda play: [play.log(0, "step 3 lr 0.3"), play.end(0), play.end(1), play.complete()],
    )
    assert launch() == [
        f"TrainJob {name} created in namespace kubeflow: 2 nodes × 2 processes, owned by Workflow retrain-1",
        "waiting for quota: suspended",
        "waiting for pods: 0 of 2 there",
        "2 of 2 pods pending: node 0: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "2 of 2 pods pending",
        "2 of 2 pods running",
        "step 1 lr 0.1",
        "step 2 lr 0.2",
        "step 3 lr 0.3",
    ]


def test_each_pod_gets_image_config_jobs_labels_and_the_owner_from_the_first_moment(cluster: scene.Cluster) -> None:
    cluster.play(started, Play.complete)
    launch()
    (job,) = cluster.jobs
    assert job["metadata"]["ownerReferences"] == [scene.WORKFLOW]
    assert job["spec"]["activeDeadlineSeconds"] == 4500
    pod = cluster.objects("pods")[-1]
    (container,) = pod["spec"]["containers"]
    digest = sha256(CONFIG)
    assert container["image"] == scene.IMAGE
    process_one, node = "convergate.components.process_one", "convergate.components.training.node"
    assert container["command"] == ["python", "-m", process_one, node]
    given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert json.loads(given.pop("--jobs"))[0]["result_uri"] == JOB.result_uri
    assert given == {
        "--config": "/etc/convergate/config.yaml",
        "--config-digest": digest,
        "--nodes": "2",
        "--procs-per-node": "2",
        "--max-restarts": "1",
        "--grace": "110",
        "--run-id": "digits-1",
    }
    (volume,) = [one for one in pod["spec"]["volumes"] if one["name"] == "convergate-config"]
    assert {"name": "convergate-config", "mountPath": "/etc/convergate", "readOnly": True} in container["volumeMounts"]
    (mounted,) = [
        one for one in cluster.objects("configmaps") if one["metadata"]["name"] == volume["configMap"]["name"]
    ]
    assert (mounted["data"], mounted["immutable"]) == ({"config.yaml": CONFIG}, True)
    labels = {"run-id": "digits-1", "phase": "train", "config-sha256": digest[:16], "experiment": "digits"}
    for one in (pod, job):
        assert (
            labels.items()
            <= {key.removeprefix("convergate.io/"): v for key, v in one["metadata"]["labels"].items()}.items()
        )
    assert "nvidia.com/gpu" not in str(container["resources"])


def test_it_asks_for_a_gpu_for_each_process_and_keeps_the_other_resources(
    cluster: scene.Cluster,
) -> None:
    def with_gpu(pod: dict[str, Any]) -> None:
        limits = {"cpu": "4", "memory": "16Gi"}
        pod["containers"][0]["resources"] = {"requests": limits, "limits": limits | {"nvidia.com/gpu": 1}}

    cluster.change_runtime(with_gpu)
    cluster.play(Play.complete)
    launch()
    assert cluster.jobs[0]["spec"]["trainer"]["resourcesPerNode"] == {
        "limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"},
        "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"},
    }


def test_a_runtime_whose_grace_is_too_short_for_a_save_is_refused(cluster: scene.Cluster) -> None:
    with pytest.raises(UserError, match="convergate-torch: terminationGracePeriodSeconds = 120 is .* → .*: 131"):
        launch(grace_seconds=130.2)
    assert cluster.jobs == []


@pytest.mark.parametrize(
    ("code", "message", "exit_code", "said"),
    [
        (1, "rank 1: ValueError: bad batch → mend it\n", ExitCode.NEGATIVE, "node 1: rank 1: ValueError: bad batch"),
        (2, "config: digest differs", ExitCode.USAGE, "node 1: config: digest differs"),
        (4, "S3 does not answer", ExitCode.OUTSIDE, "node 1: S3 does not answer"),
        (1, "", ExitCode.NEGATIVE, "node 1: exit code 1: RuntimeError: from the log"),
        (139, "", ExitCode.NEGATIVE, "node 1: ended by SIGSEGV: RuntimeError: from the log"),
    ],
)
def test_it_fails_with_the_first_error_of_the_first_failing_pod(
    cluster: scene.Cluster, code: int, message: str, exit_code: ExitCode, said: str
) -> None:
    cluster.play(
        started,
        lambda play: [play.log(1, "Traceback (most recent call last):", "RuntimeError: from the log", "bye")],
        lambda play: [play.end(1, code, message), play.end(0, 4, "rank 1 is gone"), play.fail()],
    )
    with pytest.raises(LaunchError, match=f"^{said}") as raised:
        launch()
    assert raised.value.exit_code == exit_code
    assert [one["metadata"]["name"] for one in cluster.jobs]  # left to be looked at


def test_what_the_others_made_of_it_is_not_the_first_error(cluster: scene.Cluster) -> None:
    cluster.play(
        started,
        lambda play: [play.end(0, 4, "the connection was lost"), play.end(1, 1, "rank 3: loss is NaN"), play.fail()],
    )
    with pytest.raises(LaunchError, match=r"^node 1: rank 3: loss is NaN$"):
        launch()


def test_memory_deadline_and_a_failure_without_pods_are_told_as_such(cluster: scene.Cluster) -> None:
    cluster.play(started, lambda play: [play.end(1, 137, reason="OOMKilled"), play.fail()])
    with pytest.raises(LaunchError, match="node 1: out of memory: .* → more memory"):
        launch()
    cluster.play(nothing, started, nothing, lambda play: play.fail("DeadlineExceeded", "was active too long"))
    with pytest.raises(LaunchError, match="deadline of 4500 s.* → raise budget.max_gpu_hours") as late:
        launch()
    assert late.value.exit_code == ExitCode.NEGATIVE
    cluster.play(nothing, nothing, nothing, lambda play: play.fail("TrainingRuntimeNotSupported", "no such plugin"))
    with pytest.raises(LaunchError, match="TrainingRuntimeNotSupported: no such plugin") as raised:
        launch()
    assert raised.value.exit_code == ExitCode.OUTSIDE


def test_a_deadline_that_passes_before_all_pods_ran_is_no_verdict_on_the_training(cluster: scene.Cluster) -> None:
    def one_alone(play: Play) -> None:
        play.pods(pending="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
        play.run(0)

    cluster.play(one_alone, nothing, lambda play: play.fail("DeadlineExceeded", "was active too long"))
    with pytest.raises(LaunchError) as raised:
        launch()
    assert raised.value.exit_code == ExitCode.OUTSIDE
    assert "its pods had never all run (1 of 2 pods pending: node 1: 0/3 nodes are available: 3 Insuff" in str(
        raised.value
    )
    assert "→ make room for them, or let it queue: CONVERGATE_QUEUE in ConfigMap convergate" in str(raised.value)


def test_a_lost_node_is_told_and_waited_through(cluster: scene.Cluster) -> None:
    cluster.play(
        started,
        lambda play: play.log(0, "step 1"),
        lambda play: play.lose_node(1),
        Play.restart,
        started,
        lambda play: play.log(0, "resumed at step 1"),
        Play.complete,
    )
    shown = launch()
    lost = [line for line in shown if "lost" in line]
    assert len(lost) == 1
    assert lost[0].startswith("node gpu-1 lost pod digits-1-train-")
    assert lost[0].endswith(
        "DeletionByTaintManager: Taint manager: deleting due to NoExecute taint; it is made anew once it has ended"
    )
    assert [line for line in shown if "step" in line] == ["step 1", "resumed at step 1"]
    assert "2 of 2 pods running, restart 1" in shown


def test_what_it_costs_is_the_time_of_its_pods_and_not_that_in_the_queue(cluster: scene.Cluster) -> None:
    used: list[float] = []

    def pods_end(play: Play) -> None:
        play.tick(600)
        play.end(0)
        play.tick(60)
        play.end(1)

    cluster.play(
        Play.suspend,
        lambda play: play.tick(3600),
        lambda play: [play.resume(), started(play)],
        lambda play: [play.tick(300), play.lose_node(1), play.end(1, 143), play.pods(1), play.run(1)],
        pods_end,
        Play.complete,
    )
    launch(on_usage=used.append)
    (node_seconds,) = used
    first, lost, second = 900, 300, 660
    assert node_seconds == pytest.approx(first + lost + second, abs=20)


def test_a_pod_that_is_gone_costs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        minute = 0

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return cls(2026, 1, 1, 12, cls.minute, tzinfo=tz)

    monkeypatch.setattr("convergate.components.training.trainjob.usage.datetime", Clock)
    state = {"running": {"startedAt": "2026-01-01T12:00:00Z"}}
    pods = [
        {"metadata": {"uid": place}, "status": {"containerStatuses": [{"name": "node", "state": state}]}}
        for place in "01"
    ]
    usage = Usage()
    usage.look(pods)
    for Clock.minute in (10, 20, 30):  # evicted by Kueue: gone between two looks, and then the queue
        usage.look([])
    assert usage.node_seconds() == 2 * 600
    usage.look(pods[:1])
    Clock.minute = 50
    assert usage.node_seconds() == 3000 + 600


def test_a_pod_that_leaves_is_not_taken_for_the_one_before_it_and_its_last_lines_are_shown(
    cluster: scene.Cluster,
) -> None:
    def first_fails(play: Play) -> None:
        play.log(0, "step 1")
        play.end(0, 4, "S3")
        play.pods(0)
        play.run(0)
        play.log(0, "step 2")

    def second_leaves(play: Play) -> None:
        cluster.api.store.holds = lambda pod: True
        cluster.delete_pod(play.pod(0))
        play.log(0, "saved step 3")

    def third(play: Play) -> None:
        cluster.api.store.holds = lambda pod: False
        play.pods(0)
        play.run(0)

    cluster.play(started, first_fails, second_leaves, nothing, third, Play.complete)
    shown = launch()
    assert shown[1:] == ["2 of 2 pods running", "step 2", "waiting for pods: 1 of 2 there", "saved step 3", shown[1]]


def test_a_pod_whose_node_never_tells_that_it_ended_is_named_with_what_to_do(cluster: scene.Cluster) -> None:
    def dies(play: Play) -> None:
        cluster.api.store.holds = lambda pod: True
        play.lose_node(1)
        cluster.delete_pod(play.pod(1))

    def is_deleted(play: Play) -> None:
        cluster.api.store.holds = lambda pod: False

    cluster.play(started, dies, *[lambda play: time.sleep(0.02)] * 10, is_deleted, Play.complete)
    shown = launch(pace=replace(FAST, ending=0.1))
    (told,) = [line for line in shown if "does not tell" in line]
    assert told.startswith("pod digits-1-train-")
    assert "kubectl taint node gpu-1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in told


def test_a_launch_waits_for_pods_that_an_earlier_one_left_saving(cluster: scene.Cluster) -> None:
    cluster.play(started, nothing)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(
            launcher, "delete_and_wait", lambda cluster, name, uid, *_: cluster.delete(cluster.trainjobs(name))
        )
        launch(on_line=lambda line: (_ for _ in ()).throw(KeyboardInterrupt) if "running" in line else None)
    assert cluster.jobs == []
    cluster.api.store.holds = lambda pod: True
    cluster.play(started, Play.complete)
    with pytest.raises(OutsideError, match="it or its pods do not go → is the node dead"):
        launch(pace=replace(FAST, ending=-119.9))
    assert cluster.jobs == []
    saving = iter([True] * 5)
    cluster.api.store.holds = lambda pod: next(saving, False)
    shown = launch()
    assert shown[0].endswith("are ending: waiting until they are gone")
    assert "created" in shown[1]


def test_a_node_lost_too_often_is_an_outside_failure(cluster: scene.Cluster) -> None:
    cluster.play(started, lambda play: [play.lose_node(1), play.end(0, 4, "rank 2 is gone"), play.fail()])
    with pytest.raises(LaunchError, match="node 0: rank 2 is gone|node gpu-1 lost pod") as raised:
        launch()
    assert raised.value.exit_code == ExitCode.OUTSIDE


def test_an_image_that_cannot_be_pulled_is_named_and_not_waited_for_for_good(cluster: scene.Cluster) -> None:
    shown: list[str] = []
    cluster.play(
        Play.pods,
        lambda play: play.waiting(0, "ErrImagePull", "no such host"),
        lambda play: play.waiting(0, "ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: no such host'),
        lambda play: play.waiting(0, "ErrImagePull", "no such host"),
        lambda play: play.waiting(0, "ImagePullBackOff", 'Back-off pulling image "x"'),
        lambda play: play.event("Pod", "{name}-node-0-0-00001", "Failed", "manifest unknown"),
    )
    with pytest.raises(LaunchError, match='ImagePullBackOff: Back-off pulling image "x" → check the image') as raised:
        launch(shown, pace=replace(FAST, stuck=0.5))
    assert raised.value.exit_code == ExitCode.USAGE
    assert any("manifest unknown" in line for line in shown)
    assert [line for line in shown if "pending: " in line] == ["2 of 2 pods pending: node 0: ImagePullBackOff"]
    assert cluster.jobs == []
    assert [one["metadata"]["name"] for one in cluster.objects("pods")] == [scene.POD]


def test_events_tell_why_there_are_no_pods(cluster: scene.Cluster) -> None:
    def refused(pod: str) -> str:
        return f'Error creating: pods "digits-1-node-{pod}" is forbidden: exceeded quota: gpus'

    cluster.play(
        lambda play: play.event("Job", "{name}-node-0", "FailedCreate", refused("0-0-nvlxr")),
        lambda play: play.event("Job", "{name}-node-0", "FailedCreate", refused("0-0-x8g4t")),
        lambda play: play.event("Job", "other-node-0", "FailedCreate", "not ours"),
        lambda play: play.event("Job", "{name}-node-0", "SuccessfulCreate", "fine", "Normal"),
        nothing,
        Play.complete,
    )
    shown = launch()
    assert [line for line in shown if "Job" in line and "created" not in line] == [
        f"Job {cluster.jobs[0]['metadata']['name']}-node-0: FailedCreate: {refused('0-0')}"
    ]


def test_a_retried_step_follows_the_job_that_is_there_and_takes_one_that_is_complete(cluster: scene.Cluster) -> None:
    def dies(line: str) -> None:
        if line == "2 of 2 pods running":
            raise KeyboardInterrupt

    cluster.play(started, nothing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "delete_and_wait", lambda *_: None)  # as SIGKILL leaves it
        with pytest.raises(KeyboardInterrupt):
            launch(on_line=dies)
    uid = cluster.jobs[0]["metadata"]["uid"]
    cluster.play(lambda play: play.log(0, "step 9"), Play.complete)
    shown = launch()
    assert "there already: followed on" in shown[0]
    assert "step 9" in shown
    assert "complete already" in launch()[0]
    assert [one["metadata"]["uid"] for one in cluster.jobs] == [uid]


def test_what_a_killed_step_left_running_can_be_deleted_at_the_end_of_the_run(cluster: scene.Cluster) -> None:
    def dies(line: str) -> None:
        if line == "2 of 2 pods running":
            raise KeyboardInterrupt

    for phase in ("canary", "train"):
        cluster.play(started, Play.complete if phase == "canary" else nothing)
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(launcher, "delete_and_wait", lambda *_: None)
            launch(phase=phase, on_line=dies if phase == "train" else print)
    lines: list[str] = []
    cluster.play()
    delete_leftovers("digits-1", lines.append, FAST)
    assert [line.partition(" was ")[2] for line in lines] == ["left running by a step that was killed: it is deleted"]
    delete_leftovers("another", lines.append, FAST)
    assert len(lines) == 1
    assert [one["metadata"]["name"].partition("-1-")[2][:6] for one in cluster.jobs if not gone(one)] == ["canary"]


def gone(job: dict[str, Any]) -> bool:
    return "deletionTimestamp" in job["metadata"]


def test_a_job_that_failed_or_was_asked_for_something_else_is_replaced(cluster: scene.Cluster) -> None:
    cluster.play(started, lambda play: [play.end(0, 1, "first"), play.fail()])
    with pytest.raises(LaunchError, match="first"):
        launch()
    cluster.play(nothing, started, Play.complete)
    shown = launch()
    assert "failed in an earlier try: it is deleted, and started anew" in shown[0]
    assert "created" in shown[1]
    cluster.play(nothing, started, Play.complete)
    assert "asked for another config or other jobs" in launch(nodes=3)[0]
    (job,) = cluster.jobs
    assert job["spec"]["trainer"]["numNodes"] == 3


def test_a_job_that_somebody_deletes_is_told(cluster: scene.Cluster) -> None:
    cluster.play(started, nothing, Play.delete)
    with pytest.raises(LaunchError, match="deleted by somebody while it ran") as raised:
        launch()
    assert raised.value.exit_code == ExitCode.OUTSIDE


def test_the_launcher_uses_every_right_that_its_role_gives_and_no_other(cluster: scene.Cluster) -> None:
    cluster.play(Play.pods, Play.run, lambda play: [play.log(0, "x"), play.end(0, 1, "first"), play.fail()])
    with pytest.raises(LaunchError):
        launch()
    cluster.play(nothing, started, Play.complete)
    launch()
    objects = scene.rendered("local")
    wanted = {
        (verb, group, resource)
        for one in objects
        if one["kind"].endswith("Role") and one["metadata"]["name"] in ("convergate-launch", "convergate-runtime")
        for rule in one["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert cluster.requests() == wanted
