"""The retraining DAG: the checks, the canary, then training, evaluation, the gate and the promotion."""

from kfp import dsl

from ..components.evaluation.component import evaluate
from ..components.promotion.component import find_champion, promote
from ..components.slo.component import gate
from ..components.training.component import train
from .placement import Placement
from .pods import heavy, light
from .stages import INPUTS, checked_run, retention, stop_or_undecided, stopped


def retrain_pipeline(placement: Placement) -> "dsl.base_component.BaseComponent":
    """The pipeline `convergate-retrain`, for one kind of cluster."""

    def retrain(config: str, run_id: str = "", submitter: str = "") -> None:
        def then(run: object, plan: dsl.PipelineTask) -> None:
            _train_and_decide(config, run, plan, placement)

        checked_run("retrain", placement, config, run_id, submitter, then)

    retrain.__doc__ = "Retrain a model and decide over its promotion." + INPUTS
    return dsl.pipeline(
        retrain,
        name="convergate-retrain",
        display_name="convergate: retrain",
        pipeline_config=retention(placement),
        description="Validate, canary, train under a cosine-annealed learning rate, evaluate, and promote only when the"
        " convergence SLO says so.",
    )


def _train_and_decide(config: str, run: object, plan: dsl.PipelineTask, placement: Placement) -> None:
    """From the canary's PASS on."""
    trained = heavy(train(config=config, plan=plan.outputs["plan"]), "train", placement)
    with dsl.If(trained.outputs["verdict"] == "PASS", name="training-completes"):
        champion = light(find_champion(config=config), placement).set_display_name("find champion")
        candidate = heavy(
            evaluate(config=config, training=trained.outputs["training"], champion=champion.outputs["champion"]),
            "evaluate",
            placement,
        )
        decided = light(
            gate(
                config=config,
                run_id=run,
                plan=plan.outputs["plan"],
                training=trained.outputs["training"],
                evaluation=candidate.outputs["evaluation"],
            ),
            placement,
        )
        with dsl.If(decided.outputs["verdict"] == "PASS", name="gate-opens"):
            light(promote(config=config, run_id=run, decision=decided.outputs["decision"]), placement, memory="8Gi")
        stop_or_undecided(decided, placement, "gate")
    with dsl.Else(name="training-stops"):
        stopped(trained, placement)
