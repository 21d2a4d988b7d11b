"""The KFP faces of promotion."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Output

from ..images import LIGHT_IMAGE, TORCH_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def find_champion(config: str, champion: Output[Artifact]) -> str:
    """Look up the champion that the candidate has to stand against.

    It reads the champion record on S3, which is the truth; the registry's alias follows it.

    Args:
        config: The run config, as YAML text.
        champion: JSON with its uri, its digest and the task that makes its model; the first two empty where there is
            none yet.

    Returns:
        The champion's uri, or nothing.
    """
    import json
    from pathlib import Path

    from convergate.components.config import parse_config
    from convergate.components.promotion.champion import champion_reference

    parsed = parse_config(config)
    reference = champion_reference(parsed.storage.uri, parsed.promotion.model)
    Path(champion.path).write_text(reference)
    uri: str = json.loads(reference)["uri"]
    return uri


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def promote(
    config: str,
    run_id: str,
    decision: Input[Artifact],
    promotion: Output[Artifact],
    summary: Output[Markdown],
) -> NamedTuple("Outputs", [("alias", str), ("version", str)]):  # type: ignore[valid-type]
    """Register the candidate and set the alias that the decision allows.

    The checkpoint is copied to a release prefix and logged as a self-contained MLflow model. Repeated, the step
    changes nothing. The promotion is also stored as `promotion.json` in the run's prefix.

    Args:
        config: The run config, as YAML text.
        run_id: The run's id.
        decision: The Decision of gate, as JSON, the same that gate stored in the run's prefix: another fails the step.
            REJECT and HOLD do too, and where CONVERGATE_DECISION_KEY names a key file a wrong signature does.
        promotion: The Promotion as JSON: model, version, alias, released checkpoint, audit record.
        summary: The same, for the UI.

    Returns:
        alias: `challenger`, or the config's `promotion.alias`.
        version: Of the registered model.
    """
    from pathlib import Path

    from convergate.components.config import parse_config
    from convergate.components.promotion.promote import promote_run
    from convergate.components.slo.decision import Decision
    from convergate.components.storage import RunStore

    parsed, given = parse_config(config), Decision.from_json(Path(decision.path).read_bytes())
    allowed = RunStore(parsed.storage.uri, run_id).require("decision", given)
    result = promote_run(parsed, run_id, allowed)
    Path(promotion.path).write_bytes(result.to_json())
    Path(summary.path).write_text(result.to_markdown())

    class Outputs(NamedTuple):
        alias: str
        version: str

    return Outputs(result.alias, result.version)
