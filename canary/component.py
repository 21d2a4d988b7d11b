"""The KFP face of the canary."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Output

from ..components.images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def canary(
    config: str,
    plan: Input[Artifact],
    report: Output[Artifact],
    summary: Output[Markdown],
    metrics: Output[Metrics],
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):  # type: ignore[valid-type]
    """Run the first steps of the real schedule, the compressed schedule, and a kill -9 with a restore.

    Both run on the real data, in processes on the step's machine, or on the nodes of a TrainJob that the step starts
    and watches, as the config's `distributed.launcher` says: the canary goes the way that the training will. The
    report is also stored as `canary.json` in the run's prefix.

    Args:
        config: The run config, as YAML text.
        plan: The RunPlan of validate_config, as JSON.
        report: The CanaryReport as JSON: every check with its figure, threshold and reason.
        summary: The checks, for the UI.
        metrics: Projected time and cost of the full run.

    Returns:
        verdict: PASS, FAIL, or INCONCLUSIVE when something outside failed.
        reason: Of the first check that did not pass.
    """
    from pathlib import Path

    from convergate.canary.run import run_canary
    from convergate.components.config import parse_config
    from convergate.components.config.plan import RunPlan
    from convergate.components.training.start import require_launcher

    parsed, run_plan = parse_config(config), RunPlan.from_json(Path(plan.path).read_bytes())
    require_launcher(parsed)
    result = run_canary(parsed, config, run_plan)
    Path(report.path).write_bytes(result.to_json())
    Path(summary.path).write_text(result.to_markdown())
    metrics.log_metric("projected_seconds", result.projected_seconds)
    metrics.log_metric("projected_gpu_hours", result.projected_gpu_hours)
    return result.verdict, result.reason
