"""compile: the pipelines as files to upload."""

import json
from pathlib import Path

import click


@click.command("compile")
@click.option(
    "-o", "--output", "folder", default="out", type=click.Path(path_type=Path), help="Where to; default: out."
)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def compile_command(folder: Path, as_json: bool) -> None:
    """Write every pipeline as KFP IR YAML, ready for upload.

    \b
    Example:
      convergate compile -o out
    """  # noqa: D301
    from ..pipelines.compiling import compile_pipelines

    files = compile_pipelines(folder)
    if as_json:
        click.echo(json.dumps([str(file) for file in files]))
    else:
        for file in files:
            click.echo(str(file))
