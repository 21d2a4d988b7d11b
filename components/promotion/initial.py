"""The weights that a run begins with: which checkpoint `training.init_from` means, looked up once a run."""

from ..checkpoint import CheckpointError
from ..checkpoint.reading import read_manifest
from ..config import Problem, RunConfig, config_digests
from ..config.plan import RunPlan
from ..config.preflight import InitialWeights
from ..config.texts import PIN
from ..storage import RunStore, S3Location, S3NotFoundError
from .champion import read_champion


def find_initial(config: RunConfig, run_id: str) -> InitialWeights | None:
    """The checkpoint that a run begins with, or what is wrong with it; None where its weights are random.

    A run that has a plan of this config keeps the plan's, so a retry begins with the same weights, whoever became
    champion meanwhile. Here the manifest is verified; what it holds is when it is loaded.

    Raises:
        OutsideError: when S3 fails, or the champion record cannot be read.
    """
    wanted = config.training.init_from
    if wanted is None:
        return None
    plan = RunStore(config.storage.uri, run_id).find("plan", RunPlan)
    if plan is not None and plan.init_uri and plan.training_digest == config_digests(config).training:
        return InitialWeights(plan.init_uri, plan.init_digest)
    if wanted == "champion":
        record = read_champion(config.storage.uri, config.promotion.model)
        if record is None:
            fix = "promote a run first, or begin with random weights: init_from: null"
            return _none(wanted, f"{config.promotion.model} has no champion yet", fix)
        uri, pin = record.champion.uri, record.champion.digest
    else:
        uri, _, pin = wanted.partition(PIN)
    try:
        _, digest = read_manifest(uri, pin or None)
    except (S3NotFoundError, CheckpointError) as error:
        return _none(wanted, str(error).partition(" → ")[0], "the prefix of a checkpoint that is committed, as it was")
    return InitialWeights(str(S3Location.parse(uri)), digest)


def _none(wanted: str, reason: str, fix: str) -> InitialWeights:
    return InitialWeights(problem=Problem("training.init_from", reason, value=wanted, fix=fix))
