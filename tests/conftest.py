"""Real servers for tests: rclone and moto as S3, and MLflow. Each is started once a session, on first use."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from convergate.components.promotion.registry import wait_for_mlflow
from convergate.components.storage import S3Location, S3Store
from convergate.pipelines import servers

_LONG = ("tests/e2e/", "tests/components/training/", "tests/canary/")
_AMBIENT = ("AWS_", "S3_", "MLFLOW_", "CONVERGATE_")


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would every process of the tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first: the processes of a parallel run end together when the short ones come last."""
    items.sort(key=lambda item: next((n for n, part in enumerate(_LONG) if part in item.path.as_posix()), len(_LONG)))


@pytest.fixture(autouse=True)
def _nothing_ambient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches what the developer's environment points to."""
    for name in list(os.environ):
        if name.startswith(_AMBIENT):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # boto3's default session keeps the first credentials that it met, of another test's server.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.fixture(scope="session")
def rclone_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Environment]:
    """The variables that lead to a servers.running `rclone serve s3`."""
    with servers.s3_server(tmp_path_factory.mktemp("rclone")) as environment:
        yield environment


@pytest.fixture
def s3(rclone_environment: servers.Environment, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root URI in a fresh bucket of rclone, with the environment set to it."""
    return _fresh_bucket(rclone_environment, monkeypatch)


@pytest.fixture(scope="session")
def moto_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Environment]:
    """The variables that lead to a servers.running `moto_server`, which does honour conditional writes."""
    port = servers.free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("moto") / "moto.log"
    with ExitStack() as stack:
        _enter_untraced(stack, servers.running(command, log, {}, wait_for=port))
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }


@pytest.fixture
def moto(moto_environment: servers.Environment, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `s3`, on a server with conditional writes."""
    return _fresh_bucket(moto_environment, monkeypatch)


@pytest.fixture(scope="session")
def mlflow_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Environment]:
    """The variables that lead to an `mlflow server` on a fresh SQLite file; it may still be starting."""
    with ExitStack() as stack:
        yield _enter_untraced(stack, servers.mlflow_server(tmp_path_factory.mktemp("mlflow")))


@pytest.fixture
def mlflow_server(mlflow_environment: servers.Environment, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a running MLflow, with the environment set to it. Tests share it: use names of your own."""
    for name, value in mlflow_environment.items():
        monkeypatch.setenv(name, value)
    return wait_for_mlflow()


@pytest.fixture
def require_tool() -> Callable[[str], Path]:
    """Finds a program: where it is missing the test is skipped with the reason, or fails under CI=true."""

    def require(name: str) -> Path:
        found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if found is None:
            reason = f"{name} is not installed"
            if os.environ.get("CI") == "true":
                pytest.fail(f"{reason}, and CI has to have it")
            pytest.skip(reason)
        return Path(found)

    return require


def _enter_untraced(stack: ExitStack, server: AbstractContextManager[Any]) -> Any:
    """Start a server without coverage, which would only slow it down: the code in it is not ours."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
            patch.delenv(name)
        return stack.enter_context(server)


def _fresh_bucket(environment: servers.Environment, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    root = S3Location(f"test-{uuid4().hex[:12]}")
    S3Store().ensure_bucket(root)
    return str(root)
