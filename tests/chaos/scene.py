"""Where a trial of the checkpoints takes place: a real S3 server, the proxy before it, and timeouts that are short."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import sleep
from typing import Any, Self
from unittest import mock

from convergate.components.checkpoint import saver
from convergate.components.storage import client, streams, transfer
from convergate.pipelines import servers
from proxy import Proxy, running_proxy

PART_BYTES = 64 * 1024
"""Small parts, so that a small state has several."""
READ_SECONDS = 1
TRANSFER_SECONDS = 10.0
REPORT_SECONDS = 2.0
HELD_SECONDS = 30
RCLONE, SMALL_DISK, MOTO = "rclone", "rclone on a small disk", "moto, which honours If-None-Match"
DISK_BYTES = 3 * 2**20
_IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
_MOUNT = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$0" && exec "$@"'


def be_impatient() -> None:
    """Wait seconds where a training waits minutes; in this process, for good, and before it makes a client."""
    for module, name, value in (
        (client, "CONNECT_TIMEOUT_S", READ_SECONDS),
        (client, "READ_TIMEOUT_S", READ_SECONDS),
        (transfer, "BASE_SECONDS", TRANSFER_SECONDS),
        (saver, "REPORT_SECONDS", REPORT_SECONDS),
        (streams, "PART_BYTES", PART_BYTES),
    ):
        assert hasattr(module, name), f"{module.__name__} has no {name} any more"
        setattr(module, name, value)


@contextmanager
def patient() -> Iterator[None]:
    """Wait for every answer in here, so that a request that is held is not sent again."""
    with mock.patch.object(client, "READ_TIMEOUT_S", HELD_SECONDS):
        client._client.cache_clear()
        yield
    client._client.cache_clear()


class Scene:
    """A server, the proxy before it, and which of the two this process asks."""

    def __init__(self, home: Path, server: "Server", proxy: Proxy) -> None:
        self.home, self.server, self.proxy = home, server, proxy

    @property
    def secret(self) -> str:
        """What nobody may read anywhere."""
        return self.server.environment["AWS_SECRET_ACCESS_KEY"]

    def start_server(self, command: list[str]) -> None:
        """Start the server again, behind the same proxy."""
        self.server.start(command)
        self.proxy.upstream = self.server.port

    @contextmanager
    def proxied(self) -> Iterator[None]:
        """Ask the proxy in here."""
        with mock.patch.dict(os.environ, {**self.server.environment, "AWS_ENDPOINT_URL": self.proxy.url}):
            yield

    @contextmanager
    def direct(self) -> Iterator[None]:
        """Ask the server itself in here."""
        with mock.patch.dict(os.environ, self.server.environment):
            yield


@contextmanager
def scene(kind: str, home: Path) -> Iterator[Scene]:
    """A scene with a server of this kind, its data under `home`."""
    with Server(kind, home) as server, running_proxy(server.port) as proxy:
        yield Scene(home, server, proxy)


def why_no_small_disk() -> str:
    """Why a process cannot have a file system of its own here; empty where it can."""
    tried = subprocess.run([*_IN_A_NAMESPACE, _MOUNT, "/tmp", "true"], capture_output=True, text=True, check=False)  # noqa: S108
    return tried.stderr.strip() if tried.returncode else ""


@contextmanager
def _rclone_on_a_small_disk(home: Path) -> Iterator[servers.Environment]:
    """rclone with a file system of its own for its data; it ends with the process."""
    running, within = servers.running, [*_IN_A_NAMESPACE, _MOUNT, str(home / "s3")]

    def run(command: list[str], *arguments: Any, **options: Any) -> Any:
        return running([*within, *command], *arguments, **options)

    with ExitStack() as stack:
        with mock.patch.object(servers, "running", run):
            environment = stack.enter_context(servers.s3_server(home))
        yield environment


@contextmanager
def _moto(home: Path) -> Iterator[servers.Environment]:
    port = servers.free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    small_parts = {"S3_UPLOAD_PART_MIN_SIZE": "1"}
    with servers.running(command, home / "logs" / "moto.log", small_parts, wait_for=port):
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_REGION": "us-east-1",
        }


_SERVERS = {RCLONE: servers.s3_server, SMALL_DISK: _rclone_on_a_small_disk, MOTO: _moto}


class Server:
    """A server; `rclone` can be killed and started again on the same data."""

    def __init__(self, kind: str, home: Path) -> None:
        self._kind, self._home = kind, home
        self._stack = ExitStack()
        self.environment: servers.Environment = {}
        """The variables that lead to it, past the proxy."""

    def __enter__(self) -> Self:
        self.environment = self._stack.enter_context(_SERVERS[self._kind](self._home))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self.environment["AWS_ENDPOINT_URL"].rpartition(":")[2])

    def kill(self) -> list[str]:
        """SIGKILL; returns its command line, once it is gone."""
        pid, command = self._process()
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            while Path(f"/proc/{pid}/cmdline").read_bytes():  # a zombie's is empty
                sleep(0.001)
        return command

    def start(self, command: list[str]) -> None:
        """Start it again, on another port: a connection to somewhere may have been given the old one meanwhile."""
        port = servers.free_port()
        moved = [f"127.0.0.1:{port}" if argument == f"127.0.0.1:{self.port}" else argument for argument in command]
        keys = '"{AWS_ACCESS_KEY_ID},{AWS_SECRET_ACCESS_KEY}"'.format(**self.environment)
        log = self._home / "logs" / "s3.log"
        self._stack.enter_context(servers.running(moved, log, {"RCLONE_AUTH_KEY": keys}, wait_for=port))
        self.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"

    def _process(self) -> tuple[int, list[str]]:
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode().split("\0")[:-1] if entry.name.isdigit() else []
                if command and command[0].endswith("rclone") and f"127.0.0.1:{self.port}" in command:
                    return int(entry.name), command
        raise AssertionError("the server is not running")
