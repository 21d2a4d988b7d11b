"""What the commands that speak to Kubeflow Pipelines share: their options, and the view of a run there."""

import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from ..components import access
from ..components.config import ProblemsError, RunConfig
from ..components.config.preflight import Facts, preflight
from ..components.errors import UserError

if TYPE_CHECKING:
    from ..pipelines.kfp_api import PipelinesApi
    from ..pipelines.placement import Placement
    from ..pipelines.watching import ClusterOutcome, States

Command = TypeVar("Command", bound=Callable[..., Any])
WAIT_MINUTES = 24 * 60


def _finite(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Neither nan, which is no limit, nor inf, which is as good as none."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of minutes.")
    return value


_MARKS = {"SUCCEEDED": "✓", "FAILED": "✗"}
_FILE = click.Path(path_type=Path)
_PLACEMENT = (
    click.option(
        "--gpus",
        type=click.IntRange(min=0),
        help="Of each step that computes in its pod; default: one for each process of the config, 1 without one.",
    ),
    click.option("--gpu-type", default="nvidia.com/gpu", show_default=True, help="The resource that a GPU is."),
    click.option(
        "--node-selector", "node_selectors", multiple=True, metavar="KEY=VALUE", help="Nodes for those steps."
    ),
    click.option(
        "--toleration", "tolerations", multiple=True, metavar="KEY=VALUE:EFFECT", help="Taints those steps stand on."
    ),
    click.option(
        "--train-hours",
        type=click.IntRange(min=1),
        help="Timeout of an attempt to train; default: 24, with TrainJobs 48, or more where the config's budget is.",
    ),
    click.option("--keep-days", type=click.IntRange(min=1), help="How long the cluster keeps a run's pods and logs."),
    click.option("--image-pull-secret", "image_pull_secrets", multiple=True, metavar="NAME", help="Of every step."),
)
_SERVER = (
    click.option(
        "--token-file",
        type=_FILE,
        envvar="KF_PIPELINES_SA_TOKEN_PATH",
        help="A file with a bearer token; read again for each call, never shown.",
    ),
    click.option("--ca-file", type=_FILE, help="PEM file with the certificates that the server's is signed by."),
    click.option("--namespace", help="Your namespace, on a server for many users."),
    click.option(
        "--service-account", default=access.PIPELINE, show_default=True, help="The account that the run's pods have."
    ),
)
_WAIT = (
    click.option("--wait", is_flag=True, help="Wait for the run's end, and exit by its verdict."),
    click.option(
        "--timeout",
        "minutes",
        type=click.FloatRange(min=0, min_open=True),
        default=WAIT_MINUTES,
        callback=_finite,
        show_default=True,
        metavar="MINUTES",
        help="The longest wait.",
    ),
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the options say of the cluster."""

    token_file: Path | None = None
    ca_file: Path | None = None
    namespace: str | None = None
    service_account: str = access.PIPELINE
    gpus: int | None = None
    gpu_type: str = "nvidia.com/gpu"
    node_selectors: tuple[str, ...] = ()
    tolerations: tuple[str, ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    train_hours: int | None = None
    keep_days: int | None = None

    def api(self, host: str) -> "PipelinesApi":
        """A connection to the server."""
        from ..pipelines.kfp_api import PipelinesApi

        return PipelinesApi(host, token_file=self.token_file, ca_file=self.ca_file, namespace=self.namespace)

    def placement_for(self, config: RunConfig) -> "Placement":
        """Where the steps run on this config, under its launcher.

        Raises:
            UserError: for an option that is written wrongly.
        """
        from ..pipelines.submitting import processes

        return self.placement(config.distributed.launcher, processes(config))

    def placement(self, launcher: Literal["local", "trainjob"], gpus: int = 1) -> "Placement":
        """Where the steps run; `gpus` counts where no option says another number.

        Raises:
            UserError: for an option that is written wrongly.
        """
        from ..pipelines.placement import Placement, parse_node_selector, parse_toleration

        return Placement(
            launcher=launcher,
            gpus=gpus if self.gpus is None else self.gpus,
            gpu_type=self.gpu_type,
            node_selector=tuple(parse_node_selector(text) for text in self.node_selectors),
            tolerations=tuple(parse_toleration(text) for text in self.tolerations),
            image_pull_secrets=self.image_pull_secrets,
            train_hours=self.train_hours,
            keep_days=self.keep_days,
        )


def placement_options(command: Command) -> Command:
    """Give a command `cluster`, with where the steps run."""
    return _with(command, _PLACEMENT)


def cluster_options(command: Command) -> Command:
    """Give a command `cluster`, with the server too."""
    return _with(command, (*_SERVER, *_PLACEMENT))


def wait_options(command: Command) -> Command:
    """Give a command `wait` and `minutes`."""
    for option in reversed(_WAIT):
        command = option(command)
    return command


def _with(command: Command, options: tuple[Callable[[Any], Any], ...]) -> Command:
    @functools.wraps(command)
    def collected(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in Cluster.__dataclass_fields__ if name in arguments}
        return command(cluster=Cluster(**given), **arguments)

    made: Any = collected
    for option in reversed(options):
        made = option(made)
    return made  # type: ignore[no-any-return]


def require_valid(config: RunConfig, path: str, facts: Facts | None = None) -> None:
    """Start nothing that its first step would refuse.

    Raises:
        ProblemsError: when preflight finds an error.
    """
    errors = preflight(config, facts).errors
    if errors:
        raise ProblemsError(path, errors)


def refuse_ignored(host: str | None, wait: bool) -> None:
    """Refuse an option that would be ignored: one of a cluster where the run is here, or of a wait that is none.

    Raises:
        UserError: when such an option is given.
    """
    for option, name in _given():
        if host is None and name in {*Cluster.__dataclass_fields__, "wait", "minutes"}:
            raise UserError(f"{option} without --host: it is for a run on a cluster → leave it out, or --host URL")
        if not wait and name == "minutes":
            raise UserError(f"{option} without --wait: nothing waits → leave it out, or --wait")


def _given() -> Iterator[tuple[str, str]]:
    """The options that stand on the command line, each with the name of its parameter."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            yield parameter.opts[0], name


def submit_and_wait(
    pipeline: Literal["retrain", "canary"],
    config: RunConfig,
    text: str,
    host: str,
    cluster: Cluster,
    *,
    wait: bool,
    minutes: float,
    as_json: bool,
) -> None:
    """Start a pipeline on a cluster, print its link, and with `wait` end by its verdict."""
    from ..pipelines.submitting import submit
    from ..pipelines.watching import wait_for

    api = cluster.api(host)
    placement = cluster.placement_for(config)
    run = submit(api, pipeline, config, text, placement, service_account=cluster.service_account)
    if not wait:
        click.echo(json.dumps({"run_id": run.run_id, "url": run.url}) if as_json else run.url)
        return
    click.echo(run.url, err=as_json)
    with _Steps(quiet=as_json) as steps:
        outcome = wait_for(api, run, config, text, steps, seconds=60 * minutes)
    click.echo(json.dumps(outcome.as_dict(), indent=2) if as_json else _told(outcome))
    raise click.exceptions.Exit(outcome.exit_code)


def _told(outcome: "ClusterOutcome") -> str:
    return outcome.sentence if outcome.reason in outcome.sentence else f"{outcome.sentence}\n{outcome.reason}"


class _Steps:
    """A line a step as it ends, and on a terminal the ones that run; nothing where nobody looks."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown: set[str] = set()
        self._status = None
        if not quiet and sys.stdout.isatty():
            from rich.console import Console

            self._status = Console().status("submitted")

    def __enter__(self) -> "_Steps":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, states: "States") -> None:
        if self._status is None:
            return
        for step, state in states.items():
            if state in _MARKS and step not in self._shown:
                self._shown.add(step)
                click.echo(f" {_MARKS[state]} {step.replace('-', ' ')}")
        running = [step.replace("-", " ") for step, state in states.items() if state in ("RUNNING", "PENDING")]
        self._status.update(", ".join(running) or "waiting")
