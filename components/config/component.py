"""The KFP face of config validation."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Markdown, Output

from ..images import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def validate_config(
    config: str,
    run_id: str,
    plan: Output[Artifact],
    summary: Output[Markdown],
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str), ("config_digest", str)]):  # type: ignore[valid-type]
    """Check a run config before anything is paid for, and derive the run's plan.

    Warnings leave the verdict at PASS. Of a text that is no config of the schema, the plan has every problem and no
    digests. What `training.init_from` means is looked up on S3 once a run: a retried step keeps it. The plan is also
    stored as `plan.json` in the run's prefix.

    Args:
        config: The run config, as YAML text.
        run_id: The run's id, from open_run.
        plan: The RunPlan as JSON: both digests, the seed derived from run_id, steps, initial weights, problems.
        summary: The problems, for the UI.

    Returns:
        verdict: PASS, or FAIL when the text is no valid config or preflight finds an error.
        reason: The first error.
        config_digest: SHA-256 of what influences the weights, without the seed; 64 hex digits. Empty where the config
            is not valid.
    """
    from pathlib import Path

    from convergate.components.config.identity import identity
    from convergate.components.config.plan import plan_run
    from convergate.components.promotion.initial import find_initial
    from convergate.components.storage import RunStore

    document = plan_run(config, run_id, find_initial)
    RunStore(identity(config).root, run_id).put("plan", document)
    Path(plan.path).write_bytes(document.to_json())
    Path(summary.path).write_text(document.to_markdown())
    return document.verdict, document.reason, document.training_digest
