"""The KFP face of evaluation."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Output

from ..images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def evaluate(
    config: str,
    training: Input[Artifact],
    champion: Input[Artifact],
    evaluation: Output[Artifact],
    summary: Output[Markdown],
    metrics: Output[Metrics],
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):  # type: ignore[valid-type]
    """Measure the candidate on the test split, against its target and against the champion on the same samples.

    The checkpoint is verified before it is loaded. The evaluation is also stored as `evaluation.json` in the run's
    prefix.

    Args:
        config: The run config, as YAML text.
        training: The TrainingResult of train, as JSON.
        champion: JSON with the champion's uri, digest and task, from find_champion; the first two empty where there is
            none.
        evaluation: The Evaluation as JSON: every metric, the 95 % interval of the configured one, the checks.
        summary: Its checks, for the UI.
        metrics: The test metrics, finite ones only: KFP fails on NaN.

    Returns:
        verdict: PASS, FAIL, or INCONCLUSIVE when the champion cannot be measured.
        reason: Of the first check that did not pass.
    """
    import json
    import math
    from pathlib import Path

    from convergate.components.config import parse_config
    from convergate.components.evaluation.evaluate import Champion, evaluate_candidate
    from convergate.components.training.result import TrainingResult

    result = evaluate_candidate(
        parse_config(config),
        TrainingResult.from_json(Path(training.path).read_bytes()),
        Champion(**json.loads(Path(champion.path).read_text())),
    )
    Path(evaluation.path).write_bytes(result.to_json())
    Path(summary.path).write_text(result.to_markdown())
    for name, value in result.metrics.items():
        if math.isfinite(value):
            metrics.log_metric(f"test_{name}", value)
    return result.verdict, result.reason
