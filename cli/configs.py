"""validate, schedule, sign, verify: what can be said of a config before it runs."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

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
    parsed, found, facts = _checked(config)
    digests = config_digests(parsed) if parsed is not None and not found.errors else None
    length = _length(parsed, facts) if parsed is not None and digests is not None else None
    if as_json:
        answer = {
            "valid": digests is not None,
            "checks": found.num_checks,
            "problems": [asdict(problem) for problem in found.problems],
            "training": digests.training if digests else None,
            "policy": digests.policy if digests else None,
            **(length._asdict() if length else dict.fromkeys(_Length._fields)),
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(config, found)
        if digests is not None:
            click.echo(f"{config}: valid, {found.num_checks} checks")
            click.echo(f"  length           {length}")
            click.echo(f"  training digest  {digests.training}\n  policy digest    {digests.policy}")
    if digests is None:
        raise click.exceptions.Exit(ExitCode.USAGE)


class _Length(NamedTuple):
    """A run's length both ways, whichever the config gives; in epochs as far as the data is known."""

    total_steps: int
    steps_per_epoch: int | None = None
    epochs: float | None = None

    def __str__(self) -> str:
        steps = f"{self.total_steps:,} step{'s' * (self.total_steps != 1)}"
        if self.epochs is None:
            return steps
        return f"{steps}, {self.epochs:.4g} epoch{'s' * (self.epochs != 1)} of {self.steps_per_epoch:,}"


def _length(config: RunConfig, facts: Facts) -> _Length:
    """The run's length; the data has to be known where the config gives epochs."""
    per_epoch = config.steps_per_epoch(facts.num_train_samples or 0)
    total_steps = config.total_steps(facts.num_train_samples or 0)
    return _Length(total_steps, per_epoch, total_steps / per_epoch) if per_epoch else _Length(total_steps)


def _checked(path: str) -> tuple[RunConfig | None, Preflight, Facts]:
    """The config, where it can be read, everything that is wrong with it or with its task, and what the task tells."""
    try:
        parsed, _ = load_config(path)
    except ProblemsError as error:
        return None, Preflight(error.problems, 0), Facts()
    try:
        facts = _facts(parsed)
    except UserError as error:
        found = preflight(parsed)
        return parsed, Preflight([*found.problems, _task_problem(error)], found.num_checks), Facts()
    return parsed, preflight(parsed, facts), facts


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
    """Show the learning rate over the run, as far as the config decides it.

    \b
    Examples:
      convergate schedule manifests/configs/digits.yaml
      convergate schedule manifests/configs/digits.yaml --csv > lr.csv
      convergate schedule manifests/configs/digits.yaml --plot lr.png
    """  # noqa: D301
    from ..components.schedule import build_schedule, build_watch

    if as_csv and as_json:
        raise click.UsageError("--csv or --json, not both")
    parsed, _ = load_config(config)
    try:
        facts = _facts(parsed)
    except ConvergateError:
        if parsed.schedule.total_steps is None:
            raise
        facts = Facts()  # the rate can be shown without the data
    length, batch_size = _length(parsed, facts), parsed.training.batch_size
    schedule = build_schedule(parsed.schedule, total_steps=length.total_steps, batch_size=batch_size)
    watch = build_watch(parsed.schedule, batch_size=batch_size)
    if watch is not None:
        click.echo(f"the rate depends on the run: without what plateaus of val_{watch.metric} change", err=True)
    if plot is not None:
        from ..components.report import plot_schedule

        plot_schedule(schedule, plot)
        click.echo(f"{plot} is written", err=True)
    total = length.total_steps
    rates = [schedule.lr(step) for step in range(total)]
    if as_csv:
        click.echo("\n".join(["step,lr", *(f"{step},{rate!r}" for step, rate in enumerate(rates))]))
    elif as_json:
        click.echo(json.dumps({**length._asdict(), "lr": rates}))
    elif plot is None:
        peak = max(rates)
        for step in sorted({0, parsed.schedule.warmup.steps, *range(0, total, max(1, total // 20)), total - 1}):
            click.echo(f"{step:>9}  {rates[step]:<12.6g} {'▇' * round(50 * rates[step] / peak)}".rstrip())
        click.echo(str(length))


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
