"""promote, rollback: a person's approval of what was decided, and the way back."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from ..components.config import RunConfig, load_config, parse_config
from ..components.errors import ExitCode, NotFoundError
from .ledger import config_of, embedded_s3
from .options import CONFIG, HOME, JSON, ROOT


def _one_line(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A reason in one line; it is what the audit says, so it cannot be blank."""
    line = None if value is None else " ".join(value.split())
    if line == "":
        raise click.BadParameter("is blank: say why, for whoever asks a year later")
    return line


@click.command("promote")
@click.argument("run")
@click.option("--approve", "approves", is_flag=True, help="Approve it. Without, it is only shown.")
@click.option("--reason", callback=_one_line, help="Why; the audit says it.")
@click.option("--key", type=click.Path(path_type=Path), help="Your Ed25519 private key, PEM.")
@click.option(
    "--valid-hours",
    default=24,
    show_default=True,
    type=click.IntRange(1, 168),
    help="How long the approval may be carried out.",
)
@ROOT
@JSON
def promote_command(
    run: str, approves: bool, reason: str | None, key: Path | None, valid_hours: int, root: str, as_json: bool
) -> None:
    """Approve a challenger: it becomes champion. Without --approve, show what would be promoted, and exit 3.

    The approval is signed, expires, and is about the run's decision as it stands; REJECT and HOLD cannot be
    approved. Repeated, it changes nothing; expired, it is refused until `convergate gate` has decided again.

    \b
    Examples:
      convergate promote digits-20260101-020000-abc123
      convergate promote digits-20260101-020000-abc123 --approve --reason "checked on site" --key ada.pem
    """  # noqa: D301
    if not approves:
        with embedded_s3():
            shown = _what_would_be(root, run)
        click.echo(json.dumps(shown, indent=2) if as_json else "\n".join(_lines(shown)))
        raise click.exceptions.Exit(ExitCode.NEGATIVE if shown["decision"] == "REJECT" else ExitCode.UNDECIDED)
    if reason is None or key is None:
        raise click.UsageError("--approve needs --reason and --key")
    from ..components.promotion.approval import approve
    from ..components.promotion.promote import promote_run
    from ..pipelines.servers import embedded_servers

    with embedded_servers(HOME):
        config, decision, _ = _decided(root, run)
        approval = approve(
            config.storage.uri, decision, reason=reason, key_file=key, valid_for=timedelta(hours=valid_hours)
        )
        if not as_json:
            click.echo(f"approved by {approval.approver} until {approval.expires:%Y-%m-%d %H:%M} UTC", err=True)
        promotion = promote_run(config, run, decision, approval)
    if as_json:
        click.echo(promotion.model_dump_json(indent=2))
    else:
        click.echo(f"{promotion.summary}\n  audit     {promotion.audit_uri}\n  approval  {promotion.approval_uri}")


@click.command("rollback")
@CONFIG
@click.option("--reason", required=True, callback=_one_line, help="Why; the audit says it.")
@JSON
def rollback_command(config: str, reason: str, as_json: bool) -> None:
    """Make the previous champion of a config's model champion again; repeated, it goes further back.

    \b
    Example:
      convergate rollback manifests/configs/digits.yaml --reason "worse on the night shift"
    """  # noqa: D301
    from ..components.promotion.promote import roll_back
    from ..pipelines.servers import embedded_servers

    parsed, _ = load_config(config)
    with embedded_servers(HOME):
        record = roll_back(parsed, reason)
    click.echo(record.model_dump_json(indent=2) if as_json else f"{record.summary}: {record.reason}")


def _decided(root: str, run: str) -> tuple[RunConfig, Any, Any]:
    """A run's config, decision and evaluation.

    Raises:
        NotFoundError: when there is no such run, or nothing was decided over it.
    """
    from ..components.evaluation.result import Evaluation
    from ..components.slo.decision import Decision
    from ..components.storage import RunStore

    config = parse_config(config_of(root, run), source=f"the config of run {run}")
    store = RunStore(config.storage.uri, run)
    decision, evaluation = store.find("decision", Decision), store.find("evaluation", Evaluation)
    if decision is None or evaluation is None:
        raise NotFoundError(f"nothing was decided over run {run}: there is nothing to approve → convergate runs")
    return config, decision, evaluation


def _what_would_be(root: str, run: str) -> dict[str, Any]:
    """What an approval would promote, and instead of what."""
    from ..components.promotion.approval import find_approval
    from ..components.promotion.champion import read_champion
    from ..components.promotion.promote import knew_champion

    config, decision, evaluation = _decided(root, run)
    record = read_champion(config.storage.uri, config.promotion.model)
    champion = record.champion if record else None
    approval = find_approval(config.storage.uri, decision)
    return {
        "run": run,
        "model": config.promotion.model,
        "decision": decision.decision,
        "reasons": decision.reasons,
        "checks": [check.model_dump() for check in decision.checks],
        "slo": {"verdict": decision.standing.verdict, "line": decision.standing.line},
        "metric": evaluation.model_dump(include={"metric", "value", "low", "high", "target", "champion_value"}),
        "champion": champion.model_dump() if champion else None,
        "measured_against_champion": knew_champion(decision, record),
        "approval": approval.model_dump(mode="json") if approval else None,
    }


def _lines(shown: dict[str, Any]) -> list[str]:
    metric, approval = shown["metric"], shown["approval"]
    return [
        f"{shown['model']}, run {shown['run']}: {shown['decision']}: {'; '.join(shown['reasons'])}",
        *(
            f" {'✓' if check['verdict'] == 'PASS' else '✗'} {check['name']:<22}{check['figure']:<24}"
            f"{check['threshold']:<16}{check['reason']}".rstrip()
            for check in shown["checks"]
        ),
        f"   {'SLO':<22}{shown['slo']['verdict']}: {shown['slo']['line']}",
        f"   {metric['metric']:<22}{metric['value']:.4g} [{metric['low']:.4g}, {metric['high']:.4g}],"
        f" target {metric['target']:g}",
        f"   {'champion':<22}{_champion_line(shown)}",
        *([f"   {'approval':<22}by {approval['approver']}: {approval['reason']}"] if approval else []),
        f"Nothing was changed. {_next_line(shown)}",
    ]


def _champion_line(shown: dict[str, Any]) -> str:
    champion = shown["champion"]
    if champion is None:
        return "none yet"
    line = f"v{champion['version']} of run {champion['run_id']}"
    if champion["run_id"] == shown["run"]:
        return f"{line}: this one"
    return line if shown["measured_against_champion"] else f"{line}, which the decision did not know"


def _next_line(shown: dict[str, Any]) -> str:
    champion, run = shown["champion"], shown["run"]
    if champion is not None and champion["run_id"] == run:
        return "It is champion already."
    if shown["decision"] in ("REJECT", "HOLD"):
        return f"A decision that is {shown['decision']} cannot be approved."
    if not shown["measured_against_champion"]:
        return "The champion changed since: a new run is measured against it → convergate retrain"
    return f'Next: `convergate promote {run} --approve --reason "…" --key FILE`'
