"""Nodes as real processes on loopback: they train together, are lost, killed and told to stop, and never hang."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from convergate.components.errors import ExitCode
from convergate.components.storage import S3Location, S3Store
from convergate.components.training.job import Job, jobs_from_argument, jobs_to_argument
from convergate.pipelines import servers
from convergate.pipelines.servers import free_port

from ...two_nodes import EVERY, STEPS, TASK, Node, Outcome, config_text, make_job, node_arguments, outcome, result_of

Pair = Callable[..., tuple[Job, Node, Node]]


@pytest.fixture
def start_nodes(s3: str, tmp_path: Path) -> Iterator[Pair]:
    """Starts both nodes of a run."""
    (tmp_path / "slow_task.py").write_text(TASK)
    started: list[Node] = []

    def start(run_id: str, *more: str, **options: Any) -> tuple[Job, Node, Node]:
        text, place = config_text(s3), f"127.0.0.1:{free_port()}"
        (tmp_path / "config.yaml").write_text(text)
        job = make_job(s3, text, run_id).model_copy(update=options)
        for rank in range(2):
            arguments = [*node_arguments(text, job, "config.yaml", 2, rank, place), *more]
            started.append(Node(arguments, tmp_path, f"{run_id}-{rank}").start())
        return job, started[-2], started[-1]

    yield start
    for node in started:
        if node.process.poll() is None:
            node.kill()


@pytest.fixture(scope="module")
def whole(rclone_environment: servers.Environment, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same training by two processes of one node."""
    folder, root = tmp_path_factory.mktemp("whole"), f"s3://whole-{uuid4().hex[:12]}"
    text = config_text(root)
    (folder / "slow_task.py").write_text(TASK)
    (folder / "config.yaml").write_text(text)
    job = make_job(root, text, "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        for name, value in rclone_environment.items():
            patch.setenv(name, value)
        S3Store().ensure_bucket(S3Location.parse(root))
        node = Node(node_arguments(text, job, "config.yaml", 1, 0, "", procs=2), folder, "whole").start()
        assert node.end() == 0, node.lines
        return outcome(job)


def test_two_nodes_train_what_two_processes_of_one_do(start_nodes: Pair, whole: Outcome) -> None:
    job, first, second = start_nodes("run")
    assert (first.end(), second.end()) == (0, 0), (first.lines, second.lines)
    assert outcome(job) == whole
    assert whole.on_plan
    assert len(whole.rates) == 2 * STEPS
    assert any(line.startswith(f"step {STEPS}/{STEPS} lr=") for line in "".join(first.lines).splitlines())
    assert "step " not in "".join(second.lines), "rank 0 is on node 0"
    again = Node(second.arguments, second.folder, "again").start()
    assert again.end() == 0, "started again when the others have ended, it waits for nobody"


def test_sigterm_to_one_node_saves_on_both_and_a_start_again_continues(start_nodes: Pair, whole: Outcome) -> None:
    job, first, second = start_nodes("run")
    first.wait_for(f"step {EVERY}/")
    second.process.send_signal(signal.SIGTERM)
    assert (second.end(30), first.end(30)) == (ExitCode.TERMINATED, ExitCode.TERMINATED), first.lines
    saved = result_of(job)
    assert saved.status == "interrupted"
    assert EVERY <= saved.final_step < STEPS
    assert tuple(node.end() for node in (first.start(), second.start())) == (0, 0), (first.lines, second.lines)
    assert [(event.kind, event.step) for event in result_of(job).events] == [("resumed", saved.final_step)]
    assert outcome(job) == whole


def test_a_lost_node_is_waited_for_and_the_training_continues(start_nodes: Pair, whole: Outcome) -> None:
    job, first, second = start_nodes("run")
    first.wait_for(f"step {2 * EVERY}/")  # its save begins when that of the steps before is done
    second.kill()
    second.start()
    assert (first.end(), second.end()) == (0, 0), (first.lines, second.lines)
    result = result_of(job)
    assert result.attempts == 2
    assert next(event.step for event in result.events if event.kind == "resumed") >= EVERY
    assert outcome(job) == whole


def test_with_node_0_all_end_and_both_continue_when_started_again(start_nodes: Pair, whole: Outcome) -> None:
    job, first, second = start_nodes("run")
    first.wait_for(f"step {2 * EVERY}/")
    first.kill()
    assert second.end(60) == ExitCode.OUTSIDE, second.lines
    assert "→" in second.told
    assert tuple(node.end() for node in (first.start(), second.start())) == (0, 0), (first.lines, second.lines)
    assert outcome(job) == whole


def test_a_killed_worker_of_one_node_starts_those_of_all_again(start_nodes: Pair, whole: Outcome) -> None:
    """As in the canary's drill."""
    job, first, second = start_nodes("run", kill_at_step=2 * EVERY + 2)
    assert (first.end(), second.end()) == (0, 0), (first.lines, second.lines)
    assert result_of(job).attempts == 2
    assert outcome(job) == whole


def test_only_the_node_whose_own_worker_fails_for_good_ends_for_good(start_nodes: Pair) -> None:
    _, first, second = start_nodes("run", "--max-restarts", "0", kill_at_step=2)
    assert (first.end(60), second.end(60)) == (ExitCode.OUTSIDE, ExitCode.NEGATIVE), (first.lines, second.lines)
    assert second.told == "rank 1 was ended by SIGKILL: out of memory, or killed by hand"
    assert first.told.startswith("rank 0: the connection to another rank is lost: ")


def test_a_node_that_waits_in_vain_ends(s3: str, tmp_path: Path) -> None:
    """In the time that the config gives, with what it waited for; SIGTERM ends the wait."""
    text = config_text(s3, timeout_minutes=0.05)
    (tmp_path / "config.yaml").write_text(text)
    arguments = node_arguments(text, make_job(s3, text, "run"), "config.yaml", 2, 0, f"127.0.0.1:{free_port()}")
    alone = Node(arguments, tmp_path, "alone").start()
    assert alone.end(60) == ExitCode.OUTSIDE, alone.lines
    assert "not all nodes came to 127.0.0.1:" in alone.told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--config-digest", "0" * 64), "config.yaml: SHA-256 is {digest}, expected " + "0" * 64 + " → mount the"),
        (("--config", "absent.yaml"), "absent.yaml: cannot be read: No such file or directory → mount"),
        (("--jobs", '[{"run_id": "x"}]'), "--jobs: not a JSON list of this version's jobs: seed Field required → the"),
        (("--jobs", "{"), "--jobs: not a JSON list of this version's jobs"),
        (("--node-rank", "2"), "--node-rank = 2: there are 2 nodes → 0 to 1"),
        (("--rendezvous", "nowhere"), "--rendezvous = nowhere: no HOST:PORT → node 0's name"),
        (("--nodes", "0"), "Invalid value for '--nodes'"),
    ],
)
def test_what_only_the_user_can_mend_is_said_in_one_line(
    s3: str, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    text = config_text(s3)
    (tmp_path / "config.yaml").write_text(text)
    arguments = node_arguments(text, make_job(s3, text, "run"), "config.yaml", 2, 0, "127.0.0.1:1")
    digest = arguments[3]
    node = Node([*arguments, *change], tmp_path, "wrong").start()
    assert node.end(60) == ExitCode.USAGE
    assert message.format(digest=digest) in node.told
    assert node.told.count("\n") == 0
    assert f"convergate: {node.told}" in node.lines[-1]


def test_jobs_travel_as_one_argument_without_their_config() -> None:
    job = Job(
        run_id="run", config_text="text: 1\n", seed=5, checkpoint_uri="s3://c", trace_uri="s3://t", result_uri="s3://r"
    )
    jobs = [job, job.model_copy(update={"kill_at_step": 3, "oldest_attempt": 2})]
    argument = jobs_to_argument(jobs)
    assert "text" not in argument
    assert jobs_from_argument(argument, "text: 1\n") == jobs


def test_help_needs_no_torch() -> None:
    check = "import sys, convergate.components.training.node; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
