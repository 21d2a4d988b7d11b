"""retrain, canary, train: what runs a model, on this machine."""

import json
import secrets
from datetime import UTC, datetime
from urllib.parse import urlsplit

import click

from ..components.config import RunConfig, config_digests, load_config
from ..components.config.plan import RunPlan, make_plan
from ..components.config.preflight import Facts
from ..components.errors import ExitCode, UserError
from .cluster import Cluster, cluster_options, refuse_ignored, require_valid, submit_and_wait, wait_options
from .options import CONFIG, HOME, JSON

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def new_run_id(experiment: str) -> str:
    """An id that sorts by time and is unique on its own."""
    return f"{experiment}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


HOST = click.option("--host", help="Submit to Kubeflow Pipelines at this URL instead.")


@click.command("retrain")
@CONFIG
@HOST
@wait_options
@cluster_options
@JSON
def retrain_command(config: str, host: str | None, wait: bool, minutes: float, cluster: Cluster, as_json: bool) -> None:
    """Run the whole DAG: validate, canary, train, evaluate, decide, promote. Exit 1 on a FAIL or REJECT, 3 on HOLD.

    A config or a task that is wrong exits 2.

    The embedded S3 and MLflow servers are used unless AWS_ENDPOINT_URL, AWS credentials or MLFLOW_TRACKING_URI are set.
    With --host the run is on the cluster, and its link is printed; with --wait the exit code is the run's.

    \b
    Examples:
      convergate retrain manifests/configs/digits.yaml
      MLFLOW_TRACKING_URI=http://127.0.0.1:5000 convergate retrain manifests/configs/digits.yaml
      convergate retrain manifests/configs/digits.yaml --host https://pipelines.example.org --wait
    """  # noqa: D301
    from .progress import RunProgress

    refuse_ignored(host, wait)
    parsed, text = load_config(config)
    if host is not None:
        require_valid(parsed, config)
        submit_and_wait("retrain", parsed, text, host, cluster, wait=wait, minutes=minutes, as_json=as_json)
        return
    from ..pipelines.here import retrain_here

    _require_reachable_s3(parsed)
    run_id = new_run_id(parsed.experiment)
    with RunProgress(parsed, run_id, quiet=as_json) as progress:
        outcome = retrain_here(parsed, text, run_id, HOME, progress)
    if as_json:
        click.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        progress.finish(outcome)
    raise click.exceptions.Exit(outcome.exit_code)


def _require_reachable_s3(config: RunConfig) -> None:
    """A TrainJob's pods cannot reach a server on this machine's loopback, as the embedded one is.

    Raises:
        UserError: when they would have to.
    """
    if config.distributed.launcher != "trainjob":
        return
    from ..components.storage.client import endpoint_url
    from ..pipelines.servers import s3_is_configured

    endpoint = endpoint_url() or ""
    if not s3_is_configured() or (urlsplit(endpoint).hostname or "") in LOOPBACK:
        where = endpoint or "the embedded S3 server"
        raise UserError(
            f"distributed.launcher = trainjob: pods cannot reach {where}"
            " → AWS_ENDPOINT_URL of an S3 that they reach, --host URL, or launcher: local"
        )


def _plan(config: RunConfig, path: str, run_id: str) -> RunPlan:
    """The plan of a run that starts without the DAG; the first one is kept, so a retry begins with the same weights.

    Raises:
        ProblemsError: when there are no weights where `training.init_from` says.
        OutsideError: when S3 fails.
    """
    from ..components.promotion.initial import find_initial
    from ..components.storage import RunStore

    facts = Facts(initial=find_initial(config, run_id))
    require_valid(config, path, facts)
    plan, run = make_plan(config, run_id, facts), RunStore(config.storage.uri, run_id)
    if run.find("plan", RunPlan) is None:
        run.store.ensure_bucket(run.prefix)
        run.put("plan", plan)
    return plan


@click.command("canary")
@CONFIG
@HOST
@wait_options
@cluster_options
@JSON
def canary_command(config: str, host: str | None, wait: bool, minutes: float, cluster: Cluster, as_json: bool) -> None:
    """Run the canary alone and show its checks; exit 1 on FAIL, 3 on INCONCLUSIVE.

    With --host the canary pipeline runs on the cluster; with --wait the exit code is the run's, as a CI wants it.

    \b
    Examples:
      convergate canary manifests/configs/digits.yaml --json
      convergate canary manifests/configs/digits.yaml --host https://pipelines.example.org --wait --timeout 60
    """  # noqa: D301
    refuse_ignored(host, wait)
    parsed, text = load_config(config)
    if host is not None:
        require_valid(parsed, config)
        submit_and_wait("canary", parsed, text, host, cluster, wait=wait, minutes=minutes, as_json=as_json)
        return
    from ..canary.run import run_canary
    from ..pipelines.servers import embedded_servers

    require_valid(parsed, config)
    _require_reachable_s3(parsed)
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
    require_valid(parsed, config)
    _require_reachable_s3(parsed)
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
        click.echo(f"{result.status}: {result.summary}")
        if result.checkpoint_uri:
            click.echo(result.checkpoint_uri)
        if result.save_seconds:
            grace = f"terminationGracePeriodSeconds: {result.grace_seconds}"
            click.echo(f"longest save {result.save_seconds:.1f} s → {grace}, or more, on a cluster")
    raise click.exceptions.Exit(training_exit_code(result))
