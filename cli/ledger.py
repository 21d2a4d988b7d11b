"""slo, runs, report, gate: what the ledger and a run's documents say."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from ..components.config import RunConfig, load_config
from ..components.errors import ExitCode, NotFoundError

HOME = Path(".convergate")
CONFIG = click.argument("config", type=click.Path(dir_okay=False), default="manifests/configs/digits.yaml")
JSON = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
ROOT = click.option("--root", default="s3://convergate", show_default=True, help="storage.uri of the configs.")


def _s3() -> AbstractContextManager[Any]:
    from ..pipelines.servers import embedded_servers

    return embedded_servers(HOME, mlflow=False)


def find_run(root: str, run_id: str) -> tuple[RunConfig, str]:
    """The config that a run ran, and its text.

    Raises:
        NotFoundError: when there is no such run.
    """
    from ..components.config import parse_config
    from ..components.storage import RunStore, S3NotFoundError

    store = RunStore(root, run_id)
    try:
        text = store.store.read(store.prefix / "config.yaml").decode()
    except S3NotFoundError as error:
        raise NotFoundError(f"there is no run {run_id} under {root} → convergate runs") from error
    return parse_config(text), text


@click.command("slo")
@CONFIG
@JSON
def slo_command(config: str, as_json: bool) -> None:
    """Show where the convergence SLO of a config's (experiment, model) stands; exit 1 on FAIL, 3 on INSUFFICIENT.

    \b
    Example:
      convergate slo manifests/configs/digits.yaml
    """  # noqa: D301
    from ..components.slo import Ledger, take_standing

    parsed, _ = load_config(config)
    with _s3():
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


@click.command("runs")
@ROOT
@click.option("--limit", default=20, show_default=True, help="The newest so many.")
@JSON
def runs_command(root: str, limit: int, as_json: bool) -> None:
    """List what ran, newest first.

    \b
    Example:
      convergate runs --limit 5
    """  # noqa: D301
    from ..components.slo.ledger import all_runs

    with _s3():
        found = all_runs(root, limit)
    rows = [
        {
            "run": run.start.run_id,
            "started": run.start.created.isoformat(timespec="seconds"),
            "class": run.run_class,
            "decision": run.end.decision if run.end else "",
            "gpu_hours": run.end.gpu_hours if run.end else 0.0,
            "reason": run.end.reason if run.end else "",
        }
        for run in found
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['run']:<40}{row['class']:<16}{row['decision']:<12}{row['gpu_hours']:<9.3g}{row['reason']}")
    if not rows:
        click.echo("no runs yet")


@click.command("report")
@click.argument("run")
@ROOT
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to; default: RUN.html.")
def report_command(run: str, root: str, output: Path | None) -> None:
    """Render a run's page from its documents.

    \b
    Example:
      convergate report digits-20260101-020000-abc123 -o report.html
    """  # noqa: D301
    from ..components.report import render
    from ..pipelines.closing import load_page

    with _s3():
        _, text = find_run(root, run)
        page = load_page(text, root, run)
    target = output or Path(f"{run}.html")
    target.write_text(render(page), encoding="utf-8")
    click.echo(str(target))


@click.command("gate")
@click.argument("run")
@ROOT
@JSON
def gate_command(run: str, root: str, as_json: bool) -> None:
    """Decide over a finished run again, with what the ledger knows now; sets no alias.

    \b
    Example:
      convergate gate digits-20260101-020000-abc123
    """  # noqa: D301
    from ..components.config.plan import RunPlan
    from ..components.evaluation.result import Evaluation
    from ..components.slo.gate import run_gate
    from ..components.storage import RunStore
    from ..components.training.result import TrainingResult

    with _s3():
        config, _ = find_run(root, run)
        store = RunStore(root, run)
        plan, training = store.find("plan", RunPlan), store.find("training", TrainingResult)
        evaluation = store.find("evaluation", Evaluation)
        if plan is None or training is None or evaluation is None:
            raise NotFoundError(f"run {run} was not evaluated: there is nothing to decide → convergate runs")
        decision = run_gate(config, plan, training, evaluation)
    click.echo(decision.model_dump_json(indent=2) if as_json else "\n".join(decision.lines()))
    codes = {"REJECT": ExitCode.NEGATIVE, "HOLD": ExitCode.UNDECIDED}
    raise click.exceptions.Exit(codes.get(decision.decision, ExitCode.POSITIVE))
