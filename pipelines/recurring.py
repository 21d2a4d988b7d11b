"""Recurring runs: a config on a schedule, one at a time, and never two schedules for one purpose.

A schedule owns its runs in the cluster: when it is deleted, a run of it that goes on is taken away too, with its pods
and its TrainJob, and nobody closes it. So a schedule is paused, and deleted once no run of it goes on.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..components import access
from ..components.config import RunConfig
from ..components.config.digest import canonical_digest
from ..components.config.identity import cluster_labels
from ..components.errors import NotFoundError
from .cron import six_fields
from .kfp_api import FINAL, NOT_FOUND, PipelinesApi, PipelinesError, named
from .placement import Placement
from .submitting import Pipeline, describe, pipeline_spec

Change = Literal["created", "replaced", "unchanged", "paused", "resumed", "deleted"]
_NEWEST_FIRST = "created_at desc"
_DIGEST = re.compile(r"^schedule ([0-9a-f]{32})$", re.MULTILINE)


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
    experiment_id: str

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
) -> tuple[Change, Schedule, list[Schedule]]:
    """Have the pipeline run on the config at these times; again with the same, nothing changes.

    With anything else the new schedule stands before the old one is deleted, so that no night is missed. It is paused
    where the old one was.

    Returns:
        What was done, the schedule, and older ones that are kept, paused, while a run of them goes on.

    Raises:
        UserError: for a cron expression that is none, or a server that needs a namespace.
        PipelinesError: when the server cannot be reached, or refuses.
    """
    cron = six_fields(cron)
    # The commit is in no label here: it would make another schedule of the same one each day.
    labelled = replace(placement, labels=(*placement.labels, *cluster_labels(config, None).items()))
    spec = pipeline_spec(pipeline, config, labelled)
    digest = canonical_digest([text, cron, service_account, spec])[:32]
    earlier = find(api, pipeline, config)
    same = earlier[0] if earlier and earlier[0].digest == digest else None
    if same is None:
        stays_paused = bool(earlier) and not earlier[0].enabled
        made = _create(api, pipeline, config, text, cron, spec, digest, service_account, paused or stays_paused)
    elif paused and same.enabled:
        (made,) = switch(api, [same], enabled=False)
    else:
        made = same
    others = [one for one in earlier if one.recurring_run_id != made.recurring_run_id]
    kept = delete(api, others)
    if same is None:
        return ("replaced" if earlier else "created"), made, kept
    return ("unchanged" if made == same else "paused"), made, kept


def find(api: PipelinesApi, pipeline: Pipeline, config: RunConfig) -> list[Schedule]:
    """The schedules of a config's experiment and model, the newest first; any other has been replaced by it."""
    experiment = api.experiment(config.experiment)
    if experiment is None:
        return []
    name = schedule_name(config, pipeline)
    listing = api.recurring_runs.recurring_run_service_list_recurring_runs
    found = api.pages(listing, "recurring_runs", experiment_id=experiment, filter=named(name), sort_by=_NEWEST_FIRST)
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


def delete(api: PipelinesApi, schedules: list[Schedule]) -> list[Schedule]:
    """Delete schedules; those of which a run goes on are paused and given back, to be deleted another time."""
    kept = []
    for schedule in schedules:
        try:
            paused = switch(api, [schedule], enabled=False) if schedule.enabled else [schedule]
            if _runs_now(api, schedule):
                kept += paused
            else:
                function = api.recurring_runs.recurring_run_service_delete_recurring_run
                api.ask(function, recurring_run_id=schedule.recurring_run_id)
        except PipelinesError as error:
            if error.status != NOT_FOUND:  # done by a call whose answer was lost, or by somebody else
                raise
    return kept


def _runs_now(api: PipelinesApi, schedule: Schedule) -> bool:
    """Whether a run that the schedule has started goes on; one that has only begun has no state."""
    predicates = [{"operation": "NOT_EQUALS", "key": "state", "string_value": state} for state in FINAL]
    predicates.append({"operation": "EQUALS", "key": "recurring_run_id", "string_value": schedule.recurring_run_id})
    listing, wanted = api.runs.run_service_list_runs, json.dumps({"predicates": predicates})
    return bool(api.ask(listing, experiment_id=schedule.experiment_id, filter=wanted, page_size=1).runs)


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
        description=describe(config, pipeline, None, f"schedule {digest}"),
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
        experiment_id=run.experiment_id or "",
    )
