"""A third real server, which compares checksums, and a proxy in front of any of them that injects faults."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from convergate.components.storage import checksums, client, transfer
from convergate.pipelines import servers
from proxy import Proxy, running_proxy

SINK = Path(__file__).parents[2] / "bench" / "sink.py"


@pytest.fixture(autouse=True)
def _nothing_known_of_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port may have been another server's in another test."""
    monkeypatch.setattr(checksums, "_answers", {})


@pytest.fixture(scope="session")
def sink_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Environment]:
    """The variables that lead to a server that refuses bytes which do not match their CRC64-NVME."""
    port = servers.free_port()
    log = tmp_path_factory.mktemp("sink") / "sink.log"
    with servers.running([sys.executable, str(SINK), str(port)], log, {}, wait_for=port):
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }


@pytest.fixture
def sink(sink_environment: servers.Environment, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `s3`, on a server that compares checksums."""
    for name, value in sink_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://test-{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def _proxies() -> Iterator[Callable[[int], Proxy]]:
    """A proxy for each server, by its port."""
    with ExitStack() as stack:
        yield cache(lambda port: stack.enter_context(running_proxy(port)))


@pytest.fixture
def through_proxy(_proxies: Callable[[int], Proxy], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Proxy]:
    """Puts a proxy in front of the server that the environment leads to."""

    def put() -> Proxy:
        proxy = _proxies(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy

    return put


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying again costs no time, in clients of their own and in transfers."""
    monkeypatch.setenv("CONVERGATE_S3_ADDRESSING", "path")
    monkeypatch.setattr(client, "SystemRandom", lambda: SimpleNamespace(random=lambda: 0.0))
    monkeypatch.setattr(transfer, "SystemRandom", lambda: SimpleNamespace(uniform=lambda *_: 0.0))
