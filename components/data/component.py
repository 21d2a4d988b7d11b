"""The KFP face of data validation."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Markdown, Output

from ..images import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def validate_data(
    config: str,
    run_id: str,
    report: Output[Artifact],
    summary: Output[Markdown],
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):  # type: ignore[valid-type]
    """Hold the task's table against its expectations: shape, ranges, nulls, labels, duplicates, overlap of splits.

    The table is that of the config's `task.factory`, which has to be importable where the step runs. The report is
    also stored as `data.json` in the run's prefix.

    Args:
        config: The run config, as YAML text.
        run_id: The run's id.
        report: The DataReport as JSON: every expectation with the rows that fail it, and the data's digest.
        summary: The expectations, for the UI.

    Returns:
        verdict: PASS, or FAIL when an expectation does not hold or the task gives no table.
        reason: The first failed expectation with its rows.
    """
    from pathlib import Path

    from convergate.components.config import parse_config
    from convergate.components.data.validate import validate_data

    result = validate_data(parse_config(config), run_id)
    Path(report.path).write_bytes(result.to_json())
    Path(summary.path).write_text(result.to_markdown())
    return result.verdict, result.reason
