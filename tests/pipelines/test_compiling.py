"""The compiled pipelines, as the files that are uploaded: what every one of their steps has, and how they branch."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.components.access import ACCESS, kind_of
from convergate.pipelines.compiling import PIPELINES, compile_pipeline, compile_pipelines, pipeline_messages
from convergate.pipelines.placement import Placement, Toleration
from kfp import components

Node = dict[str, Any]
STEPS = {
    "retrain": {
        "open-run", "validate-config", "validate-data", "canary", "train", "find-champion", "evaluate", "gate",
        "promote", "close-run",
    },
    "canary": {"open-run", "validate-config", "validate-data", "canary", "passed", "close-run"},
}  # fmt: skip
ENDS = {"retrain": {"stop": 5, "stop-undecided": 2}, "canary": {"stop": 3, "stop-undecided": 1}}
COMPUTING = {"canary", "train", "evaluate"}
CONFIGURED = ["AWS_ENDPOINT_URL", "AWS_REGION"]
ON_A_GPU_CLUSTER = Placement(
    launcher="trainjob",
    gpus=4,
    node_selector=(("pool", "a100"),),
    tolerations=(Toleration("nvidia.com/gpu", "present", "NoSchedule"), Toleration("spot")),
    image_pull_secrets=("registry",),
    keep_days=7,
    labels=(("convergate.io/experiment", "digits"),),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return compile_pipelines(tmp_path_factory.mktemp("ir"))


@pytest.fixture(scope="module", params=PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def file(files: list[Path], name: str) -> Path:
    return files[PIPELINES.index(name)]


@pytest.fixture(scope="module")
def documents(file: Path) -> list[Node]:
    """The pipeline, and what Kubernetes has to know beside it."""
    return list(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader))


@pytest.fixture(scope="module")
def pipeline(documents: list[Node]) -> Node:
    return documents[0]


@pytest.fixture(scope="module")
def tasks(pipeline: Node) -> dict[str, Node]:
    """Every task that runs a container, by its name."""
    return _tasks(pipeline)


@pytest.fixture(scope="module")
def pods(documents: list[Node]) -> dict[str, Node]:
    """What Kubernetes has to know of each task."""
    return _pods(documents[1], _tasks(documents[0]))


@pytest.fixture(scope="module")
def on_gpus(tmp_path_factory: pytest.TempPathFactory) -> list[Node]:
    file = compile_pipeline("retrain", tmp_path_factory.mktemp("gpu") / "retrain.yaml", ON_A_GPU_CLUSTER)
    return list(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader))


def _tasks(pipeline: Node) -> dict[str, Node]:
    dags = [pipeline["root"]["dag"], *(part["dag"] for part in pipeline["components"].values() if "dag" in part)]
    every = {name: task for dag in dags for name, task in dag["tasks"].items()}
    return {name: task for name, task in every.items() if "executorLabel" in _component(pipeline, task)}


def _pods(platform: Node, tasks: dict[str, Node]) -> dict[str, Node]:
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        name: executors[f"exec-{task['componentRef']['name'].removeprefix('comp-')}"] for name, task in tasks.items()
    }


def _container(pipeline: Node, task: Node) -> Node:
    container: Node = pipeline["deploymentSpec"]["executors"][_component(pipeline, task)["executorLabel"]]["container"]
    return container


def _component(pipeline: Node, task: Node) -> Node:
    found: Node = pipeline["components"][task["componentRef"]["name"]]
    return found


def _is_stop(name: str) -> bool:
    return re.fullmatch(r"stop(-undecided)?(-\d+)?", name) is not None


def _has_no_kind(name: str) -> bool:
    return _is_stop(name) or name == "passed"


def test_it_loads_as_a_component_with_what_a_person_fills_in(file: Path, name: str) -> None:
    loaded = components.load_component_from_file(str(file))
    assert loaded.name == f"convergate-{name}"
    inputs = loaded.component_spec.inputs
    assert {name: spec.optional for name, spec in inputs.items()} == {
        "config": False, "run_id": True, "submitter": True,
    }  # fmt: skip
    assert {spec.type for spec in inputs.values()} == {"String"}


def test_everything_that_a_person_sees_explains_itself(pipeline: Node, tasks: dict[str, Node]) -> None:
    """In the UI: the pipeline, what it is given, every step, and what goes into it."""
    assert len(pipeline["pipelineInfo"]["description"]) > 60
    assert pipeline["pipelineInfo"]["displayName"].startswith("convergate: ")
    for parameter in pipeline["root"]["inputDefinitions"]["parameters"].values():
        assert len(parameter["description"]) > 20
    for name, task in tasks.items():
        assert not {"_", "-"} & set(task["taskInfo"]["name"]), name
        given = _component(pipeline, task).get("inputDefinitions", {})
        for inputs in given.values():
            assert all(one["description"] for one in inputs.values()), name


def test_every_pipeline_and_every_step_has_a_file_of_its_own(files: list[Path]) -> None:
    folder = files[0].parent
    steps = {step for every in STEPS.values() for step in every} | {"stop", "stop-undecided"}
    names = [f"{name}.yaml" for name in PIPELINES]
    names += sorted(f"components/{step.replace('-', '_')}.yaml" for step in steps)
    assert [str(file.relative_to(folder)) for file in files] == names
    for file in files[len(PIPELINES) :]:
        loaded = components.load_component_from_file(str(file))
        assert loaded.name == file.stem.replace("_", "-")
        assert loaded.description


def test_what_is_submitted_is_what_is_written(documents: list[Node], name: str) -> None:
    messages = pipeline_messages(name, Placement())
    assert [messages["pipeline_spec"], messages["platform_spec"]] == documents


def test_the_same_code_compiles_to_the_same_bytes(files: list[Path], tmp_path: Path) -> None:
    """Also in another process, with other hashes of strings."""
    command = [sys.executable, "-m", "convergate.cli.main", "compile", "-o", str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    for file in files:
        assert (tmp_path / file.relative_to(files[0].parent)).read_bytes() == file.read_bytes()


def test_the_steps_are_those_of_the_dag(tasks: dict[str, Node], name: str) -> None:
    assert {step for step in tasks if not _is_stop(step)} == STEPS[name]


def test_no_step_installs_anything_at_run_time(pipeline: Node) -> None:
    """Neither kfp nor anything else: a cluster may have no network."""
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        words = " ".join([*executor["container"]["command"], *executor["container"]["args"]])
        assert "kfp.dsl.executor_main" in words, name
        assert not re.search(r"\bpip3?\b|ensurepip|\bconda\b|\bapt(-get)?\b|\bcurl\b|\bwget\b", words), name


def test_nothing_is_cached(tasks: dict[str, Node]) -> None:
    """The key of KFP's cache does not hold what a step reads from S3, and every step has effects."""
    assert {name: task["cachingOptions"] for name, task in tasks.items()} == {name: {} for name in tasks}


def test_every_gate_goes_on_at_pass_alone_and_else_ends_red(pipeline: Node) -> None:
    """A gate that may not be able to tell has a red end of its own for that, which is whatever is neither."""
    branches = {name: part["dag"]["tasks"] for name, part in pipeline["components"].items() if "branches" in name}
    assert len(branches) in (3, 5)
    for name, branch in branches.items():
        conditions = {task["triggerPolicy"]["condition"]: task for task in branch.values()}
        (taken,) = [condition for condition in conditions if not condition.startswith("!")]
        match = re.fullmatch(r"(inputs\.parameter_values\['pipelinechannel--[\w-]+-verdict'\]) == 'PASS'", taken)
        assert match, name
        negative = f"!({taken}) && {match[1]} == 'FAIL'"
        rest = f"!({taken}) && !({match[1]} == 'FAIL')" if negative in conditions else f"!({taken})"
        assert set(conditions) in ({taken, rest}, {taken, negative, rest}), name
        cannot_tell = "canary-verdict" in taken or "gate-verdict" in taken
        assert (negative in conditions) == cannot_tell, name
        for condition in {negative, rest} & set(conditions):
            (red,) = _component(pipeline, conditions[condition])["dag"]["tasks"]
            wanted = "stop-undecided" if cannot_tell and condition == rest else "stop"
            assert re.fullmatch(rf"{wanted}(-\d+)?", red), name


def test_no_condition_stands_alone(pipeline: Node) -> None:
    """An If without an Else on a named output is skipped in silence."""
    parts = {
        name: part["dag"]
        for name, part in {**pipeline["components"], "root": pipeline["root"]}.items()
        if "dag" in part
    }
    for name, dag in parts.items():
        conditional = [task for task in dag["tasks"].values() if "condition" in task.get("triggerPolicy", {})]
        assert bool(conditional) == ("branches" in name), name


def test_every_stop_is_told_why(tasks: dict[str, Node], name: str) -> None:
    stops = {step: task for step, task in tasks.items() if _is_stop(step)}
    for step, number in ENDS[name].items():
        assert len([one for one in stops if re.fullmatch(rf"{step}(-\d+)?", one)]) == number
    for step, task in stops.items():
        assert "reason" in str(task["inputs"]["parameters"]["reason"]), step


def test_a_step_is_retried_and_a_stop_is_not(tasks: dict[str, Node]) -> None:
    retries = {name: task["retryPolicy"].get("maxRetryCount", 0) for name, task in tasks.items()}
    assert retries == {name: 0 if _has_no_kind(name) else 2 for name in tasks}


def test_all_attempts_have_their_time(tasks: dict[str, Node], pods: dict[str, Node]) -> None:
    """Argo counts the longest time for retries from the first attempt's start."""
    for name, task in tasks.items():
        attempts = task["retryPolicy"].get("maxRetryCount", 0) + 1
        most = int(task["retryPolicy"]["backoffMaxDuration"].removesuffix("s"))
        assert most > attempts * int(pods[name]["activeDeadlineSeconds"]), name


def test_every_step_says_what_it_needs(pipeline: Node, tasks: dict[str, Node]) -> None:
    for name, task in tasks.items():
        resources = _container(pipeline, task)["resources"]
        for needed in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            assert resources[needed], (name, needed)
        wanted = {"resourceType": "nvidia.com/gpu", "resourceCount": "1"} if name in COMPUTING else {}
        assert {key: resources.get("accelerator", {}).get(key) for key in wanted} == wanted, name
        assert ("accelerator" in resources) == (name in COMPUTING), name


def test_every_step_has_an_end_in_time(pods: dict[str, Node]) -> None:
    hours = {"train": 24, "canary": 1, "evaluate": 1}
    assert {name: int(pod["activeDeadlineSeconds"]) for name, pod in pods.items()} == {
        name: hours[name] * 3600 if name in hours else 900 for name in pods
    }


def test_each_step_has_the_environment_of_its_kind_and_no_other(pods: dict[str, Node]) -> None:
    """From objects of the run's namespace, which may be missing: a pod may have a role of its own."""
    for name, pod in pods.items():
        if _has_no_kind(name):
            assert not {"configMapAsEnv", "secretAsEnv"} & set(pod), name
            continue
        kind = kind_of(name.replace("-", "_"))
        (config_map,), secrets = pod["configMapAsEnv"], pod["secretAsEnv"]
        assert (config_map["configMapName"], config_map["optional"]) == ("convergate", True)
        variables = {pair["configMapKey"]: pair["envVar"] for pair in config_map["keyToEnv"]}
        assert all(key == variable for key, variable in variables.items())
        assert set(CONFIGURED) < set(variables)
        assert ("MLFLOW_TRACKING_URI" in variables) == ACCESS[kind].mlflow, name
        assert all(secret["optional"] for secret in secrets)
        keys = {secret["secretName"]: [pair["secretKey"] for pair in secret["keyToEnv"]] for secret in secrets}
        assert keys.pop(f"convergate-s3-{kind}") == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], name
        assert list(keys) == (["convergate-mlflow"] if kind in ("ledger", "promote") else []), name


def test_no_step_is_root_or_without_a_place_to_write(pods: dict[str, Node]) -> None:
    writable, shared = "/tmp", "/dev/shm"  # noqa: S108 - volumes
    for name, pod in pods.items():
        assert pod["securityContext"] == {"runAsUser": "65532", "runAsGroup": "65532", "runAsNonRoot": True}, name
        assert pod["imagePullPolicy"] == "IfNotPresent", name
        mounts = {mount["mountPath"]: mount.get("medium") for mount in pod["emptyDirMounts"]}
        assert mounts == {writable: None, **({shared: "Memory"} if name in COMPUTING else {})}, name


def test_pods_are_labelled_by_kind(pods: dict[str, Node]) -> None:
    for name, pod in pods.items():
        kind = "stop" if _has_no_kind(name) else kind_of(name.replace("-", "_"))
        assert pod["podMetadata"]["labels"] == {
            "app.kubernetes.io/name": "convergate",
            "app.kubernetes.io/component": kind,
        }, name


class TestOnAGpuClusterWithTrainJobs:
    def test_canary_and_train_are_light_and_know_their_pod(self, on_gpus: list[Node]) -> None:
        tasks = _tasks(on_gpus[0])
        pods = _pods(on_gpus[1], tasks)
        for name, hours in (("canary", 6), ("train", 48)):
            container, pod = _container(on_gpus[0], tasks[name]), pods[name]
            assert container["env"] == [{"name": "CONVERGATE_LAUNCHER", "value": "trainjob"}]
            assert "accelerator" not in container["resources"]
            assert (container["resources"]["resourceCpuLimit"], container["resources"]["resourceMemoryLimit"]) == (
                "1", "2Gi",
            )  # fmt: skip
            assert {one["name"]: one["fieldPath"] for one in pod["fieldPathAsEnv"]} == {
                "POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace",
            }  # fmt: skip
            assert not {"nodeSelector", "tolerations"} & set(pod)
            assert int(pod["activeDeadlineSeconds"]) == hours * 3600
            assert tasks[name]["retryPolicy"]["maxRetryCount"] == 2

    def test_the_end_of_the_run_can_find_what_was_left_running(self, on_gpus: list[Node]) -> None:
        paths = _pods(on_gpus[1], _tasks(on_gpus[0]))["close-run"]["fieldPathAsEnv"]
        assert {one["name"] for one in paths} == {"POD_NAME", "POD_NAMESPACE"}

    def test_evaluate_keeps_one_gpu_where_gpus_are(self, on_gpus: list[Node]) -> None:
        tasks = _tasks(on_gpus[0])
        pod = _pods(on_gpus[1], tasks)["evaluate"]
        resources = _container(on_gpus[0], tasks["evaluate"])["resources"]
        assert resources["accelerator"]["resourceCount"] == "1"
        assert pod["nodeSelector"]["labels"] == {"pool": "a100"}
        assert pod["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"},
            {"key": "spot", "operator": "Exists"},
        ]

    def test_what_a_run_leaves_is_kept_for_a_while(self, on_gpus: list[Node]) -> None:
        kept = on_gpus[1]["platforms"]["kubernetes"]["pipelineConfig"]
        assert kept == dict.fromkeys(
            (f"resourceTtlOn{end}" for end in ("Completion", "Success", "Failure")), 7 * 24 * 3600
        )

    def test_every_pod_has_what_is_for_all(self, on_gpus: list[Node]) -> None:
        for name, pod in _pods(on_gpus[1], _tasks(on_gpus[0])).items():
            assert pod["podMetadata"]["labels"]["convergate.io/experiment"] == "digits", name
            assert [secret["secretName"] for secret in pod["imagePullSecret"]] == ["registry"], name


@pytest.mark.parametrize(("gpus", "train"), [(0, None), (8, "8")])
def test_the_local_launcher_has_the_gpus_in_its_own_pod(tmp_path: Path, gpus: int, train: str | None) -> None:
    placement = Placement(gpus=gpus, gpu_type="NVIDIA_L4", node_selector=(("pool", "a100"),))
    spec, platform = yaml.safe_load_all(compile_pipeline("retrain", tmp_path / "r.yaml", placement).read_text())
    tasks = _tasks(spec)
    for name, count in (("canary", train), ("train", train), ("evaluate", train and "1")):
        accelerator = _container(spec, tasks[name])["resources"].get("accelerator", {})
        assert accelerator.get("resourceCount") == count, name
        assert accelerator.get("resourceType") == (count and "NVIDIA_L4"), name
        assert _pods(platform, tasks)[name]["nodeSelector"]["labels"] == {"pool": "a100"}


def test_images_are_pinned_and_those_with_torch_are_few(pipeline: Node) -> None:
    executors = pipeline["deploymentSpec"]["executors"]
    images = {name.removeprefix("exec-"): executor["container"]["image"] for name, executor in executors.items()}
    assert all(re.fullmatch(r"\S+:\d+\.\d+\.\d+", image) for image in images.values())
    assert {name for name, image in images.items() if "train" in image} == {*COMPUTING, "promote"} & set(images)


def test_the_run_is_closed_whatever_happened(pipeline: Node) -> None:
    """The exit handler depends on everything, reads the pipeline's own inputs alone, and learns how it ended."""
    close = pipeline["root"]["dag"]["tasks"]["close-run"]
    assert close["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    (handled,) = close["dependentTasks"]
    assert set(pipeline["root"]["dag"]["tasks"]) == {"close-run", handled}
    assert close["inputs"]["parameters"] == {
        "config": {"componentInputParameter": "config"},
        "run_id": {"componentInputParameter": "run_id"},
        "job_id": {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}},
        "status": {"taskFinalStatus": {"producerTask": handled}},
    }


def test_every_step_gets_the_config(tasks: dict[str, Node]) -> None:
    missing = {name for name, task in tasks.items() if "config" not in task.get("inputs", {}).get("parameters", {})}
    assert missing == {name for name in tasks if _has_no_kind(name)}
