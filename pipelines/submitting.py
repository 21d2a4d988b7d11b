"""A run on Kubeflow Pipelines: compiled for its config, labelled, started once."""

import getpass
import os
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil
from time import monotonic, sleep
from typing import Any, Literal

from ..components import access
from ..components.config import RunConfig, config_digests
from ..components.config.identity import cluster_labels
from ..components.config.plan import current_commit
from ..components.errors import UserError
from .compiling import pipeline_messages
from .kfp_api import INTERNAL_ERROR, PipelinesApi, PipelinesError, named
from .placement import LONGEST_HOURS, TRAIN_HOURS, Placement

Pipeline = Literal["retrain", "canary"]
DESCRIPTION_CHARACTERS = 255
"""What Kubeflow Pipelines keeps of a description: its database refuses the whole run for a longer one."""
SETTLING_SECONDS, LOOK_SECONDS = 10.0, 1.0
"""How long a run is looked for whose answer was lost, since the server may still be making it; and how often."""
_EXTRA_HOURS = {"local": 1, "trainjob": 24}
"""Of train's timeout beside its budget: to start and to save, and where it is a TrainJob's, to wait in a queue."""


@dataclass(frozen=True, slots=True)
class SubmittedRun:
    """A run that the server has taken."""

    run_id: str
    """KFP's id, and ours in the ledger and on S3."""
    url: str
    """Its page."""


def submit(
    api: PipelinesApi,
    pipeline: Pipeline,
    config: RunConfig,
    text: str,
    placement: Placement,
    *,
    service_account: str = access.PIPELINE,
) -> SubmittedRun:
    """Start a pipeline on the config, under the launcher that the config asks for.

    A connection that drops while the run is made is no second run: the run is looked for by its name first.

    Raises:
        PipelinesError: when the server cannot be reached, or refuses.
        UserError: when it needs a namespace.
    """
    import kfp_server_api

    commit = current_commit()
    labels = tuple(cluster_labels(config, commit).items())
    experiment = api.ensure_experiment(config.experiment)
    wanted = kfp_server_api.V2beta1Run(
        display_name=_name(config, pipeline),
        description=describe(config, pipeline, commit),
        experiment_id=experiment,
        pipeline_spec=pipeline_spec(pipeline, config, replace(placement, labels=(*placement.labels, *labels))),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(
            parameters={"config": text, "run_id": "", "submitter": _user()}
        ),
        service_account=service_account,
    )
    run_id = api.required(_create_once(api, wanted))
    return SubmittedRun(run_id, run_url(api.host, run_id))


def pipeline_spec(pipeline: Pipeline, config: RunConfig, placement: Placement) -> dict[str, Any]:
    """The compiled pipeline as the API takes it: what runs, and what Kubernetes has to know beside it.

    Where the placement leaves train's timeout open it is one that the config's budget fits in.

    Raises:
        UserError: when the placement is for another launcher than the config's, or has too few GPUs or hours for it.
    """
    wanted, needed = config.distributed.launcher, processes(config)
    if placement.launcher != wanted:
        raise UserError(f"distributed.launcher = {wanted}: the pipeline would be for {placement.launcher} → {wanted}")
    if 0 < placement.gpus < needed:
        raise UserError(
            f"--gpus {placement.gpus}: the config has {needed} processes in a pod, one GPU each"
            f" → --gpus {needed}, fewer procs_per_node, or --gpus 0 for CPUs"
        )
    hours = config.budget_hours
    if placement.train_hours is None:
        placement = replace(placement, train_hours=train_hours(config))
    elif pipeline == "retrain" and placement.train_hours < hours:
        raise UserError(
            f"--train-hours {placement.train_hours}: training may take {hours:.1f} hours by budget.max_gpu_hours"
            f" → --train-hours {train_hours(config)}, or a smaller budget"
        )
    return pipeline_messages(pipeline, placement)


def train_hours(config: RunConfig) -> int:
    """The timeout of an attempt to train, in hours: its budget with what comes on top, and no less than usual."""
    launcher = config.distributed.launcher
    wanted = ceil(config.budget_hours) + _EXTRA_HOURS[launcher]
    return min(max(wanted, TRAIN_HOURS[launcher]), LONGEST_HOURS)


def processes(config: RunConfig) -> int:
    """The most processes that compute in the pod of one step; evaluation alone where TrainJobs do the rest."""
    if config.distributed.launcher == "trainjob":
        return 1
    return max(config.distributed.procs_per_node, config.canary.procs_per_node)


def describe(config: RunConfig, pipeline: Pipeline, commit: str | None, *more: str) -> str:
    """What the UI shows beside a run's name, each digest shortened as on the labels of its pods; `more` are lines.

    Long names are cut, so that nothing else is lost.
    """
    digests = config_digests(config)
    lines = [f"config {digests.training[:16]}", f"policy {digests.policy[:16]}", *more]
    if commit:
        lines.append(f"commit {commit[:12]}")
    names = f"convergate {pipeline} of {config.experiment}, model {config.promotion.model}, team {config.owner.team}"
    room = DESCRIPTION_CHARACTERS - sum(len(line) + 1 for line in lines)
    return "\n".join([names if len(names) <= room else f"{names[: room - 1]}…", *lines])


def run_url(host: str, run_id: str) -> str:
    """The page of a run in the UI, which the API's host serves too unless KF_PIPELINES_UI_ENDPOINT names another."""
    ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or host
    return f"{ui.rstrip('/')}/#/runs/details/{run_id}"


def _create_once(api: PipelinesApi, wanted: Any) -> str | None:
    """Make a run; after an answer that was lost, find it rather than make another, and try twice at most.

    500 is no lost answer but the server's own, and may come after the Workflow was made: there is no second try then.
    """
    try:
        return _create(api, wanted)
    except PipelinesError as error:
        if not error.transient or error.status == INTERNAL_ERROR:
            raise
    found = _appears(api, wanted)
    if found is not None:
        return found
    try:
        return _create(api, wanted)
    except PipelinesError as error:
        found = _appears(api, wanted) if error.transient else None
        if found is None:
            raise
        return found


def _create(api: PipelinesApi, wanted: Any) -> str | None:
    identity: str | None = api.call(api.runs.run_service_create_run, run=wanted).run_id
    return identity


def _appears(api: PipelinesApi, wanted: Any) -> str | None:
    """The id of the run of that name, as soon as there is one; None when there is none in time."""
    deadline, name = monotonic() + SETTLING_SECONDS, named(wanted.display_name)
    listing = api.runs.run_service_list_runs
    while True:
        for found in api.pages(listing, "runs", experiment_id=wanted.experiment_id, filter=name):
            identity: str = found.run_id
            return identity
        if monotonic() + LOOK_SECONDS > deadline:
            return None
        sleep(LOOK_SECONDS)


def _name(config: RunConfig, pipeline: Pipeline) -> str:
    """Unique, so that a run can be found by it."""
    moment = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return f"{config.experiment}-{config.promotion.model}-{pipeline}-{moment}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
