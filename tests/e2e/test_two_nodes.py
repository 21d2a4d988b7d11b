"""Two containers as two nodes on a Docker network: one is killed and replaced; the network between them is cut.

The containers are what a cluster makes of the image: read-only, without rights, as nobody's user. S3 stands in a
third one, so that nothing of a test listens outside of its own network.
"""

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import docker
import pytest
from built_images import built_images
from convergate.components.errors import ExitCode
from convergate.components.storage import S3Location, S3Store
from convergate.components.training.job import Job

from ..two_nodes import EVERY, STEPS, TASK, config_text, make_job, node_arguments, outcome, result_of

RENDEZVOUS_PORT, S3_PORT = 29400, 9000
CUT_TIMEOUT_MINUTES = 0.25
CUT_SECONDS = 150
"""Both nodes have ended by then: a collective's timeout, twice the wait for the others, and what starts and ends."""


@dataclass
class Nodes:
    """A network with S3, and the containers of the nodes on it."""

    docker: Any
    image: str
    network: Any
    folder: Path
    variables: dict[str, str]
    containers: list[Any] = field(default_factory=list)

    def run(self, command: list[str], entrypoint: str, name: str, mounts: dict[str, str], **options: Any) -> Any:
        made = self.docker.containers.create(
            self.image,
            command,
            entrypoint=entrypoint,
            name=f"{self.network.name}-{name}-{len(self.containers)}",
            hostname=name,
            network=self.network.name,
            environment=self.variables,
            volumes={source: {"bind": target, "mode": "ro"} for source, target in mounts.items()},
            user="65532:65532",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            **options,
        )
        self.containers.append(made)
        made.start()
        made.reload()
        return made

    def node(self, job: Job, rank: int, host: str) -> Any:
        """Start node `rank`; `host` is node 0's container."""
        (self.folder / "config.yaml").write_text(job.config_text)
        arguments = node_arguments(
            job.config_text, job, "/etc/convergate/config.yaml", 2, rank, f"{host}:{RENDEZVOUS_PORT}"
        )
        return self.run(
            ["-m", "convergate.components.training.node", *arguments],
            "python",
            f"node-{rank}",
            {
                str(self.folder / "config.yaml"): "/etc/convergate/config.yaml",
                str(self.folder / "slow_task.py"): "/task/slow_task.py",
            },
            tmpfs={"/tmp": ""},  # noqa: S108 - the container's
            shm_size="256m",
            working_dir="/task",
        )

    def both(self, job: Job) -> tuple[Any, Any]:
        """Start both nodes."""
        host = f"{self.network.name}-node-0-{len(self.containers)}"
        return self.node(job, 0, host), self.node(job, 1, host)


@pytest.fixture
def nodes(require_tool: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    require_tool("docker")
    rclone = require_tool("rclone")
    _, image = built_images()
    client = docker.from_env()
    (tmp_path / "slow_task.py").write_text(TASK)
    key, secret = uuid4().hex[:16], uuid4().hex
    network = client.networks.create(f"convergate-{uuid4().hex[:8]}", driver="bridge", internal=True)
    made = Nodes(client, image, network, tmp_path, {"RCLONE_AUTH_KEY": f'"{key},{secret}"'})
    try:
        command = ["serve", "s3", "/data", "--addr", f":{S3_PORT}", "--config", "/dev/null", "--dir-cache-time", "1s"]
        s3 = made.run(command, "/rclone", "s3", {str(rclone): "/rclone"}, tmpfs={"/data": "uid=65532", "/tmp": ""})  # noqa: S108
        address = s3.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
        made.variables = {
            "AWS_ENDPOINT_URL": f"http://{address}:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }
        for name, value in made.variables.items():
            monkeypatch.setenv(name, value)
        made.variables["OMP_NUM_THREADS"] = "1"
        _wait_for(address)
        S3Store().ensure_bucket(S3Location("test"))
        yield made
    finally:
        for container in made.containers:
            container.remove(force=True)
        network.remove()


def _wait_for(address: str) -> None:
    until = monotonic() + 30
    while True:
        try:
            socket.create_connection((address, S3_PORT), 1).close()
        except OSError:
            assert monotonic() < until, "S3 does not start"
            sleep(0.1)
        else:
            return


def wait_for_line(container: Any, start: str) -> None:
    text = b""
    for chunk in container.logs(stream=True, follow=True):
        text += chunk
        if f"\n{start}".encode() in text:
            return
    raise AssertionError(text.decode())


def ended(container: Any, seconds: float = 120) -> tuple[int, str]:
    """Exit code and log."""
    code = container.wait(timeout=seconds)["StatusCode"]
    return code, container.logs().decode()


def test_a_killed_node_is_replaced_and_the_job_ends_with_the_same_rates_and_weights(nodes: Nodes) -> None:
    text = config_text("s3://test")
    undisturbed, killed = make_job("s3://test", text, "undisturbed"), make_job("s3://test", text, "killed")
    for node in nodes.both(undisturbed):
        assert ended(node)[0] == 0, ended(node)[1]
    first, second = nodes.both(killed)
    wait_for_line(first, f"step {2 * EVERY}/")
    second.kill()
    third = nodes.node(killed, 1, first.name)
    for node in (first, third):
        assert ended(node)[0] == 0, ended(node)[1]
    assert second.wait()["StatusCode"] == 128 + 9
    assert result_of(killed).attempts == 2
    assert next(event.step for event in result_of(killed).events if event.kind == "resumed") >= EVERY
    expected = outcome(undisturbed)
    assert outcome(killed) == expected
    assert expected.on_plan
    assert [rate[:2] for rate in sorted(expected.rates)] == [(rank, step) for rank in range(2) for step in range(STEPS)]


def test_a_cut_between_the_nodes_ends_both_in_bounded_time_with_the_ranks_named(nodes: Nodes) -> None:
    job = make_job("s3://test", config_text("s3://test", CUT_TIMEOUT_MINUTES), "cut")
    first, second = nodes.both(job)
    wait_for_line(first, f"step {EVERY}/")
    nodes.network.disconnect(second)
    (code, told), (other_code, other_told) = ended(first, CUT_SECONDS), ended(second, CUT_SECONDS)
    assert (code, other_code) == (ExitCode.OUTSIDE, ExitCode.OUTSIDE), told + other_told
    last, other_last = told.splitlines()[-1], other_told.splitlines()[-1]
    assert re.match(r"convergate: rank 0: a collective waits for rank 1 on node-1 at step \d+ in .*, silent", last)
    assert "convergate: rank 1: a collective timed out, and rank 0 on " in other_last
