"""What the DAGs share: a run that is opened first and closed whatever happens, and the checks before anything is paid.

Every gate is a string verdict with an If and an Else, and every Else ends red. An If alone on a named output is skipped
in silence by KFP 2.17, and a NaN output skips both branches: so verdicts are strings, and there is always an Else.
"""

from collections.abc import Callable

from kfp import dsl

from ..canary.component import canary
from ..components.config.component import validate_config
from ..components.data.component import validate_data
from ..components.slo.component import open_run
from ..components.slo.ledger import RunKind
from .placement import Placement
from .pods import ending, heavy, knowing_its_pod, light
from .steps import close_run, stop, stop_undecided

INPUTS = """

    Args:
        config: The run config, as YAML text: one file is one run's whole truth.
        run_id: An id for the run; empty takes the pipeline job's, so that each start is a new run.
        submitter: Who or what started it, for the ledger.
    """
"""How every pipeline explains what a person fills in."""


DAY_SECONDS = 24 * 3600


def retention(placement: Placement) -> dsl.PipelineConfig:
    """How long the cluster keeps what a run leaves on it.

    All three, since KFP 2.17 has an hour as its own default after success and after failure, which come first.
    """
    seconds = None if placement.keep_days is None else placement.keep_days * DAY_SECONDS
    return dsl.PipelineConfig(
        ttl_seconds_after_finished=seconds, ttl_seconds_after_success=seconds, ttl_seconds_after_failure=seconds
    )


def checked_run(
    kind: RunKind,
    placement: Placement,
    config: str,
    run_id: str,
    submitter: str,
    then: Callable[[object, dsl.PipelineTask], None],
) -> None:
    """Open the run, validate config and data, run the canary; `then(run, plan)` adds what follows its PASS.

    Args:
        kind: Of run, in the ledger.
        placement: Where the steps run.
        config: The pipeline's input.
        run_id: The pipeline's input.
        submitter: The pipeline's input.
        then: Gets the run's id and the task with the plan.
    """
    job_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    closing = light(close_run(config=config, run_id=run_id, job_id=job_id), placement)
    if placement.launcher == "trainjob":
        knowing_its_pod(closing)
    with dsl.ExitHandler(closing.set_display_name("close run"), name="always-close-run"):
        opening = open_run(config=config, run_id=run_id, job_id=job_id, kind=kind, submitter=submitter)
        run = light(opening, placement).set_display_name("open run").output
        plan = light(validate_config(config=config, run_id=run), placement).set_display_name("validate config")
        with dsl.If(plan.outputs["verdict"] == "PASS", name="config-is-valid"):
            data = light(validate_data(config=config, run_id=run), placement, memory="4Gi")
            data.set_display_name("validate data")
            with dsl.If(data.outputs["verdict"] == "PASS", name="data-is-valid"):
                trial = heavy(canary(config=config, plan=plan.outputs["plan"]), "canary", placement)
                with dsl.If(trial.outputs["verdict"] == "PASS", name="canary-passes"):
                    then(run, plan)
                stop_or_undecided(trial, placement, "canary")
            with dsl.Else(name="data-stops"):
                stopped(data, placement)
        with dsl.Else(name="config-stops"):
            stopped(plan, placement)


def stopped(task: dsl.PipelineTask, placement: Placement) -> None:
    """The red end after a negative verdict."""
    ending(stop(reason=task.outputs["reason"]), placement).set_display_name("stop: see the reason")


def stop_or_undecided(task: dsl.PipelineTask, placement: Placement, name: str) -> None:
    """The two other branches of a gate that may not be able to tell: FAIL, and anything else."""
    with dsl.Elif(task.outputs["verdict"] == "FAIL", name=f"{name}-stops"):
        stopped(task, placement)
    with dsl.Else(name=f"{name}-cannot-tell"):
        undecided = stop_undecided(reason=task.outputs["reason"])
        ending(undecided, placement).set_display_name("stop undecided: see the reason")
