"""recurring: a pipeline on a schedule, on Kubeflow Pipelines."""

import json
from typing import Any, Literal

import click

from ..components.config import load_config
from ..components.errors import UserError
from .cluster import Cluster, cluster_options, require_valid
from .options import CONFIG, JSON


@click.command("recurring")
@CONFIG
@click.option("--host", required=True, envvar="KF_PIPELINES_ENDPOINT", help="URL of Kubeflow Pipelines.")
@click.option("--cron", help="Minute hour day month weekday, in the cluster's time zone; a sixth, first: seconds.")
@click.option("--show", is_flag=True, help="What is scheduled.")
@click.option("--pause", is_flag=True, help="Start no run until --resume.")
@click.option("--resume", is_flag=True, help="Go on; what was missed is not made up for.")
@click.option("--delete", is_flag=True, help="Schedule no run any more.")
@click.option(
    "--pipeline",
    type=click.Choice(["retrain", "canary"]),
    default="retrain",
    show_default=True,
    help="What is scheduled.",
)
@click.option("--paused", is_flag=True, help="With --cron: schedule it, and don't start yet.")
@cluster_options
@JSON
def recurring_command(
    config: str,
    host: str,
    cron: str | None,
    pipeline: Literal["retrain", "canary"],
    paused: bool,
    cluster: Cluster,
    as_json: bool,
    **actions: bool,
) -> None:
    """Schedule a pipeline on a config, one run at a time; or show, pause, resume and delete the schedule.

    One schedule stands for a config's experiment and model. Given again with the same config nothing changes; with
    another one, the new schedule stands before the old one is deleted; it is paused where the old one was. A schedule
    of which a run goes on is paused, and deleted by the next --cron or --delete: Kubernetes would end the run with it.

    \b
    Examples:
      convergate recurring manifests/configs/digits.yaml --cron '0 2 * * *' --host https://pipelines.example.org
      convergate recurring manifests/configs/digits.yaml --pause --host https://pipelines.example.org
      convergate recurring manifests/configs/digits.yaml --show --host https://pipelines.example.org --json
    """  # noqa: D301
    asked = [action for action, is_asked in actions.items() if is_asked]
    if len(asked) + (cron is not None) != 1:
        raise UserError("one of --cron, --show, --pause, --resume, --delete → convergate recurring --help")
    if paused and cron is None:
        raise UserError("--paused goes with --cron → --pause")
    from ..pipelines import recurring

    parsed, text = load_config(config)
    if cron is not None:
        require_valid(parsed, config)
        placement = cluster.placement_for(parsed)
        change, schedule, kept = recurring.create(
            cluster.api(host), pipeline, parsed, text, cron, placement,
            service_account=cluster.service_account, paused=paused,
        )  # fmt: skip
        stays_paused = change == "replaced" and not schedule.enabled and not paused
        _tell(change, [schedule], kept, as_json, ", and paused as before → --resume" if stays_paused else "")
        return
    (action,), api = asked, cluster.api(host)
    newest, *older = recurring.existing(api, pipeline, parsed)
    schedules, kept = [newest], older
    if action == "delete":
        kept = recurring.delete(api, [newest, *older])
        ids = {schedule.recurring_run_id for schedule in kept}
        schedules = [schedule for schedule in (newest, *older) if schedule.recurring_run_id not in ids]
    elif action != "show":
        others = [schedule for schedule in older if schedule.enabled and action == "pause"]
        schedules = recurring.switch(api, [newest, *others], enabled=action == "resume")
        kept = [schedule for schedule in older if schedule not in others]
    words = {"show": "", "pause": "paused", "resume": "resumed", "delete": "deleted"}
    _tell(words[action], schedules, kept, as_json)


def _tell(change: str, schedules: list[Any], kept: list[Any], as_json: bool, more: str = "") -> None:
    if as_json:
        answer = {"change": change, "schedules": [schedule.as_dict() for schedule in schedules]}
        answer["kept"] = [schedule.as_dict() for schedule in kept]
        click.echo(json.dumps(answer, indent=2))
        return
    lines = [(schedule, (change or schedule.description.partition("\n")[0]) + more) for schedule in schedules]
    lines += [(schedule, "kept while a run of it goes on → then --delete, or --cron") for schedule in kept]
    for schedule, line in lines:
        click.echo(f"{schedule.name}  {schedule.cron}  {'on' if schedule.enabled else 'paused'}  {line}")
