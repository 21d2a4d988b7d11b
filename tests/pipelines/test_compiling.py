"""The compiled retrain pipeline, as the file that is uploaded: what every one of its steps has, and how it branches."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergate.pipelines.compiling import PIPELINES, compile_pipelines
from kfp import components

Node = dict[str, Any]
STEPS = {
    "open-run", "validate-config", "validate-data", "canary", "train", "find-champion", "evaluate", "gate", "promote",
    "close-run",
}  # fmt: skip
ON_A_GPU = {"canary", "train", "evaluate"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (file,) = compile_pipelines(tmp_path_factory.mktemp("ir"))
    return file


@pytest.fixture(scope="module")
def documents(file: Path) -> list[Node]:
    """The pipeline, and what Kubernetes has to know beside it."""
    return list(yaml.safe_load_all(file.read_text()))


@pytest.fixture(scope="module")
def pipeline(documents: list[Node]) -> Node:
    return documents[0]


@pytest.fixture(scope="module")
def tasks(pipeline: Node) -> dict[str, Node]:
    """Every task that runs a container, by its name."""
    dags = [pipeline["root"]["dag"], *(part["dag"] for part in pipeline["components"].values() if "dag" in part)]
    every = {name: task for dag in dags for name, task in dag["tasks"].items()}
    return {name: task for name, task in every.items() if "executorLabel" in _component(pipeline, task)}


def _component(pipeline: Node, task: Node) -> Node:
    found: Node = pipeline["components"][task["componentRef"]["name"]]
    return found


def _is_stop(name: str) -> bool:
    return re.fullmatch(r"stop(-\d+)?", name) is not None


def test_it_loads_as_a_component_with_what_a_person_fills_in(file: Path) -> None:
    loaded = components.load_component_from_file(str(file))
    assert loaded.name == "convergate-retrain"
    inputs = loaded.component_spec.inputs
    assert {name: spec.optional for name, spec in inputs.items()} == {
        "config": False, "run_id": True, "submitter": True,
    }  # fmt: skip
    assert {spec.type for spec in inputs.values()} == {"String"}


def test_every_pipeline_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert [path.name for path in compile_pipelines(tmp_path)] == [f"{name}.yaml" for name in PIPELINES]


def test_the_same_code_compiles_to_the_same_bytes(file: Path, tmp_path: Path) -> None:
    """Also in another process, with other hashes of strings."""
    command = [sys.executable, "-m", "convergate.cli.main", "compile", "-o", str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_the_steps_are_those_of_the_dag(tasks: dict[str, Node]) -> None:
    assert {name for name in tasks if not _is_stop(name)} == STEPS


def test_no_step_installs_anything_at_run_time(pipeline: Node) -> None:
    """Neither kfp nor anything else: a cluster may have no network."""
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        words = " ".join([*executor["container"]["command"], *executor["container"]["args"]])
        assert "kfp.dsl.executor_main" in words, name
        assert not re.search(r"\bpip3?\b|ensurepip|\bconda\b|\bapt(-get)?\b|\bcurl\b|\bwget\b", words), name


def test_nothing_is_cached(tasks: dict[str, Node]) -> None:
    """The key of KFP's cache does not hold what a step reads from S3, and every step has effects."""
    assert {name: task["cachingOptions"] for name, task in tasks.items()} == {name: {} for name in tasks}


def test_every_if_has_an_else_that_ends_red(pipeline: Node) -> None:
    branches = {name: part["dag"]["tasks"] for name, part in pipeline["components"].items() if "branches" in name}
    assert len(branches) == 5
    for name, branch in branches.items():
        conditions = {task["triggerPolicy"]["condition"]: task for task in branch.values()}
        (taken,) = [condition for condition in conditions if not condition.startswith("!")]
        assert set(conditions) == {taken, f"!({taken})"}, name
        assert re.fullmatch(r"inputs\.parameter_values\['pipelinechannel--[\w-]+-verdict'\] == 'PASS'", taken), name
        (red,) = _component(pipeline, conditions[f"!({taken})"])["dag"]["tasks"]
        assert _is_stop(red), name


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


def test_every_stop_is_told_why(pipeline: Node, tasks: dict[str, Node]) -> None:
    stops = {name: task for name, task in tasks.items() if _is_stop(name)}
    assert len(stops) == 5
    for name, task in stops.items():
        assert "reason" in str(task["inputs"]["parameters"]["reason"]), name


def test_a_step_is_retried_and_a_stop_is_not(tasks: dict[str, Node]) -> None:
    retries = {name: task["retryPolicy"].get("maxRetryCount", 0) for name, task in tasks.items()}
    assert retries == {name: 0 if _is_stop(name) else 2 for name in tasks}


def test_every_step_says_what_it_needs(pipeline: Node, tasks: dict[str, Node]) -> None:
    executors = pipeline["deploymentSpec"]["executors"]
    for name, task in tasks.items():
        resources = executors[_component(pipeline, task)["executorLabel"]]["container"]["resources"]
        for needed in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            assert resources[needed], (name, needed)
        wanted = {"resourceType": "nvidia.com/gpu", "resourceCount": "1"} if name in ON_A_GPU else {}
        assert {key: resources.get("accelerator", {}).get(key) for key in wanted} == wanted, name
        assert ("accelerator" in resources) == (name in ON_A_GPU), name


def test_every_step_has_an_end_in_time(documents: list[Node], pipeline: Node, tasks: dict[str, Node]) -> None:
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    seconds = {
        name: int(platform[_component(pipeline, task)["executorLabel"]]["activeDeadlineSeconds"])
        for name, task in tasks.items()
    }
    assert seconds.pop("train") == 24 * 3600
    assert {seconds.pop("canary"), seconds.pop("evaluate")} == {3600}
    assert set(seconds.values()) == {900}


def test_every_step_that_reads_or_writes_is_led_to_s3_and_mlflow(documents: list[Node]) -> None:
    """From objects of the run's namespace, which may be missing: a pod may have a role of its own."""
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in executors if not _is_stop(name.removeprefix("exec-"))} == STEPS
    for name, executor in executors.items():
        if _is_stop(name.removeprefix("exec-")):
            assert not {"configMapAsEnv", "secretAsEnv"} & set(executor), name
            continue
        (config_map,), (secret,) = executor["configMapAsEnv"], executor["secretAsEnv"]
        assert (config_map["configMapName"], config_map["optional"]) == ("convergate", True)
        assert {pair["configMapKey"]: pair["envVar"] for pair in config_map["keyToEnv"]} == {
            name: name for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "MLFLOW_TRACKING_URI")
        }
        assert (secret["secretName"], secret["optional"]) == ("convergate-s3", True)
        assert {pair["secretKey"]: pair["envVar"] for pair in secret["keyToEnv"]} == {
            name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        }


def test_images_are_pinned_and_those_with_torch_are_few(pipeline: Node) -> None:
    executors = pipeline["deploymentSpec"]["executors"]
    images = {name.removeprefix("exec-"): executor["container"]["image"] for name, executor in executors.items()}
    assert all(re.fullmatch(r"\S+:\d+\.\d+\.\d+", image) for image in images.values())
    assert {name for name, image in images.items() if "train" in image} == {*ON_A_GPU, "promote"}


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
    missing = {name for name, task in tasks.items() if "config" not in task["inputs"]["parameters"]}
    assert missing == {name for name in tasks if _is_stop(name)}
