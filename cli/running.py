"""retrain, canary, train: what runs a model, on this machine."""

import json
import secrets
from datetime import UTC, datetime

import click

from ..components.config import ProblemsError, RunConfig, config_digests, load_config
from ..components.config.plan import RunPlan, make_plan
from ..components.config.preflight import Facts, preflight
from ..components.errors import ExitCode, UserError
from .options import CONFIG, HOME, JSON


def new_run_id(experiment: str) -> str:
    """An id that sorts by time and is unique on its own."""
    return f"{experiment}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


@click.command("retrain")
@CONFIG
@click.option("--host", help="Submit to Kubeflow Pipelines at this URL instead.")
@JSON
def retrain_command(config: str, host: str | None, as_json: bool) -> None:
    """Run the whole DAG: validate, canary, train, evaluate, decide, promote. Exit 1 on a FAIL or REJECT, 3 on HOLD.

    A config or a task that is wrong exits 2.

    The embedded S3 and MLflow servers are used unless AWS_ENDPOINT_URL, AWS credentials or MLFLOW_TRACKING_URI are set.

    \b
    Examples:
      convergate retrain manifests/configs/digits.yaml
      MLFLOW_TRACKING_URI=http://127.0.0.1:5000 convergate retrain manifests/configs/digits.yaml
      convergate retrain manifests/configs/digits.yaml --host https://pipelines.example.org
    """  # noqa: D301
    from .progress import RunProgress

    parsed, text = load_config(config)
    if host:
        from ..pipelines.submitting import submit

        url = submit(parsed, text, host)
        click.echo(json.dumps({"url": url}) if as_json else url)
        return
    from ..pipelines.here import retrain_here

    run_id = new_run_id(parsed.experiment)
    with RunProgress(parsed, run_id, quiet=as_json) as progress:
        outcome = retrain_here(parsed, text, run_id, HOME, progress)
    if as_json:
        click.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        progress.finish(outcome)
    raise click.exceptions.Exit(outcome.exit_code)


def _require_valid(config: RunConfig, path: str, facts: Facts | None = None) -> None:
    """Stop at what preflight finds.

    Raises:
        ProblemsError: when it finds an error.
    """
    errors = preflight(config, facts).errors
    if errors:
        raise ProblemsError(path, errors)


def _plan(config: RunConfig, path: str, run_id: str) -> RunPlan:
    """The plan of a run that starts without the DAG; the first one is kept, so a retry begins with the same weights.

    Raises:
        ProblemsError: when there are no weights where `training.init_from` says.
        OutsideError: when S3 fails.
    """
    from ..components.promotion.initial import find_initial
    from ..components.storage import RunStore

    facts = Facts(initial=find_initial(config, run_id))
    _require_valid(config, path, facts)
    plan, run = make_plan(config, run_id, facts), RunStore(config.storage.uri, run_id)
    if run.find("plan", RunPlan) is None:
        run.store.ensure_bucket(run.prefix)
        run.put("plan", plan)
    return plan


@click.command("canary")
@CONFIG
@JSON
def canary_command(config: str, as_json: bool) -> None:
    """Run the canary alone and show its checks; exit 1 on FAIL, 3 on INCONCLUSIVE.

    \b
    Example:
      convergate canary manifests/configs/digits.yaml --json
    """  # noqa: D301
    from ..canary.run import run_canary
    from ..pipelines.servers import embedded_servers

    parsed, text = load_config(config)
    _require_valid(parsed, config)
    with embedded_servers(HOME, mlflow=False):
        plan = _plan(parsed, config, new_run_id(f"canary-{parsed.experiment}"))
        report = run_canary(
            parsed, text, plan, on_line=lambda line: None if as_json else click.echo(f"  {line}", err=True)
        )
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        for check in report.checks:
            click.echo(f" {'✓' if check.passed else '✗'} {check.name:<34}{check.figure:<36}{check.reason}")
        click.echo(f"{report.summary}")
    codes = {"PASS": ExitCode.POSITIVE, "FAIL": ExitCode.NEGATIVE, "INCONCLUSIVE": ExitCode.UNDECIDED}
    raise click.exceptions.Exit(codes[report.verdict])


@click.command("train")
@CONFIG
@click.option("--resume", default="auto", show_default=True, help="auto, never, or the URI of a checkpoint.")
@click.option("--run", "run_id", help="The run to train or continue; default: one per config and seed.")
@JSON
def train_command(config: str, resume: str, run_id: str | None, as_json: bool) -> None:
    """Train alone. Interrupted or killed, the same command continues at the newest checkpoint.

    \b
    Examples:
      convergate train manifests/configs/digits.yaml
      convergate train manifests/configs/digits.yaml --resume never
    """  # noqa: D301
    from ..components.training.train import run_training
    from ..pipelines.exit_codes import training_exit_code
    from ..pipelines.servers import embedded_servers

    if resume not in ("auto", "never") and not resume.startswith("s3://"):
        raise UserError(f"--resume {resume}: not a checkpoint → auto, never, or an s3:// URI")
    parsed, text = load_config(config)
    name = run_id or f"train-{parsed.experiment}-{config_digests(parsed).training[:12]}-{parsed.seed}"
    _require_valid(parsed, config)
    with embedded_servers(HOME, mlflow=False):
        plan = _plan(parsed, config, name)
        result = run_training(
            parsed,
            text,
            plan,
            resume=resume,
            on_line=lambda line: click.echo(line, err=True) if not as_json else None,
        )
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        click.echo(f"{result.status}: {result.summary}\n{result.checkpoint_uri}")
        if result.save_seconds:
            grace = f"terminationGracePeriodSeconds: {result.grace_seconds}"
            click.echo(f"longest save {result.save_seconds:.1f} s → {grace}, or more, on a cluster")
    raise click.exceptions.Exit(training_exit_code(result))
