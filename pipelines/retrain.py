"""The retraining DAG: every gate is a string verdict with an If and an Else, and every Else ends red.

An If alone on a named output is skipped in silence by KFP 2.17, and a NaN output skips both branches: so verdicts are
strings, and there is always an Else. The exit handler runs whatever happened.
"""

from kfp import dsl, kubernetes

from ..canary.component import canary
from ..components.config.component import validate_config
from ..components.data.component import validate_data
from ..components.evaluation.component import evaluate
from ..components.promotion.component import find_champion, promote
from ..components.slo.component import gate, open_run
from ..components.training.component import train
from .steps import close_run, stop

RETRIES = 2
MINUTES = 60
CONFIG_MAP, FROM_CONFIG_MAP = "convergate", ("AWS_ENDPOINT_URL", "AWS_REGION", "MLFLOW_TRACKING_URI")
"""The ConfigMap in the run's namespace, and its keys: the variables of every step that reads or writes anything."""
SECRET, FROM_SECRET = "convergate-s3", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""The same of the Secret. Both are optional: a pod's own role, AWS itself or the images may say it."""


def _sized(
    task: dsl.PipelineTask, *, cpu: str = "1", memory: str = "2Gi", minutes: int = 15, retries: int = RETRIES
) -> dsl.PipelineTask:
    """A step that needs no GPU: its requests, no cache (it has effects), a few retries, a timeout."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_caching_options(enable_caching=False)
    task.set_retry(num_retries=retries, backoff_duration="30s", backoff_factor=2)
    kubernetes.set_timeout(task, seconds=minutes * MINUTES)
    return task


def _light(task: dsl.PipelineTask, *, cpu: str = "1", memory: str = "2Gi") -> dsl.PipelineTask:
    """A sized step with the environment that leads to S3 and MLflow."""
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {name: name for name in FROM_CONFIG_MAP}, optional=True)
    kubernetes.use_secret_as_env(task, SECRET, {name: name for name in FROM_SECRET}, optional=True)
    return _sized(task, cpu=cpu, memory=memory)


def _heavy(task: dsl.PipelineTask, *, hours: int, cpu: str = "4", memory: str = "16Gi") -> dsl.PipelineTask:
    """A step on a GPU: a retry continues from the newest checkpoint."""
    _light(task, cpu=cpu, memory=memory)
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    kubernetes.set_timeout(task, seconds=hours * 60 * MINUTES)
    return task


def _stop(reason: object) -> None:
    """The red end; without retries, which would only repeat it, and without credentials, which it has no use for."""
    _sized(stop(reason=reason), retries=0).set_display_name("stop: see the reason")


def _train_and_decide(config: str, run: object, plan: dsl.PipelineTask) -> None:
    """From the canary's PASS on."""
    trained = _heavy(train(config=config, plan=plan.outputs["plan"]), hours=24)
    with dsl.If(trained.outputs["verdict"] == "PASS", name="training-completes"):
        champion = _light(find_champion(config=config))
        candidate = _heavy(
            evaluate(config=config, training=trained.outputs["training"], champion=champion.outputs["champion"]),
            hours=1,
        )
        decided = _light(
            gate(
                config=config,
                run_id=run,
                plan=plan.outputs["plan"],
                training=trained.outputs["training"],
                evaluation=candidate.outputs["evaluation"],
            )
        )
        with dsl.If(decided.outputs["verdict"] == "PASS", name="gate-opens"):
            _light(promote(config=config, run_id=run, decision=decided.outputs["decision"]), memory="8Gi")
        with dsl.Else(name="gate-stays-shut"):
            _stop(decided.outputs["reason"])
    with dsl.Else(name="training-stops"):
        _stop(trained.outputs["reason"])


@dsl.pipeline(
    name="convergate-retrain",
    description="Validate, canary, train under a cosine-annealed learning rate, evaluate, and promote only when the"
    " convergence SLO says so.",
)
def retrain(config: str, run_id: str = "", submitter: str = "") -> None:
    """Retrain a model and decide over its promotion.

    Args:
        config: The run config, as YAML text.
        run_id: An id for the run; empty takes the pipeline job's.
        submitter: Who or what started it, for the ledger.
    """
    job_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    closing = _light(close_run(config=config, run_id=run_id, job_id=job_id)).set_display_name("close run")
    with dsl.ExitHandler(closing, name="always-close-run"):
        opened = _light(open_run(config=config, run_id=run_id, job_id=job_id, kind="retrain", submitter=submitter))
        run = opened.output
        plan = _light(validate_config(config=config, run_id=run))
        with dsl.If(plan.outputs["verdict"] == "PASS", name="config-is-valid"):
            data = _light(validate_data(config=config, run_id=run), memory="4Gi")
            with dsl.If(data.outputs["verdict"] == "PASS", name="data-is-valid"):
                trial = _heavy(canary(config=config, plan=plan.outputs["plan"]), hours=1)
                with dsl.If(trial.outputs["verdict"] == "PASS", name="canary-passes"):
                    _train_and_decide(config, run, plan)
                with dsl.Else(name="canary-stops"):
                    _stop(trial.outputs["reason"])
            with dsl.Else(name="data-stops"):
                _stop(data.outputs["reason"])
        with dsl.Else(name="config-stops"):
            _stop(plan.outputs["reason"])
