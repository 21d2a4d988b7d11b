"""validate, schedule, sign, verify: what can be said of a config before it runs."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import click

from ..components.config import Problem, ProblemsError, RunConfig, config_digests, load_config
from ..components.config.preflight import Facts, Preflight, preflight
from ..components.errors import ConvergateError, ExitCode, UserError
from .options import CONFIG, JSON

KEY = click.option("--key", required=True, type=click.Path(path_type=Path), help="An Ed25519 key, PEM.")


def _facts(config: RunConfig) -> Facts:
    """What the task's table tells.

    Raises:
        UserError: when the task cannot be loaded, or its table cannot be made.
    """
    from ..components.task import load_task

    task = load_task(config.task)
    try:
        table, spec = task.table(), task.table_spec()
        return Facts(num_train_samples=int((table[spec.split] == "train").sum()))
    except ConvergateError:
        raise
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"task.factory = {config.task.factory}: its table cannot be made: {cause}") from error


@click.command("validate")
@CONFIG
@JSON
def validate_command(config: str, as_json: bool) -> None:
    """Check a config: schema, preflight, and that its task can be imported. Exit 2 when it is not valid.

    \b
    Examples:
      convergate validate manifests/configs/digits.yaml
      convergate validate manifests/configs/digits.yaml --json
    """  # noqa: D301
    parsed, found = _checked(config)
    digests = config_digests(parsed) if parsed is not None and not found.errors else None
    if as_json:
        answer = {
            "valid": digests is not None,
            "checks": found.num_checks,
            "problems": [asdict(problem) for problem in found.problems],
            "training": digests.training if digests else None,
            "policy": digests.policy if digests else None,
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(config, found)
        if digests is not None:
            click.echo(f"{config}: valid, {found.num_checks} checks")
            click.echo(f"  training digest  {digests.training}\n  policy digest    {digests.policy}")
    if digests is None:
        raise click.exceptions.Exit(ExitCode.USAGE)


def _checked(path: str) -> tuple[RunConfig | None, Preflight]:
    """The config, where it can be read, and everything that is wrong with it or with its task."""
    try:
        parsed, _ = load_config(path)
    except ProblemsError as error:
        return None, Preflight(error.problems, 0)
    try:
        return parsed, preflight(parsed, _facts(parsed))
    except UserError as error:
        found = preflight(parsed)
        return parsed, Preflight([*found.problems, _task_problem(error)], found.num_checks)


def _task_problem(error: UserError) -> Problem:
    """`task.factory = module:Class: reason → fix`, in its parts."""
    text, _, fix = str(error).partition(" → ")
    match = re.fullmatch(r"(?P<path>task\.\w+)(?: = (?P<value>\S+))?: (?P<reason>.*)", text, re.DOTALL)
    if match is None:
        return Problem("task", text, fix=fix)
    return Problem(match["path"], match["reason"], value=match["value"] or "", fix=fix)


def _show(path: str, found: Preflight) -> None:
    if not found.problems:
        return
    errors = len(found.errors)
    warnings = len(found.problems) - errors
    counts = [f"{n} {name}{'s' * (n > 1)}" for n, name in ((errors, "problem"), (warnings, "warning")) if n]
    click.echo(f"{path}: {', '.join(counts)}")
    width = min(44, max(len(f"{p.path} = {p.value}" if p.value else p.path) for p in found.problems))
    for problem in found.problems:
        click.echo(problem.lines(width))


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

    if as_csv and as_json:
        raise click.UsageError("--csv or --json, not both")
    parsed, _ = load_config(config)
    total = parsed.schedule.total_steps or parsed.total_steps(_facts(parsed).num_train_samples or 0)
    schedule = build_schedule(parsed.schedule, total_steps=total, batch_size=parsed.training.batch_size)
    if plot is not None:
        from ..components.report import plot_schedule

        plot_schedule(schedule, plot)
        click.echo(f"{plot} is written", err=True)
    rates = [schedule.lr(step) for step in range(total)]
    if as_csv:
        click.echo("\n".join(["step,lr", *(f"{step},{rate!r}" for step, rate in enumerate(rates))]))
    elif as_json:
        click.echo(json.dumps({"total_steps": total, "lr": rates}))
    elif plot is None:
        peak = max(rates)
        for step in sorted({0, parsed.schedule.warmup.steps, *range(0, total, max(1, total // 20)), total - 1}):
            click.echo(f"{step:>9}  {rates[step]:<12.6g} {'▇' * round(50 * rates[step] / peak)}".rstrip())


def _signature_file(config: str) -> Path:
    return Path(f"{config}.sig")


@click.command("sign")
@CONFIG
@KEY
@click.option("--new-key", is_flag=True, help="Make the key first, where there is none.")
@JSON
def sign_command(config: str, key: Path, new_key: bool, as_json: bool) -> None:
    """Sign a config's digests; the signature is written to CONFIG.sig.

    \b
    Example:
      convergate sign manifests/configs/digits.yaml --key release.pem --new-key
    """  # noqa: D301
    from ..components.config.signature import generate_key, sign

    parsed, _ = load_config(config)
    if new_key and not key.exists():
        generate_key(key)
    digests = config_digests(parsed)
    signature = sign(digests.model_dump(), key)
    target = _signature_file(config)
    target.write_text(signature + "\n")
    if as_json:
        click.echo(json.dumps({"file": str(target), "signature": signature, **digests.model_dump()}, indent=2))
    else:
        click.echo(f"{target} is written: it covers the training and the policy digest")


@click.command("verify")
@CONFIG
@KEY
@JSON
def verify_command(config: str, key: Path, as_json: bool) -> None:
    """Verify CONFIG.sig; exit 1 when the config is not the signed one.

    \b
    Example:
      convergate verify manifests/configs/digits.yaml --key release.pem
    """  # noqa: D301
    from ..components.config.signature import SignatureError, verify

    parsed, _ = load_config(config)
    file = _signature_file(config)
    if not file.exists():
        raise UserError(f"{file} does not exist → convergate sign {config} --key {key}")
    digests, reason = config_digests(parsed), ""
    try:
        verify(digests.model_dump(), file.read_text(errors="replace").strip(), key)
    except SignatureError as error:
        reason = str(error)
    if as_json:
        click.echo(json.dumps({"valid": not reason, "reason": reason, **digests.model_dump()}, indent=2))
    else:
        click.echo(f"{config}: {reason or 'the signature is good'}")
    raise click.exceptions.Exit(ExitCode.NEGATIVE if reason else ExitCode.POSITIVE)
