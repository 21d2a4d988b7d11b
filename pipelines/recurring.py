"""Recurring runs: a config on a schedule, one at a time, and never two schedules for one purpose."""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..components import access
from ..components.config import RunConfig
from ..components.config.digest import canonical_digest
from ..components.config.identity import cluster_labels
from ..components.errors import NotFoundError
from .cron import six_fields
from .kfp_api import NOT_FOUND, PipelinesApi, PipelinesError, named
from .placement import Placement
from .submitting import Pipeline, describe, pipeline_spec

Change = Literal["created", "replaced", "unchanged", "paused", "resumed", "deleted"]
_DIGEST = re.compile(r"^schedule ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring run as the server has it."""

    name: str
    recurring_run_id: str
    cron: str
    enabled: bool
    digest: str
    """Of all that it was made from: config, pipeline, cron and account; empty where it was not made here."""
    description: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def schedule_name(config: RunConfig, pipeline: Pipeline) -> str:
    """One schedule for each (experiment, model, pipeline)."""
    return f"convergate-{config.experiment}-{config.promotion.model}-{pipeline}"


def create(
    api: PipelinesApi,
    pipeline: Pipeline,
    config: RunConfig,
    text: str,
    cron: str,
    placement: Placement,
    *,
    service_account: str = access.PIPELINE,
    paused: bool = False,
) -> tuple[Change, Schedule]:
    """Have the pipeline run on the config at these times; again with the same, nothing changes.

    With anything else the new schedule stands before the old one is deleted, so that no night is missed. It is paused
    where the old one was.

    Raises:
        UserError: for a cron expression that is none, or a server that needs a namespace.
        PipelinesError: when the server cannot be reached, or refuses.
    """
    cron = six_fields(cron)
    # The commit is in no label here: it would make another schedule of the same one each day.
    labelled = replace(placement, labels=(*placement.labels, *cluster_labels(config, None).items()))
    spec = pipeline_spec(pipeline, config, labelled)
    digest = canonical_digest([text, cron, service_account, spec])
    earlier = find(api, pipeline, config)
    same = next((one for one in earlier if one.digest == digest), None)
    if same is None:
        stays_paused = bool(earlier) and not any(one.enabled for one in earlier)
        made = _create(api, pipeline, config, text, cron, spec, digest, service_account, paused or stays_paused)
    elif paused and same.enabled:
        api.ask(api.recurring_runs.recurring_run_service_disable_recurring_run, recurring_run_id=same.recurring_run_id)
        made = replace(same, enabled=False)
    else:
        made = same
    others = [one for one in earlier if one.recurring_run_id != made.recurring_run_id]
    delete(api, others)
    if same is None:
        return ("replaced" if earlier else "created"), made
    return ("unchanged" if made == same else "paused"), made


def find(api: PipelinesApi, pipeline: Pipeline, config: RunConfig) -> list[Schedule]:
    """The schedules of a config's experiment and model; more than one only where a change was broken off."""
    experiment = api.experiment(config.experiment)
    if experiment is None:
        return []
    name = schedule_name(config, pipeline)
    listing = api.recurring_runs.recurring_run_service_list_recurring_runs
    found = api.pages(listing, "recurring_runs", experiment_id=experiment, filter=named(name))
    return [_schedule(one) for one in found if one.display_name == name]


def existing(api: PipelinesApi, pipeline: Pipeline, config: RunConfig) -> list[Schedule]:
    """As `find`, where there has to be one.

    Raises:
        NotFoundError: when there is none.
    """
    found = find(api, pipeline, config)
    if not found:
        raise NotFoundError(f"{schedule_name(config, pipeline)}: no such recurring run → convergate recurring --cron …")
    return found


def switch(api: PipelinesApi, schedules: list[Schedule], *, enabled: bool) -> list[Schedule]:
    """Pause schedules, or resume them; what they missed is not made up for."""
    runs = api.recurring_runs
    function = (
        runs.recurring_run_service_enable_recurring_run if enabled else runs.recurring_run_service_disable_recurring_run
    )
    for schedule in schedules:
        api.ask(function, recurring_run_id=schedule.recurring_run_id)
    return [replace(schedule, enabled=enabled) for schedule in schedules]


def delete(api: PipelinesApi, schedules: list[Schedule]) -> None:
    """Delete schedules; runs that have begun go on."""
    function = api.recurring_runs.recurring_run_service_delete_recurring_run
    for schedule in schedules:
        try:
            api.ask(function, recurring_run_id=schedule.recurring_run_id)
        except PipelinesError as error:
            if error.status != NOT_FOUND:  # done by a call whose answer was lost, or by somebody else
                raise


def _create(
    api: PipelinesApi,
    pipeline: Pipeline,
    config: RunConfig,
    text: str,
    cron: str,
    spec: dict[str, Any],
    digest: str,
    service_account: str,
    paused: bool,
) -> Schedule:
    import kfp_server_api as kfp

    name = schedule_name(config, pipeline)
    wanted = kfp.V2beta1RecurringRun(
        display_name=name,
        description=f"{describe(config, pipeline, None)}\nschedule {digest}",
        experiment_id=api.ensure_experiment(config.experiment),
        pipeline_spec=spec,
        runtime_config=kfp.V2beta1RuntimeConfig(
            parameters={"config": text, "run_id": "", "submitter": f"recurring run {name}"}
        ),
        trigger=kfp.V2beta1Trigger(cron_schedule=kfp.V2beta1CronSchedule(cron=cron)),
        mode=kfp.RecurringRunMode.DISABLE if paused else kfp.RecurringRunMode.ENABLE,
        max_concurrency="1",
        no_catchup=True,
        service_account=service_account,
    )
    made = api.call(api.recurring_runs.recurring_run_service_create_recurring_run, recurring_run=wanted)
    return replace(_schedule(made), name=name, recurring_run_id=api.required(made.recurring_run_id), cron=cron,
                   enabled=not paused, digest=digest)  # fmt: skip


def _schedule(run: Any) -> Schedule:
    trigger = run.trigger.cron_schedule if run.trigger is not None else None
    description = run.description or ""
    match = _DIGEST.search(description)
    return Schedule(
        name=run.display_name or "",
        recurring_run_id=run.recurring_run_id or "",
        cron=(trigger.cron if trigger is not None else "") or "",
        enabled=run.status == "ENABLED",
        digest=match[1] if match else "",
        description=description,
    )
