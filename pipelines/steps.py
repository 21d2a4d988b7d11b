"""Steps that belong to no room: the red end of a run that stops, and the exit handler."""

from kfp import dsl
from kfp.dsl import HTML, Markdown, Output, PipelineTaskFinalStatus

from ..components.images import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def stop(reason: str) -> None:
    """End the run red: a run that stops at a negative verdict is not a success.

    Args:
        reason: Why it stops, as the last step told it.
    """
    raise SystemExit(f"convergate: stopped: {reason}")


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def stop_undecided(reason: str) -> None:
    """End the run red where nobody can tell yet: a step of its own, so that the run's steps alone say which it was.

    Args:
        reason: What keeps it from being decided, as the last step told it.
    """
    raise SystemExit(f"convergate: undecided: {reason}")


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def passed() -> None:
    """End a canary run green: it passed, and nothing comes behind it."""


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def close_run(
    config: str,
    run_id: str,
    job_id: str,
    report: Output[HTML],
    summary: Output[Markdown],
    status: PipelineTaskFinalStatus = None,
) -> None:
    """Whatever happened: write the run's end into the ledger, render its report, mirror it to MLflow.

    A TrainJob that a step left running is deleted first.

    Args:
        config: The run config, as YAML text.
        run_id: The run's id; empty takes the pipeline job's.
        job_id: The pipeline job's id.
        report: One self-contained HTML page.
        summary: The verdict and the steps, for the UI.
        status: How the pipeline ended; KFP fills it in.
    """
    from pathlib import Path

    from convergate.pipelines.closing import close_run, end_leftovers, was_cancelled

    end_leftovers(config, run_id or job_id)
    closed = close_run(config, run_id or job_id, interrupted=was_cancelled(getattr(status, "state", None)))
    Path(report.path).write_text(closed.html, encoding="utf-8")
    Path(summary.path).write_text(closed.markdown, encoding="utf-8")
