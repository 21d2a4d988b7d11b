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
    another one, the new schedule stands before the old one is deleted; it is paused where the old one was.

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
        change, schedule = recurring.create(
            cluster.api(host), pipeline, parsed, text, cron, placement,
            service_account=cluster.service_account, paused=paused,
        )  # fmt: skip
        stays_paused = change == "replaced" and not schedule.enabled and not paused
        _tell(change, [schedule], as_json, ", and paused as before → --resume" if stays_paused else "")
        return
    (action,), api = asked, cluster.api(host)
    schedules = recurring.existing(api, pipeline, parsed)
    if action == "delete":
        recurring.delete(api, schedules)
    elif action != "show":
        schedules = recurring.switch(api, schedules, enabled=action == "resume")
    words = {"show": "", "pause": "paused", "resume": "resumed", "delete": "deleted"}
    _tell(words[action], schedules, as_json)


def _tell(change: str, schedules: list[Any], as_json: bool, more: str = "") -> None:
    if as_json:
        answer = {"change": change, "schedules": [schedule.as_dict() for schedule in schedules]}
        click.echo(json.dumps(answer, indent=2))
        return
    for schedule in schedules:
        state = "on" if schedule.enabled else "paused"
        known = change or schedule.description.partition("\n")[0]
        click.echo(f"{schedule.name}  {schedule.cron}  {state}  {known}{more}")
