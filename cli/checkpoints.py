"""checkpoints: what stands on S3 of one run or several, whether it is whole, and what nobody will use."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import click

from ..components.errors import ExitCode, NotFoundError
from .ledger import embedded_s3
from .options import JSON, URI
from .tables import Row, age, print_tables, size

if TYPE_CHECKING:
    from ..components.checkpoint import CheckpointRef
    from ..components.checkpoint.retention import Garbage
    from ..components.storage import S3Location

LEAST_GRACE = timedelta(hours=1)
"""Far longer than a running save takes from one part to the next."""


@click.group("checkpoints", invoke_without_command=True)
@click.pass_context
def checkpoints_command(context: click.Context) -> None:
    """List, verify and clean up checkpoints on S3.

    URI is the root of a run, `<checkpoint.uri>/<run id>`; checkpoint.uri itself, with all its runs; or one
    checkpoint. Each command answers in JSON with --json.

    \b
    Examples:
      convergate checkpoints list s3://convergate/checkpoints --metric accuracy
      convergate checkpoints verify s3://convergate/checkpoints/digits-20260101-020000-abc123
      convergate checkpoints gc s3://convergate/checkpoints --dry-run
    """  # noqa: D301
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(ExitCode.USAGE)


@checkpoints_command.command("list", short_help="What there is, run by run, the newest first.")
@URI
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="The newest so many of a run.")
@click.option("--metric", help="Show this metric alone.")
@JSON
def list_command(uri: str, limit: int, metric: str | None, as_json: bool) -> None:
    """List the checkpoints at a URI, run by run, the newest first.

    `verified` says who compared the stored bytes with their checksums before the commit; `given up`, that a later
    attempt went on from before it. Only markers are read here; `verify` reads every byte.

    \b
    Examples:
      convergate checkpoints list s3://convergate/checkpoints --metric accuracy
      convergate checkpoints list s3://convergate/checkpoints/digits-20260101-020000-abc123 --limit 100 --json
    """  # noqa: D301
    from ..components.checkpoint.retention import READERS

    with embedded_s3(), ThreadPoolExecutor(READERS) as pool:
        runs = list(pool.map(lambda place: _committed(place, limit + 1), _places(uri)))
        told = pool.map(_listed, [found for run in runs for found in run[:limit]])
        rows = [row for row in told if not row["problem"] or not _is_gone(row["uri"])]
    if metric is not None:
        rows = [{**row, "metrics": {metric: row["metrics"].get(metric)}} for row in rows]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    print_tables(rows, lambda row: _list_columns(row, metrics), left=("verified",))
    if any(len(run) > limit for run in runs):
        click.echo(f"Older ones are not shown: only the newest {limit} of a run → --limit")


@checkpoints_command.command("verify", short_help="Read every byte, and compare it with its checksums.")
@URI
@JSON
def verify_command(uri: str, as_json: bool) -> None:
    """Read every byte of the checkpoints at a URI and compare it with the checksums of their manifests.

    Exit 1 when one is damaged, and which object it is; 4 when S3 fails. What was given up is left out. URI may also
    be a release; whether it is the one that was promoted tells its digest, which the champion record has.

    \b
    Examples:
      convergate checkpoints verify s3://convergate/checkpoints/digits-20260101-020000-abc123
      convergate checkpoints verify s3://convergate/releases/digits/digits-20260101-020000-abc123 --json
    """  # noqa: D301
    with embedded_s3():
        rows = _verified(_to_verify(uri), quiet=as_json)
    damaged = sum(bool(row["damage"]) for row in rows)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        checkpoints = f"{len(rows)} checkpoint{'s' * (len(rows) != 1)}"
        click.echo(f"{damaged} of {checkpoints} damaged" if damaged else f"{checkpoints}, every byte as it was saved")
    raise click.exceptions.Exit(ExitCode.NEGATIVE if damaged else ExitCode.POSITIVE)


def _grace(_context: click.Context, _parameter: click.Parameter, value: str) -> timedelta:
    """`90m`, `24h` or `7d`; not less than the shortest."""
    match = re.fullmatch(r"(\d{1,6})([mhd])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no duration → 90m, 24h or 7d")
    unit = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}[match[2]]
    if int(match[1]) * unit < LEAST_GRACE:
        raise click.BadParameter(f"{value} is less than 1h: what a save is writing now might be deleted")
    return int(match[1]) * unit


@checkpoints_command.command("gc", short_help="Delete what no run will use.")
@URI
@click.option(
    "--grace", default="24h", show_default=True, callback=_grace, help="Leave what is younger: 90m, 24h or 7d."
)
@click.option("--dry-run", is_flag=True, help="Delete nothing, and show what would be.")
@JSON
def gc_command(uri: str, grace: timedelta, dry_run: bool, as_json: bool) -> None:
    """Delete what no run at a URI will use: what was never committed or was given up, and abandoned uploads.

    Safe beside a running training: a save adds to its folder all the time, and so is younger than the grace. Never
    deletes a checkpoint that counts, nor a release. Exit 4 when something could not be deleted.

    \b
    Examples:
      convergate checkpoints gc s3://convergate/checkpoints --dry-run
      convergate checkpoints gc s3://convergate/checkpoints/digits-20260101-020000-abc123 --grace 7d
    """  # noqa: D301
    from ..components.checkpoint.retention import collect, find_runs

    with embedded_s3():
        runs = find_runs(uri)
        if not runs:
            raise NotFoundError(f"there are no runs at {uri} → checkpoint.uri, or the root of a run")
        rows = [_collected(garbage) for garbage in collect(runs, grace, dry_run=dry_run)]
    failed = sum(bool(row["problem"]) for row in rows)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        print_tables(rows, _gc_columns, left=("what", "folder"))
        freed = size(sum(row["size"] for row in rows if not row["problem"]))
        counted = f"{len(rows) - failed} thing{'s' * (len(rows) - failed != 1)}"
        click.echo(f"would delete {counted}, {freed}: a dry run" if dry_run else f"deleted {counted}, {freed}")
        for problem in filter(None, (row["problem"] for row in rows)):
            click.echo(f"not deleted: {problem}", err=True)
    raise click.exceptions.Exit(ExitCode.OUTSIDE if failed else ExitCode.POSITIVE)


class _Committed(NamedTuple):
    ref: "CheckpointRef"
    given_up: bool


def _places(uri: str) -> "list[S3Location]":
    """The roots of the runs at a URI, or the checkpoint that it is.

    Raises:
        NotFoundError: when there are none.
        S3Error: when S3 fails.
    """
    from ..components.checkpoint import CheckpointRef
    from ..components.checkpoint.retention import find_runs
    from ..components.storage import S3Location, S3Store

    ref = CheckpointRef.parse(uri)
    if ref is not None and S3Store().exists(ref.marker):
        return [S3Location.parse(uri)]
    found = find_runs(uri)
    if not found:
        raise NotFoundError(f"there are no checkpoints at {uri} → checkpoint.uri, the root of a run, or a checkpoint")
    return found


def _committed(place: "S3Location", limit: int | None = None) -> list[_Committed]:
    """The newest checkpoints of a run, or the one that the place is."""
    from ..components.checkpoint import CheckpointRef, CheckpointStore

    one = CheckpointRef.parse(str(place))
    root = place if one is None else one.root
    store = CheckpointStore(str(root.parent), root.name)
    tombstones = store.tombstones()
    return [
        _Committed(ref, any(tombstone.covers(ref) for tombstone in tombstones))
        for ref in (islice(store.committed(), limit) if one is None else [one])
    ]


def _listed(found: _Committed) -> Row:
    """A checkpoint as its marker tells it."""
    from ..components.checkpoint import CheckpointError
    from ..components.checkpoint.reading import read_marker

    ref = found.ref
    row = {"run": ref.root.name, "step": ref.step, "attempt": ref.attempt, "uri": ref.uri, "given_up": found.given_up}
    try:
        marker = read_marker(ref.uri)
    except CheckpointError as error:
        unknown = dict.fromkeys(("size", "created", "verified", "signed"))
        return {**row, **unknown, "metrics": {}, "problem": str(error)}
    # Through JSON, which has no NaN: as in the marker it is a string.
    told = json.loads(marker.model_dump_json(include={"size", "created", "verified", "metrics"}))
    return {**row, **told, "signed": bool(marker.signature), "problem": ""}


def _list_columns(row: Row, metrics: Sequence[str]) -> dict[str, str]:
    values = [row["metrics"].get(name) for name in metrics]
    return {
        "step": str(row["step"]),
        "attempt": str(row["attempt"]),
        "size": size(row["size"]),
        "age": age(row["created"]),
        "verified": "unreadable" if row["problem"] else "given up" if row["given_up"] else row["verified"],
        **{name: "–" if value is None else f"{float(value):.4g}" for name, value in zip(metrics, values, strict=True)},
    }


def _to_verify(uri: str) -> list[str]:
    """The release or the checkpoint that a URI is, or the checkpoints there that count."""
    from ..components.checkpoint import CheckpointRef
    from ..components.checkpoint.manifest import manifest_location
    from ..components.storage import S3Location, S3Store

    if CheckpointRef.parse(uri) is None and S3Store().exists(manifest_location(S3Location.parse(uri))):
        return [uri]
    found = [one for place in _places(uri) for one in _committed(place)]
    counting = [one.ref.uri for one in found if not one.given_up or one.ref.uri == uri]
    if not counting:
        raise NotFoundError(f"there is no checkpoint at {uri} that counts → convergate checkpoints list {uri}")
    return counting


def _verified(uris: Sequence[str], *, quiet: bool) -> list[Row]:
    """Verify one after the other, with a bar in a terminal, and tell of each when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from ..components.checkpoint import CheckpointError
    from ..components.checkpoint.reading import verify

    out, rows = Console(highlight=False), []
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal) as progress:
        for number, uri in enumerate(uris, start=1):
            task = progress.add_task(f"{number} of {len(uris)}", total=_size_of(uri))
            row: Row = {"uri": uri, "size": 0, "damage": ""}
            try:
                for num_bytes in verify(uri):
                    row["size"] += num_bytes
                    progress.advance(task, num_bytes)
            except CheckpointError as error:
                row["damage"] = str(error)
            progress.remove_task(task)
            if row["damage"] and _is_gone(uri):
                continue
            rows.append(row)
            if not quiet:
                name = "/".join(uri.split("/")[-2:])
                line = f"✗ {name}\n  {row['damage']}" if row["damage"] else f"✓ {name}  {size(row['size'])}"
                out.print(line, markup=False, soft_wrap=True)
    return rows


def _is_gone(uri: str) -> bool:
    """Whether retention has deleted a checkpoint since it was listed."""
    from ..components.checkpoint import CheckpointRef
    from ..components.storage import S3Store

    ref = CheckpointRef.parse(uri)
    return ref is not None and not S3Store().exists(ref.marker)


def _size_of(uri: str) -> int | None:
    """Bytes to verify, where that can be read."""
    from ..components.checkpoint import CheckpointError
    from ..components.checkpoint.reading import read_manifest

    try:
        return sum(stored.size for stored in read_manifest(uri)[0].objects)
    except CheckpointError:
        return None


def _collected(garbage: "Garbage") -> Row:
    return {
        "run": garbage.folder.parent.name,
        "uri": str(garbage.folder),
        "what": garbage.reason,
        "size": garbage.size,
        "since": garbage.since.isoformat(timespec="seconds"),
        "problem": garbage.problem,
    }


def _gc_columns(row: Row) -> dict[str, str]:
    name = row["uri"].rpartition("/")[2]
    return {"what": row["what"], "folder": name, "size": size(row["size"]), "age": age(row["since"])}
