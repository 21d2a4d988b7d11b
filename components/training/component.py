"""The KFP face of training."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Output

from ..images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def train(
    config: str,
    plan: Input[Artifact],
    training: Output[Artifact],
    summary: Output[Markdown],
    metrics: Output[Metrics],
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):  # type: ignore[valid-type]
    """Train over all processes under the planned learning rate, with checkpoints and a trace on S3.

    The processes run on the step's machine, or on the nodes of a TrainJob that the step starts and watches, as the
    config's `distributed.launcher` says. A retried step finds its TrainJob again, or continues from the newest
    checkpoint that verifies. The result is also stored as `training.json` in the run's prefix.

    Args:
        config: The run config, as YAML text.
        plan: The RunPlan of validate_config, as JSON.
        training: The TrainingResult as JSON: status, checkpoint with its digest, metrics, events, cost.
        summary: How the training ended, for the UI.
        metrics: The last validation, for the UI's comparison of runs.

    Returns:
        verdict: PASS when all steps ran with finite losses, else FAIL.
        reason: Why not.
    """
    import math
    from pathlib import Path

    from convergate.components.config import parse_config
    from convergate.components.config.plan import RunPlan
    from convergate.components.errors import OutsideError
    from convergate.components.training.start import require_launcher
    from convergate.components.training.train import run_training

    parsed, run_plan = parse_config(config), RunPlan.from_json(Path(plan.path).read_bytes())
    require_launcher(parsed)
    result = run_training(parsed, config, run_plan)
    if result.failure == "outside":
        raise OutsideError(result.reason)  # a retry of the step continues from the newest checkpoint
    Path(training.path).write_bytes(result.to_json())
    Path(summary.path).write_text(result.to_markdown())
    for name, value in result.val_metrics.items():
        if math.isfinite(value):
            metrics.log_metric(f"val_{name}", value)
    return result.verdict, result.reason
