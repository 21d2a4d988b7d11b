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

    Args:
        config: The run config, as YAML text.
        run_id: The run's id, from open_run.
        plan: The RunPlan: digests, derived seed, problems.
        summary: The problems, for the UI.

    Returns:
        verdict: PASS or FAIL; reason: the first error; config_digest: SHA-256 of what influences the weights.
    """
    from pathlib import Path

    from convergate.components.config import parse_config
    from convergate.components.config.plan import make_plan
    from convergate.components.storage import RunStore

    parsed = parse_config(config)
    document = make_plan(parsed, run_id)
    RunStore(parsed.storage.uri, run_id).put("plan", document)
    Path(plan.path).write_bytes(document.to_json())
    Path(summary.path).write_text(document.to_markdown())
    return document.verdict, document.reason, document.training_digest
