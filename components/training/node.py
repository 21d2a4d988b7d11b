"""What a node of a distributed training runs, such as a TrainJob's pod: torchrun's agent and its workers.

    python -m convergate.components.training.node --config FILE --config-digest SHA256 --jobs JSON
        --nodes N --procs-per-node P --rendezvous HOST:PORT --node-rank R

Every node runs the same command; place and rank of the rendezvous come from PET_MASTER_ADDR, PET_MASTER_PORT and
PET_NODE_RANK where the arguments leave them out, as Kubeflow's Trainer sets them.

It ends with
    0    every job ended with a result on S3 that all ranks agreed on; its verdict, PASS or FAIL, stands there
    1    this node's workers failed more than --max-restarts times, for a cause of their own
    2    arguments, config or task are wrong: only the user can mend that
    4    another node or S3 is lost, or the nodes did not meet: a start of the node again may cure it
    143  a node got SIGTERM, and all ranks saved: a start again continues from there
and leaves its last error in the file that CONVERGATE_TERMINATION_LOG names, where Kubernetes shows it.
"""

import hashlib
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import click
from pydantic import ValidationError

from ..errors import ConvergateError, ExitCode, UserError
from ..storage import S3Location, S3NotFoundError, S3Store
from .job import Job, jobs_from_argument
from .launch import GRACE_SECONDS, KILL_SECONDS, launch
from .rendezvous import Rendezvous
from .result import TrainingResult

TERMINATION_LOG_VARIABLE = "CONVERGATE_TERMINATION_LOG"
TERMINATION_LOG = "/dev/termination-log"
"""Kubernetes' own."""
TERMINATION_BYTES = 4096
"""What Kubernetes reads of it."""
COUNT, INDEX = click.IntRange(min=1), click.IntRange(min=0)


def _default_rendezvous() -> str | None:
    host, port = os.environ.get("PET_MASTER_ADDR"), os.environ.get("PET_MASTER_PORT")
    return f"{host}:{port}" if host and port else None


@click.command(
    context_settings={"max_content_width": 120},
    epilog="Exit codes: 0 all jobs have a result, 1 this node's workers failed, 2 wrong arguments, config or task,"
    " 4 another node or S3 is lost: start the node again, 143 saved after SIGTERM: start it again.",
)
@click.option("--config", "config_file", required=True, type=Path, help="The run config, YAML.")
@click.option("--config-digest", required=True, metavar="SHA256", help="Of that file's bytes; another one is refused.")
@click.option("--jobs", required=True, metavar="JSON", help="What to train: the launcher's list of jobs.")
@click.option("--nodes", default=1, show_default=True, type=COUNT, help="Of the job, this one included.")
@click.option("--procs-per-node", default=1, show_default=True, type=COUNT, help="One on each GPU.")
@click.option(
    "--rendezvous",
    default=_default_rendezvous,
    metavar="HOST:PORT",
    show_default="PET_MASTER_ADDR:PET_MASTER_PORT",
    help="Of node 0, which listens there, as all nodes can reach it.",
)
@click.option("--node-rank", default=0, envvar="PET_NODE_RANK", show_envvar=True, type=INDEX, help="From 0.")
@click.option("--max-restarts", default=2, show_default=True, type=INDEX, help="Of this node's workers.")
@click.option(
    "--grace",
    default=GRACE_SECONDS,
    show_default=True,
    type=COUNT,
    metavar="SECONDS",
    help=f"To save after SIGTERM; the node itself ends {KILL_SECONDS} s later at the latest.",
)
@click.option("--run-id", default="", help="For the log.")
def node(
    config_file: Path,
    config_digest: str,
    jobs: str,
    nodes: int,
    procs_per_node: int,
    rendezvous: str | None,
    node_rank: int,
    max_restarts: int,
    grace: int,
    run_id: str,
) -> None:
    r"""Run one node of a distributed training: torchrun's agent with its workers.

    \b
    Example, on the second of two nodes:
      python -m convergate.components.training.node --config /etc/convergate/config.yaml --config-digest 5e3c… \
        --jobs '[…]' --nodes 2 --procs-per-node 1 --rendezvous node-0.training:29400 --node-rank 1
    """
    todo = jobs_from_argument(jobs, _config_text(config_file, config_digest))
    if not todo:
        raise UserError("--jobs: an empty list → one job at least")
    if all(_is_done(job) for job in todo):
        click.echo(f"node {node_rank}: all jobs have their result already")
        return
    meeting = None
    if nodes > 1:
        timeout_seconds = todo[0].config().distributed.timeout_minutes * 60
        meeting = _rendezvous(rendezvous, nodes, node_rank, timeout_seconds)
    where = f", meets the others at {rendezvous}" if meeting else ""
    click.echo(f"{run_id or todo[0].run_id}: node {node_rank} of {nodes}, {procs_per_node} processes{where}")
    launch(todo, procs_per_node, max_restarts, click.echo, rendezvous=meeting, grace_seconds=grace)


def _config_text(file: Path, digest: str) -> str:
    """The config, once it is the one that the launcher has read.

    Raises:
        UserError: when it is not.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror} → mount the run's ConfigMap there") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise UserError(f"{file}: SHA-256 is {found}, expected {digest} → mount the ConfigMap that the launcher made")
    return data.decode()


def _rendezvous(place: str | None, nodes: int, node_rank: int, timeout_seconds: float) -> Rendezvous:
    host, _, port = (place or "").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--rendezvous = {place}: no HOST:PORT → node 0's name and a port that is free there")
    if node_rank >= nodes:
        raise UserError(f"--node-rank = {node_rank}: there are {nodes} nodes → 0 to {nodes - 1}")
    return Rendezvous(host.strip("[]"), int(port), nodes, node_rank, timeout_seconds)


def _is_done(job: Job) -> bool:
    """Whether this launch has its result already: then the other nodes have ended, and none would come to meet."""
    with suppress(S3NotFoundError, ValidationError):
        result = TrainingResult.from_json(S3Store().read(S3Location.parse(job.result_uri)))
        return result.status == "completed" and result.attempts >= job.oldest_attempt
    return False


def main(arguments: list[str] | None = None) -> int:
    """Run the node; returns its exit code, and leaves why where Kubernetes shows it."""
    signal.signal(signal.SIGTERM, _interrupted)  # process 1 of a container ignores what has no handler
    try:
        node.main(arguments, prog_name="python -m convergate.components.training.node", standalone_mode=False)
    except click.ClickException as error:
        return _ended(error.format_message(), ExitCode.USAGE)
    except ConvergateError as error:
        return _ended(str(error), error.exit_code)
    return ExitCode.POSITIVE


def _interrupted(*_: object) -> None:
    raise SystemExit(ExitCode.TERMINATED)  # an Exception would end no retry of a library


def _ended(reason: str, code: ExitCode) -> int:
    click.echo(f"convergate: {reason}", err=True)
    with suppress(OSError):
        named = os.environ.get(TERMINATION_LOG_VARIABLE)
        log = Path(named or TERMINATION_LOG)
        if named or log.exists():
            log.write_bytes(reason.encode()[:TERMINATION_BYTES])
    return code


if __name__ == "__main__":
    sys.exit(main())
