"""The KFP faces of the SLO: opening a run, and the gate."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Output

from ..images import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def open_run(config: str, run_id: str, job_id: str, kind: str, submitter: str) -> str:
    """Record the start of a run in the ledger, and keep its config as `config.yaml` in the run's prefix.

    A run that is open already stays as it is, so a retried step is the same run.

    Args:
        config: The run config, as YAML text.
        run_id: The run's id; empty takes the pipeline job's.
        job_id: The pipeline job's id: `dsl.PIPELINE_JOB_ID_PLACEHOLDER`.
        kind: retrain, canary or sweep.
        submitter: Who started it; empty takes the process's user.

    Returns:
        The run's id.
    """
    from convergate.components.slo.gate import open_run

    return open_run(config, run_id or job_id, kind, submitter).run_id


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def gate(
    config: str,
    run_id: str,
    plan: Input[Artifact],
    training: Input[Artifact],
    evaluation: Input[Artifact],
    decision: Output[Artifact],
    summary: Output[Markdown],
    metrics: Output[Metrics],
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):  # type: ignore[valid-type]
    """Decide by the convergence SLO: REJECT, HOLD, CHALLENGER or PROMOTE.

    It reads the ledger of the config's experiment and model; the run itself is counted. The documents that it is given
    have to be those that their steps stored in the run's prefix. The decision is also stored there, as `decision.json`.

    Args:
        config: The run config, as YAML text.
        run_id: The run's id.
        plan: The RunPlan of validate_config, as JSON.
        training: The TrainingResult of train, as JSON.
        evaluation: The Evaluation of evaluate, as JSON.
        decision: The Decision as JSON, signed where CONVERGATE_DECISION_KEY names a key file.
        summary: Checks, SLO and reasons, for the UI.
        metrics: Runs counted and runs converged in the window.

    Returns:
        verdict: PASS when an alias may be set (PROMOTE, CHALLENGER), FAIL on REJECT, INCONCLUSIVE on HOLD.
        reason: Of the decision.
    """
    from pathlib import Path

    from convergate.components.config import parse_config
    from convergate.components.config.plan import RunPlan
    from convergate.components.evaluation.result import Evaluation
    from convergate.components.slo.gate import run_gate
    from convergate.components.storage import RunStore
    from convergate.components.training.result import TrainingResult

    parsed = parse_config(config)
    run = RunStore(parsed.storage.uri, run_id)
    decided = run_gate(
        parsed,
        run.require("plan", RunPlan.from_json(Path(plan.path).read_bytes())),
        run.require("training", TrainingResult.from_json(Path(training.path).read_bytes())),
        run.require("evaluation", Evaluation.from_json(Path(evaluation.path).read_bytes())),
    )
    Path(decision.path).write_bytes(decided.to_json())
    Path(summary.path).write_text("\n".join(["```", *decided.lines(), "```"]) + "\n")
    convergence = decided.standing.slis[0]
    metrics.log_metric("runs_converged", convergence.count)
    metrics.log_metric("runs_counted", convergence.total)

    class Outputs(NamedTuple):
        verdict: str
        reason: str

    stopped = "INCONCLUSIVE" if decided.decision == "HOLD" else "FAIL"
    return Outputs("PASS" if decided.sets_alias else stopped, decided.summary)
