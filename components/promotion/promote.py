"""Setting the alias that serving follows, and taking it back. One order, and harmless when it is repeated.

Check the decision against config and checkpoint; copy the checkpoint to the release prefix; register the model; set
`challenger`. For PROMOTE go on: write the champion record by compare and swap, set `previous_champion`, then the
champion's alias, read both back. Where it breaks off, the record is the truth and `reconcile` sets the aliases.
"""

import getpass
import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..checkpoint import copy_checkpoint
from ..config import RunConfig, config_digests
from ..config.document import Document
from ..errors import ConvergateError, OutsideError
from ..slo.decision import KEY_VARIABLE, Decision
from ..storage import RunStore, S3Location
from .candidate import register_candidate
from .champion import ChampionRecord, Release, read_champion, write_champion
from .registry import find_or_create_run, mlflow_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER = "challenger"
PREVIOUS = "previous_champion"


class PromotionError(ConvergateError):
    """A decision that does not allow what was asked."""


class Promotion(Document):
    """What was set where."""

    model: str
    version: str
    alias: str
    uri: str
    """The released checkpoint."""
    digest: str
    audit_uri: str = ""

    def to_markdown(self) -> str:
        """For the UI."""
        return f"**{self.summary}**\n\n- checkpoint: `{self.uri}`\n- digest: `{self.digest}`\n- audit: `{self.audit_uri}`\n"


def promote_run(config: RunConfig, run_id: str, decision: Decision, actor: str = "") -> Promotion:
    """Do what a decision allows; stores and returns what was set.

    Raises:
        PromotionError: when the decision allows no alias, or is about another config.
        SignatureError: when a key is configured and the decision's signature does not match.
        CheckpointError: when the checkpoint is not what the decision says.
        ObjectExistsError: when somebody else promoted meanwhile.
        OutsideError: when S3 or MLflow fails.
    """
    started = perf_counter()
    _require_allowed(config, decision)
    root, model = config.storage.uri, config.promotion.model
    target = S3Location.parse(root) / "releases" / model / run_id
    uri, digest = copy_checkpoint(decision.checkpoint_uri, decision.checkpoint_digest, target)
    with mlflow_client() as client:
        mlflow_run = find_or_create_run(client, config.experiment, run_id)
        version = register_candidate(client, config, run_id, mlflow_run, uri, digest)
        _set_alias(client, model, CHALLENGER, version)
        alias, audit = CHALLENGER, ""
        if decision.decision == "PROMOTE":
            release = Release(version=version, run_id=run_id, uri=uri, digest=digest)
            audit = _crown(config, run_id, release, actor or _user(), decision.summary)
            reconcile(client, config)
            alias = config.promotion.alias
    promotion = Promotion(
        run_id=run_id,
        seconds=perf_counter() - started,
        summary=f"{model} v{version} is `{alias}`",
        model=model,
        version=version,
        alias=alias,
        uri=uri,
        digest=digest,
        audit_uri=audit,
    )
    RunStore(root, run_id).put("promotion", promotion)
    return promotion


def roll_back(config: RunConfig, reason: str, actor: str = "") -> ChampionRecord:
    """Make the previous champion champion again.

    Raises:
        PromotionError: when there is no previous champion.
    """
    root, model = config.storage.uri, config.promotion.model
    current = read_champion(root, model)
    if current is None or current.previous is None:
        raise PromotionError(f"{model} has no previous champion: there is nothing to go back to")
    record = ChampionRecord(
        run_id=current.previous.run_id,
        model=model,
        champion=current.previous,
        previous=current.champion,
        action="rollback",
        actor=actor or _user(),
        reason=reason,
        summary=f"{model} v{current.previous.version} is champion again",
    )
    write_champion(root, record, expected=current.champion)
    with mlflow_client() as client:
        reconcile(client, config)
    return record


def reconcile(client: "MlflowClient", config: RunConfig) -> None:
    """Set the registry's aliases to what the champion record says, and read them back."""
    model = config.promotion.model
    record = read_champion(config.storage.uri, model)
    if record is None:
        return
    if record.previous is not None:
        _set_alias(client, model, PREVIOUS, record.previous.version)
    _set_alias(client, model, config.promotion.alias, record.champion.version)


def _crown(config: RunConfig, run_id: str, release: Release, actor: str, reason: str) -> str:
    """Write the champion record, unless this run's release is champion already (a retried step)."""
    root, model = config.storage.uri, config.promotion.model
    current = read_champion(root, model)
    if current is not None and current.champion == release:
        return ""
    record = ChampionRecord(
        run_id=run_id,
        model=model,
        champion=release,
        previous=current.champion if current else None,
        action="promote",
        actor=actor,
        reason=reason,
        summary=f"{model} v{release.version} is champion",
    )
    return write_champion(root, record, expected=current.champion if current else None)


def _require_allowed(config: RunConfig, decision: Decision) -> None:
    if not decision.sets_alias:
        raise PromotionError(f"the decision of run {decision.run_id} is {decision.decision}: no alias may be set")
    digests = config_digests(config)
    if (decision.training_digest, decision.policy_digest) != (digests.training, digests.policy):
        raise PromotionError(f"the decision of run {decision.run_id} is about another config → convergate gate")
    key = os.environ.get(KEY_VARIABLE)
    if key:
        decision.verify(Path(key))


def _set_alias(client: "MlflowClient", model: str, alias: str, version: str) -> None:
    client.set_registered_model_alias(model, alias, version)
    found = str(client.get_model_version_by_alias(model, alias).version)
    if found != version:
        raise OutsideError(f"{model}@{alias} is version {found} after it was set to {version}: somebody else writes it")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
