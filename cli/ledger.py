"""slo, runs, report, gate: what the ledger and a run's documents say."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from ..components.config import RunConfig, load_config, parse_config
from ..components.errors import ExitCode, NotFoundError
from .options import HOME, JSON, ROOT


def embedded_s3() -> AbstractContextManager[Any]:
    """The embedded S3 server, where the environment configures none."""
    from ..pipelines.servers import embedded_servers

    return embedded_servers(HOME, mlflow=False)


def config_of(root: str, run_id: str) -> str:
    """The text of the config that a run ran.

    Raises:
        NotFoundError: when there is no such run.
    """
    from ..components.storage import RunStore, S3NotFoundError

    store = RunStore(root, run_id)
    try:
        return store.store.read(store.prefix / "config.yaml").decode()
    except S3NotFoundError as error:
        raise NotFoundError(f"there is no run {run_id} under {root} → convergate runs") from error


@click.command("slo")
@click.argument("config", required=False)
@ROOT
@JSON
def slo_command(config: str | None, root: str, as_json: bool) -> None:
    """Show where the convergence SLO of a config's (experiment, model) stands; exit 1 on FAIL, 3 on INSUFFICIENT.

    Without CONFIG it is the newest run's.

    \b
    Examples:
      convergate slo
      convergate slo manifests/configs/digits.yaml --json
    """  # noqa: D301
    from ..components.slo import Ledger, take_standing

    given = load_config(config)[0] if config is not None else None
    with embedded_s3():
        parsed = given or _newest_config(root)
        history = Ledger(parsed.storage.uri, parsed.experiment, parsed.promotion.model).runs()
    standing = take_standing(parsed.slo, history)
    if as_json:
        click.echo(standing.model_dump_json(indent=2))
    else:
        click.echo(f"{parsed.experiment} / {parsed.promotion.model}: {standing.verdict}")
        for sli in standing.slis:
            click.echo(f"  {sli.verdict:<13}{sli.name:<30}{sli.line}")
        click.echo(f"  {'':<13}{'error budget':<30}{standing.failures} of {standing.allowed_failures} failures spent")
        classes = ", ".join(f"{count} {name}" for name, count in standing.classes.items()) or "no runs yet"
        click.echo(f"  {'':<13}{'classes':<30}{classes}")
        for line in standing.burning:
            click.echo(f"  {'BURNING':<13}{line}")
    codes = {"PASS": ExitCode.POSITIVE, "FAIL": ExitCode.NEGATIVE, "INSUFFICIENT": ExitCode.UNDECIDED}
    raise click.exceptions.Exit(codes[standing.verdict])


def _newest_config(root: str) -> RunConfig:
    """The config of the newest run that had a valid one.

    Raises:
        NotFoundError: when there is no such run.
    """
    from ..components.slo.ledger import all_runs

    for run in all_runs(root):
        if run.start.training_digest:
            return parse_config(config_of(root, run.start.run_id), source=f"the config of run {run.start.run_id}")
    raise NotFoundError(f"there are no runs under {root} yet → convergate slo CONFIG")


@click.command("runs")
@ROOT
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="The newest so many.")
@JSON
def runs_command(root: str, limit: int, as_json: bool) -> None:
    """List what ran, newest first.

    \b
    Example:
      convergate runs --limit 5
    """  # noqa: D301
    from ..components.slo.ledger import all_runs

    with embedded_s3():
        found = all_runs(root, limit)
    rows = [
        {
            "run": run.start.run_id,
            "started": run.start.created.isoformat(timespec="seconds"),
            "class": run.run_class,
            "decision": run.end.decision if run.end else "",
            "gpu_hours": run.end.gpu_hours if run.end else 0.0,
            "rollbacks": run.end.rollbacks if run.end else 0,
            "events": run.end.events if run.end else {},
            "reason": run.end.reason if run.end else "",
        }
        for run in found
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(str(row["run"])) for row in rows), default=0) + 2
    for row in rows:
        line = f"{row['run']:<{width}}{row['class']:<16}{row['decision']:<12}{row['gpu_hours']:<9.3g}{row['reason']}"
        click.echo(line.rstrip())
    if not rows:
        click.echo(f"no runs under {root} yet")


@click.command("report")
@click.argument("run")
@ROOT
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to; default: RUN.html.")
@JSON
def report_command(run: str, root: str, output: Path | None, as_json: bool) -> None:
    """Render a run's page from its documents.

    \b
    Example:
      convergate report digits-20260101-020000-abc123 -o report.html
    """  # noqa: D301
    from ..components.report import render
    from ..pipelines.closing import load_page

    with embedded_s3():
        page = load_page(config_of(root, run), root, run)
    target = output or Path(f"{run}.html")
    target.write_text(render(page), encoding="utf-8")
    click.echo(json.dumps({"report": str(target)}) if as_json else str(target))


@click.command("gate")
@click.argument("run")
@ROOT
@JSON
def gate_command(run: str, root: str, as_json: bool) -> None:
    """Decide over a finished run again, with what the ledger knows now. Sets no alias.

    The run's decision is replaced, and what was approved before is to be approved anew. Exit 1 on REJECT, 3 on HOLD.

    \b
    Example:
      convergate gate digits-20260101-020000-abc123
    """  # noqa: D301
    from ..components.config.plan import RunPlan
    from ..components.evaluation.result import Evaluation
    from ..components.slo.gate import run_gate
    from ..components.storage import RunStore
    from ..components.training.result import TrainingResult

    with embedded_s3():
        config = parse_config(config_of(root, run), source=f"the config of run {run}")
        store = RunStore(root, run)
        plan, training = store.find("plan", RunPlan), store.find("training", TrainingResult)
        evaluation = store.find("evaluation", Evaluation)
        if plan is None or training is None or evaluation is None:
            raise NotFoundError(f"run {run} was not evaluated: there is nothing to decide → convergate runs")
        decision = run_gate(config, plan, training, evaluation)
    if as_json:
        click.echo(decision.model_dump_json(indent=2))
    else:
        click.echo("\n".join(decision.lines()))
        if decision.sets_alias:
            click.echo(f"Next: `convergate promote {run}`")
    codes = {"REJECT": ExitCode.NEGATIVE, "HOLD": ExitCode.UNDECIDED}
    raise click.exceptions.Exit(codes.get(decision.decision, ExitCode.POSITIVE))
