"""validate, schedule, sign, verify: what can be said of a config before it runs."""

import json
from pathlib import Path

import click

from ..components.config import RunConfig, config_digests, load_config
from ..components.config.preflight import Facts, Preflight, preflight
from ..components.errors import ExitCode, UserError

CONFIG = click.argument("config", type=click.Path(dir_okay=False))
JSON = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
KEY = click.option("--key", required=True, type=click.Path(path_type=Path), help="An Ed25519 key, PEM.")


def _facts(config: RunConfig) -> Facts:
    """What the task's table tells; a task that cannot be loaded is a problem of the config."""
    from ..components.task import load_task

    task = load_task(config.task)
    table, spec = task.table(), task.table_spec()
    return Facts(num_train_samples=int((table[spec.split] == "train").sum()))


@click.command("validate")
@CONFIG
@JSON
def validate_command(config: str, as_json: bool) -> None:
    """Check a config: schema, preflight, and that its task can be imported.

    \b
    Examples:
      convergate validate manifests/configs/digits.yaml
      convergate validate manifests/configs/digits.yaml --json
    """  # noqa: D301
    parsed, _ = load_config(config)
    found = preflight(parsed, _facts(parsed))
    digests = config_digests(parsed)
    if as_json:
        problems = [
            {"path": p.path, "value": p.value, "reason": p.reason, "fix": p.fix, "level": p.level}
            for p in found.problems
        ]
        answer = {
            "valid": not found.errors,
            "checks": found.num_checks,
            "problems": problems,
            **digests.model_dump(),
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(config, parsed, found)
    if found.errors:
        raise click.exceptions.Exit(ExitCode.USAGE)


def _show(path: str, config: RunConfig, found: Preflight) -> None:
    if found.problems:
        errors = len(found.errors)
        warnings = len(found.problems) - errors
        counts = [f"{n} {name}{'s' * (n > 1)}" for n, name in ((errors, "problem"), (warnings, "warning")) if n]
        click.echo(f"{path}: {', '.join(counts)}")
        width = min(44, max(len(f"{p.path} = {p.value}" if p.value else p.path) for p in found.problems))
        for problem in found.problems:
            click.echo(problem.lines(width))
    if not found.errors:
        digests = config_digests(config)
        click.echo(f"{path}: valid, {found.num_checks} checks")
        click.echo(f"  training digest  {digests.training}\n  policy digest    {digests.policy}")


@click.command("schedule")
@CONFIG
@click.option("--csv", "as_csv", is_flag=True, help="Every step as `step,lr`.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a picture: .svg, .png or .pdf.")
@JSON
def schedule_command(config: str, as_csv: bool, plot: Path | None, as_json: bool) -> None:
    """Show the learning rate over the run.

    \b
    Examples:
      convergate schedule manifests/configs/digits.yaml
      convergate schedule manifests/configs/digits.yaml --csv > lr.csv
      convergate schedule manifests/configs/digits.yaml --plot lr.png
    """  # noqa: D301
    from ..components.schedule import build_schedule

    parsed, _ = load_config(config)
    total = parsed.schedule.total_steps or parsed.total_steps(_facts(parsed).num_train_samples or 0)
    schedule = build_schedule(parsed.schedule, total_steps=total, batch_size=parsed.training.batch_size)
    if plot is not None:
        from ..components.report import plot_schedule

        plot_schedule(schedule, plot)
        click.echo(f"{plot} is written", err=True)
    rows = [(step, schedule.lr(step)) for step in range(total)]
    if as_csv:
        click.echo("step,lr")
        for step, rate in rows:
            click.echo(f"{step},{rate!r}")
    elif as_json:
        click.echo(json.dumps({"total_steps": total, "lr": [rate for _, rate in rows]}))
    elif plot is None:
        shown = sorted({0, parsed.schedule.warmup.steps, *range(0, total, max(1, total // 20)), total - 1})
        peak = max(rate for _, rate in rows)
        for step in shown:
            rate = schedule.lr(step)
            click.echo(f"{step:>9}  {rate:<12.6g} {'▇' * round(50 * rate / peak)}")


def _signature_file(config: str) -> Path:
    return Path(f"{config}.sig")


@click.command("sign")
@CONFIG
@KEY
@click.option("--new-key", is_flag=True, help="Make the key first, where there is none.")
def sign_command(config: str, key: Path, new_key: bool) -> None:
    """Sign a config's digests; the signature is written to CONFIG.sig.

    \b
    Example:
      convergate sign manifests/configs/digits.yaml --key release.pem --new-key
    """  # noqa: D301
    from ..components.config.signature import generate_key, sign

    parsed, _ = load_config(config)
    if new_key and not key.exists():
        generate_key(key)
    signature = sign(config_digests(parsed).model_dump(), key)
    target = _signature_file(config)
    target.write_text(signature + "\n")
    click.echo(f"{target} is written: it covers the training and the policy digest")


@click.command("verify")
@CONFIG
@KEY
def verify_command(config: str, key: Path) -> None:
    """Verify CONFIG.sig; exit 1 when the config is not the signed one.

    \b
    Example:
      convergate verify manifests/configs/digits.yaml --key release.pem
    """  # noqa: D301
    from ..components.config.signature import verify

    parsed, _ = load_config(config)
    file = _signature_file(config)
    if not file.exists():
        raise UserError(f"{file} does not exist → convergate sign {config} --key {key}")
    verify(config_digests(parsed).model_dump(), file.read_text().strip(), key)
    click.echo(f"{config}: the signature is good")
