"""Real runs of the WorkflowTemplates: every command as a process, on real servers, in Argo's order."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from argo_workflow import UID, Execute, Node, PodFailedError, Workflow
from built_images import built_images
from convergate.components import access
from convergate.components.step_command import OUTPUTS
from convergate.components.storage import RunStore, S3Store
from convergate.pipelines.closing import load_page

from ..documents import config_text

RETRAIN = Path(__file__).parents[2] / "manifests" / "argo" / "retrain.yaml"


@pytest.fixture
def pods(tmp_path: Path, s3: str, mlflow_server: str) -> Callable[[str], Execute]:
    """Runs templates as processes, given the text of the config that is mounted."""

    def mounted(text: str) -> Execute:
        config = tmp_path / "config.yaml"
        config.write_text(text)
        number = itertools.count()

        def execute(_name: str, template: Node) -> dict[str, str]:
            container, outputs = template["container"], tmp_path / f"pod-{next(number)}"
            command, arguments = container["command"], container.get("args", [])
            assert command[:2] == ["python", "-m"]
            given = [argument.replace("/etc/convergate/config.yaml", str(config)) for argument in arguments]
            own = {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}
            environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")} | own
            done = subprocess.run(
                [sys.executable, *command[1:], *given, f"--outputs={outputs}"],
                env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
            )  # fmt: skip
            if done.returncode:
                raise PodFailedError(f"main: Error (exit code {done.returncode}): {done.stderr.strip()}")
            paths = {one["name"]: one["valueFrom"]["path"] for one in template.get("outputs", {}).get("parameters", [])}
            return {name: (outputs / Path(path).relative_to(OUTPUTS)).read_text() for name, path in paths.items()}

        return execute

    return mounted


@pytest.fixture(scope="module")
def retrain() -> Node:
    found: Node = yaml.safe_load(RETRAIN.read_text())
    return found


def test_a_whole_retraining(retrain: Node, s3: str, pods: Callable[[str], Execute]) -> None:
    text = config_text(s3, name="argo").replace("target: 0.95", "target: 0.2") + "canary: {procs_per_node: 1}\n"
    workflow = Workflow(retrain, {"config-map": "c", "submitter": "ada"}, pods(text))
    assert workflow.run() == "Succeeded", workflow.phases
    assert workflow.started == [
        "open-run", "validate-config", "validate-data", "canary", "train", "find-champion", "evaluate", "gate",
        "promote", "close-run",
    ]  # fmt: skip
    page = load_page(text, s3, UID)
    assert page.start is not None
    assert page.start.submitter == "ada"
    assert page.decision is not None
    assert page.promotion is not None
    assert (page.decision.decision, page.promotion.alias) == ("CHALLENGER", "challenger")
    assert page.end is not None
    assert page.end.run_class == "converged"
    assert "champion" in RunStore(s3, UID).names()


def test_a_canary_that_fails_ends_red_and_is_closed(retrain: Node, s3: str, pods: Callable[[str], Execute]) -> None:
    text = config_text(s3, name="argo-hot").replace("lr0: 0.1", "lr0: 5000.0") + "canary: {procs_per_node: 1}\n"
    said = []
    execute = pods(text)

    def listening(name: str, template: Node) -> dict[str, str]:
        try:
            return execute(name, template)
        except PodFailedError as error:
            said.append(str(error))
            raise

    workflow = Workflow(retrain, {"config-map": "c", "run-id": "hot-1"}, listening)
    assert workflow.run() == "Failed"
    assert workflow.started == ["open-run", "validate-config", "validate-data", "canary", "stop-canary", "close-run"]
    page = load_page(text, s3, "hot-1")
    assert page.canary is not None
    assert said == [f"main: Error (exit code 1): convergate: stopped: {page.canary.reason}"]
    assert page.end is not None
    assert (page.end.run_class, page.end.reason) == ("rejected", f"canary FAIL: {page.canary.reason}")


def test_a_workflow_that_a_person_stops_is_interrupted(retrain: Node, s3: str, pods: Callable[[str], Execute]) -> None:
    text = config_text(s3, name="argo-stopped")
    workflow = Workflow(retrain, {"config-map": "c"}, pods(text), stopped_before="validate-data")
    assert workflow.run() == "Failed"
    assert workflow.started == ["open-run", "validate-config", "close-run"]
    end = load_page(text, s3, UID).end
    assert end is not None
    assert end.run_class == "interrupted"
    assert S3Store().exists(RunStore(s3, UID).prefix / "report.html")


def test_one_stopped_in_the_wait_for_a_retry_is_interrupted_too(
    retrain: Node, s3: str, pods: Callable[[str], Execute]
) -> None:
    """Argo says that in other words: `Stopped with strategy 'Stop'`, of the step that waited."""
    text = config_text(s3, name="argo-waiting")
    execute = pods(text)

    def breaking(name: str, template: Node) -> dict[str, str]:
        if name == "canary":
            raise PodFailedError("main: Error (exit code 137)")
        return execute(name, template)

    workflow = Workflow(retrain, {"config-map": "c"}, breaking, stopped_in_retry_of="canary")
    assert workflow.run() == "Failed"
    assert workflow.started == ["open-run", "validate-config", "validate-data", "canary", "close-run"]
    end = load_page(text, s3, UID).end
    assert end is not None
    assert end.run_class == "interrupted"


@pytest.fixture
def containers(
    tmp_path: Path, s3: str, mlflow_server: str, require_tool: Callable[[str], Path]
) -> Iterator[Callable[[str], Execute]]:
    """Runs templates in their images, with the objects that they name: ConfigMap, Secrets, volumes."""
    require_tool("docker")
    built_images()
    label = f"convergate-test-{uuid4().hex}"
    settings = {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "MLFLOW_TRACKING_URI")}
    keys = {name: os.environ[name] for name in access.S3_KEYS}
    objects = {"convergate": settings, **{access.s3_secret(kind): keys for kind in access.ACCESS}}

    def mounted(text: str) -> Execute:
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "config.yaml").write_text(text)
        number = itertools.count()

        def execute(name: str, template: Node) -> dict[str, str]:
            pod = f"pod-{next(number)}-{name}"
            volumes = {"config": tmp_path / "config"}
            for volume in template["volumes"]:
                volumes[volume["name"]] = tmp_path / pod / volume["name"]
                volumes[volume["name"]].mkdir(parents=True)
                volumes[volume["name"]].chmod(0o777)
            command = ["docker", "run", "--rm", "--network=host", f"--label={label}"]
            command += _of_docker(template, objects, volumes)
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            if done.returncode:
                raise PodFailedError(f"main: Error (exit code {done.returncode}): {done.stderr.strip()}")
            outputs = template.get("outputs", {}).get("parameters", [])
            paths = {one["name"]: Path(one["valueFrom"]["path"]).relative_to("/tmp") for one in outputs}  # noqa: S108
            return {output: (volumes["tmp"] / path).read_text() for output, path in paths.items()}

        return execute

    try:
        yield mounted
    finally:
        left = subprocess.run(
            ["docker", "ps", "--all", "--quiet", "--filter", f"label={label}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        if left:
            subprocess.run(["docker", "rm", "--force", *left], check=True, capture_output=True)


def _of_docker(template: Node, objects: dict[str, dict[str, str]], volumes: dict[str, Path]) -> list[str]:
    """The options of `docker run` that say what a template's container says."""
    container = template["container"]
    security = container["securityContext"]
    words = ["--user", f"{security['runAsUser']}:{security['runAsGroup']}"]
    words += [word for capability in security["capabilities"]["drop"] for word in ("--cap-drop", capability)]
    words += ["--read-only"] if security["readOnlyRootFilesystem"] else []
    words += [] if security["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
    for mount in container["volumeMounts"]:
        words += ["--volume", f"{volumes[mount['name']]}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}"]
    for variable in container.get("env", []):
        if "value" in variable:
            words += ["--env", f"{variable['name']}={variable['value']}"]
            continue
        (source,) = variable["valueFrom"].values()
        assert source["optional"]
        if source["key"] in objects.get(source["name"], {}):
            words += ["--env", f"{variable['name']}={objects[source['name']][source['key']]}"]
    command, *rest = container["command"]
    return [*words, "--entrypoint", command, container["image"], *rest, *container.get("args", [])]


def test_the_pods_run_in_their_images(retrain: Node, s3: str, containers: Callable[[str], Execute]) -> None:
    """The templates word for word, to the canary: without rights, with a read-only root, on the keys of their kind."""
    text = config_text(s3, name="argo-images")
    workflow = Workflow(retrain, {"config-map": "c"}, containers(text), stopped_before="canary")
    assert workflow.run() == "Failed"
    assert workflow.started == ["open-run", "validate-config", "validate-data", "close-run"]
    page = load_page(text, s3, UID)
    assert page.plan is not None
    assert page.plan.image == built_images()[0]
    assert page.end is not None
    assert page.end.run_class == "interrupted"
