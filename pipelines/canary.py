"""The canary DAG: the checks and the canary of a retraining, with nothing behind them; for a schedule or a CI."""

from kfp import dsl

from .placement import Placement
from .pods import ending
from .stages import INPUTS, checked_run, retention
from .steps import passed


def canary_pipeline(placement: Placement) -> "dsl.base_component.BaseComponent":
    """The pipeline `convergate-canary`, for one kind of cluster."""

    def canary(config: str, run_id: str = "", submitter: str = "") -> None:
        def then(_run: object, _plan: dsl.PipelineTask) -> None:
            ending(passed(), placement)  # a branch of KFP's holds a step, and every If has an Else

        checked_run("canary", placement, config, run_id, submitter, then)

    canary.__doc__ = "Run the canary of a config: green when it passes." + INPUTS
    return dsl.pipeline(
        canary,
        name="convergate-canary",
        display_name="convergate: canary",
        pipeline_config=retention(placement),
        description="Validate config and data, and run the canary on the hardware and the launcher that the training"
        " would have: nothing is trained to its end, and no alias is touched.",
    )
