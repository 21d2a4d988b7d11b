"""Arguments and options that commands share, and where their defaults stand."""

from pathlib import Path

import click

from ..components.config.models import StorageConfig
from ..components.storage import S3Error, S3Location

HOME = Path(".convergate")
"""What the embedded servers keep, and the pages of runs; in the current folder."""


def _s3_uri(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return str(S3Location.parse(value))
    except S3Error as error:
        raise click.BadParameter(str(error)) from error


CONFIG = click.argument("config")
URI = click.argument("uri", callback=_s3_uri)
JSON = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
ROOT = click.option(
    "--root",
    default=StorageConfig().uri,
    show_default=True,
    callback=_s3_uri,
    help="storage.uri of the run's config.",
)
