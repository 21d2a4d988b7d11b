"""compile: the pipelines as files to upload."""

import json
from pathlib import Path
from typing import Literal

import click

from .cluster import Cluster, placement_options


@click.command("compile")
@click.option(
    "-o", "--output", "folder", default="out", type=click.Path(path_type=Path), help="Where to; default: out."
)
@click.option(
    "--launcher",
    type=click.Choice(["local", "trainjob"]),
    default="local",
    show_default=True,
    help="Who runs canary and training: the step's own pod, or a TrainJob.",
)
@click.option("--argo", is_flag=True, help="WorkflowTemplates for Argo alone instead.")
@placement_options
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def compile_command(
    folder: Path, launcher: Literal["local", "trainjob"], argo: bool, cluster: Cluster, as_json: bool
) -> None:
    """Write every pipeline as KFP IR YAML, ready for upload, and each step on its own for pipelines of your own.

    \b
    Examples:
      convergate compile -o out
      convergate compile --launcher trainjob --toleration nvidia.com/gpu=present:NoSchedule
      convergate compile --gpus 4 --node-selector pool=a100
      convergate compile --argo -o argo
    """  # noqa: D301
    placement = cluster.placement(launcher)
    if argo:
        from ..pipelines.argo import compile_argo

        files = compile_argo(folder, placement)
    else:
        from ..pipelines.compiling import compile_pipelines

        files = compile_pipelines(folder, placement)
    if as_json:
        click.echo(json.dumps([str(file) for file in files]))
    else:
        for file in files:
            click.echo(str(file))
