"""doctor: can this machine, or this cluster, run it; each check with its figure and the fix."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..components.config import load_config
from ..components.config.models import CheckpointConfig, StorageConfig
from ..components.errors import ExitCode
from ..components.storage import S3Error, S3Location
from .options import HOME, JSON

if TYPE_CHECKING:
    from ..pipelines.doctor import Row

_MARKS = {"ok": "✓", "failed": "✗", "unknown": "–"}


def _s3_uri(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return value and str(S3Location.parse(value))
    except S3Error as error:
        raise click.BadParameter(str(error)) from error


@click.command("doctor")
@click.argument("config", required=False)
@click.option("--cluster", is_flag=True, help="Examine the cluster that KUBECONFIG, or this pod, leads to.")
@click.option("--namespace", help="Where the runs' pods are, in the cluster; by default your context's, else kubeflow.")
@click.option("--root", callback=_s3_uri, help="Probe S3 here, instead of at the place that CONFIG names.")
@JSON
def doctor_command(config: str | None, cluster: bool, namespace: str | None, root: str | None, as_json: bool) -> None:
    """Examine this machine, or a cluster: ✓ fine, ✗ has to be mended, – optional or cannot be told from here.

    Exit 1 when something has to be mended, 4 when the cluster cannot be reached. CONFIG tells where runs and their
    checkpoints are stored, and whether they train as TrainJobs.

    \b
    Examples:
      convergate doctor manifests/configs/digits.yaml
      convergate doctor --cluster --namespace kubeflow --json
    """  # noqa: D301
    parsed = load_config(config)[0] if config is not None else None
    if namespace is not None and not cluster:
        raise click.UsageError("--namespace is one of a cluster's → --cluster")
    if namespace == "":
        raise click.UsageError("--namespace is empty → its name, or leave it out")
    if cluster:
        from ..components.training.trainjob.api import own_namespace
        from ..pipelines.doctor import examine_cluster

        trainjobs = parsed is None or parsed.distributed.launcher == "trainjob"
        place = root or (parsed.checkpoint if parsed else CheckpointConfig()).uri
        rows = examine_cluster(namespace or own_namespace(), place, trainjobs=trainjobs)
    else:
        rows = _machine(root or (parsed.storage if parsed else StorageConfig()).uri)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    else:
        _print(rows)
    failed = any(row.state == "failed" for row in rows)
    raise click.exceptions.Exit(ExitCode.NEGATIVE if failed else ExitCode.POSITIVE)


def _machine(root: str) -> "list[Row]":
    from ..components.storage import S3Store
    from ..pipelines.doctor import examine_machine
    from ..pipelines.servers import embedded_servers, s3_is_configured

    embedded = not s3_is_configured()
    with embedded_servers(HOME, mlflow=False):
        if embedded:
            S3Store().ensure_bucket(S3Location.parse(root))
        return examine_machine(root, embedded_s3=embedded)


def _print(rows: "Sequence[Row]") -> None:
    width = max(len(row.name) for row in rows) + 2
    for row in rows:
        click.echo(f" {_MARKS[row.state]} {row.name:<{width}}{row.figure}")
        if row.fix:
            click.echo(f"   {'':<{width}}→ {row.fix}")
    failed = sum(row.state == "failed" for row in rows)
    click.echo("nothing has to be mended" if not failed else f"{failed} of {len(rows)} checks failed")
