"""Setting the alias that serving follows, and taking it back. One order, and harmless when it is repeated.

Check the decision against config and run; copy the checkpoint, verified, to the release prefix; register the
model; set `challenger`. For PROMOTE go on: write the champion record by compare and swap against the champion
that the decision knew, audit it, set `previous_champion` and then the champion's alias, and read both back.
Where it breaks off, the record is the truth, and `reconcile` sets the aliases to it. A person's approval goes
the way of PROMOTE, and leaves `challenger` to the newest one.
"""

import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..checkpoint import CheckpointError, copy_checkpoint
from ..checkpoint.reading import read_manifest
from ..checkpoint.retention import RELEASES
from ..config import RunConfig, config_digests
from ..config.document import Document
from ..errors import ConvergateError, OutsideError
from ..slo.decision import KEY_VARIABLE, Decision
from ..storage import RunStore, S3Location, S3NotFoundError
from .approval import Approval, approval_uri, current_user, decision_digest
from .candidate import register_candidate
from .champion import ChampionRecord, Release, read_champion, write_audit, write_champion, write_once
from .registry import find_or_create_run, initial_tags, mlflow_client

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
    """The record of a change of champion; none for a challenger."""
    decision_digest: str = ""
    """SHA-256 of the decision document, 64 hex digits."""
    approval_uri: str = ""
    """The person's approval that was carried out; none where the decision alone allowed it."""

    def to_markdown(self) -> str:
        """For the UI."""
        facts = {
            "checkpoint": self.uri,
            "digest": self.digest,
            "audit": self.audit_uri,
            "approval": self.approval_uri,
        }
        return "\n".join([f"**{self.summary}**", "", *(f"- {k}: `{v}`" for k, v in facts.items() if v)]) + "\n"


def promote_run(
    config: RunConfig, run_id: str, decision: Decision, approval: Approval | None = None, actor: str = ""
) -> Promotion:
    """Do what a decision allows; stores and returns what was set. With an approval the run becomes champion.

    What was carried out is not carried out again: a step or an approval that is retried after a rollback
    doesn't undo it. The approval is one that `approve` gave: its signature is not looked at here.

    Raises:
        PromotionError: when the decision allows no alias, or is about another config, run or checkpoint; when
            the approval was carried out, and rolled back since.
        ApprovalError: when the approval is about another decision, or has expired.
        SignatureError: when a key is configured and the decision's signature does not match.
        CheckpointError: when the checkpoint is not what the decision says.
        ChampionChangedError: when the champion is no longer the one that the decision knew, or is it again.
        UserError: when the model cannot be exported.
        OutsideError: when S3 or MLflow fails.
    """
    started = perf_counter()
    _require_allowed(config, run_id, decision, approval)
    root, model = config.storage.uri, config.promotion.model
    store, digest_of_decision = RunStore(root, run_id), decision_digest(decision)
    done = _carried_out(config, store, digest_of_decision, approval)
    if done is not None:
        return done
    uri, digest = _release(decision, S3Location.parse(root) / RELEASES / model / run_id)
    with mlflow_client() as client:
        mlflow_run = find_or_create_run(client, config.experiment, run_id)
        initial = initial_tags(decision.init_uri, decision.init_digest)
        version = register_candidate(client, config, mlflow_run, uri, digest, initial)
        if approval is None:
            _set_alias(client, model, CHALLENGER, version)
        alias, audit = CHALLENGER, ""
        if approval is not None or decision.decision == "PROMOTE":
            release = Release(
                version=version,
                run_id=run_id,
                uri=uri,
                digest=digest,
                task=config.task,
                decision_digest=digest_of_decision,
            )
            audit = _crown(config, release, decision, approval, actor)
            _reconcile(client, config)
            alias = config.promotion.alias
    promotion = Promotion(
        run_id=run_id,
        seconds=perf_counter() - started,
        summary=f"{model} v{version} is `{alias}`" + (f", approved by {approval.approver}" if approval else ""),
        model=model,
        version=version,
        alias=alias,
        uri=uri,
        digest=digest,
        audit_uri=audit,
        decision_digest=digest_of_decision,
        approval_uri=approval_uri(root, decision) if approval else "",
    )
    store.put("promotion", promotion)
    return promotion


def _carried_out(config: RunConfig, store: RunStore, digest: str, approval: Approval | None) -> Promotion | None:
    """What was set for this decision before, with the aliases brought to the record; None where that is still to do."""
    done = store.find("promotion", Promotion)
    if done is None or done.decision_digest != digest or (approval is not None and not done.approval_uri):
        return None
    reconcile(config)
    if approval is not None:
        _require_champion(config, done)
    return done


def roll_back(config: RunConfig, reason: str, actor: str = "") -> ChampionRecord:
    """Make the previous champion champion again; repeated, it goes further back and never forward.

    Raises:
        PromotionError: when there is no previous champion.
        CheckpointError: when the previous champion's release was changed.
        ChampionChangedError: when somebody else promoted or rolled back meanwhile.
        OutsideError: when S3 or MLflow fails; once the record stands, `reconcile` finishes the rest.
    """
    root, model = config.storage.uri, config.promotion.model
    current = read_champion(root, model)
    if current is None or current.previous is None:
        raise PromotionError(f"{model} has no previous champion: there is nothing to go back to")
    back = current.previous
    read_manifest(back.uri, back.digest)
    record = ChampionRecord(
        run_id=back.run_id,
        model=model,
        champion=back,
        previous=current.earlier[0] if current.earlier else None,
        earlier=current.earlier[1:],
        action="rollback",
        actor=actor or current_user(),
        reason=reason,
        summary=f"{model} v{back.version} is champion again, v{current.champion.version} is not",
    )
    # An MLflow that is not there is met before the record is written: a repetition would go further back.
    with mlflow_client() as client:
        write_champion(root, record, expected=current)
        _reconcile(client, config)
    return record


def reconcile(config: RunConfig) -> None:
    """Set the registry's aliases to what the champion record says, and read them back.

    Raises:
        OutsideError: when MLflow fails, or another writer keeps changing an alias.
    """
    with mlflow_client() as client:
        _reconcile(client, config)


def _reconcile(client: "MlflowClient", config: RunConfig) -> None:
    model = config.promotion.model
    record = read_champion(config.storage.uri, model)
    if record is None:
        return
    if record.previous is not None:
        _set_alias(client, model, PREVIOUS, record.previous.version)
    elif PREVIOUS in client.get_registered_model(model).aliases:
        client.delete_registered_model_alias(model, PREVIOUS)
    _set_alias(client, model, config.promotion.alias, record.champion.version)


def _release(decision: Decision, target: S3Location) -> tuple[str, str]:
    """Copy the checkpoint to its release prefix, unless it stands there; a release is never overwritten.

    Its manifest is copied last: where it stands, so do the objects.
    """
    digest = decision.checkpoint_digest
    try:
        read_manifest(str(target), digest)
    except S3NotFoundError:
        return copy_checkpoint(decision.checkpoint_uri, digest, target)
    except CheckpointError as error:
        raise PromotionError(
            f"{target} holds another checkpoint than the decision's, {digest[:12]}…:"
            " a release is never overwritten → retrain as a new run"
        ) from error
    return str(target), digest


def _crown(config: RunConfig, release: Release, decision: Decision, approval: Approval | None, actor: str) -> str:
    """Write the champion record, unless the release is champion already; returns the audit record's URI.

    The decision is kept beside the run's documents under its digest: the run may be decided again.
    """
    root, model = config.storage.uri, config.promotion.model
    write_once(RunStore(root, decision.run_id).prefix / f"decisions/{release.decision_digest}.json", decision.to_json())
    current = read_champion(root, model)
    if current is not None and (current.champion.run_id, current.champion.digest) == (
        release.run_id,
        release.digest,
    ):
        return write_audit(root, current)
    previous, earlier = current.succeeded_by(release) if current else (None, ())
    record = ChampionRecord(
        run_id=release.run_id,
        model=model,
        champion=release,
        previous=previous,
        earlier=earlier,
        action="promote",
        actor=actor or (approval.approver if approval else current_user()),
        reason=approval.reason if approval else decision.summary,
        approval_uri=approval_uri(root, decision) if approval else "",
        summary=f"{model} v{release.version} is champion",
    )
    return write_champion(root, record, expected=current if knew_champion(decision, current) else None)


def knew_champion(decision: Decision, current: ChampionRecord | None) -> bool:
    """Whether a decision was made against the champion as it stands; also where there is none.

    One that went and came back since, by a rollback, does not count: a step that is retried would undo that.
    """
    return current is None or (current.champion.uri == decision.champion_uri and current.created <= decision.created)


def _require_allowed(config: RunConfig, run_id: str, decision: Decision, approval: Approval | None) -> None:
    if decision.run_id != run_id:
        raise PromotionError(f"the decision is about run {decision.run_id}, not {run_id}")
    if not decision.sets_alias:
        raise PromotionError(f"the decision of run {run_id} is {decision.decision}: no alias may be set")
    digests = config_digests(config)
    if (decision.training_digest, decision.policy_digest) != (digests.training, digests.policy):
        raise PromotionError(
            f"the decision of run {run_id} is about another config → decide again: convergate gate {run_id}"
        )
    key = os.environ.get(KEY_VARIABLE)
    if key:
        decision.verify(Path(key))
    if approval is not None:
        approval.require(decision)


def _require_champion(config: RunConfig, done: Promotion) -> None:
    """A promotion that was carried out, and taken back since, is not what a second approval of it asks for."""
    record = read_champion(config.storage.uri, config.promotion.model)
    if record is None or record.champion.run_id != done.run_id:
        now = f"v{record.champion.version} of run {record.champion.run_id}" if record else "nobody"
        raise PromotionError(
            f"the approval of run {done.run_id} was carried out, and the champion is {now} since"
            f" → decide again, then approve: convergate gate {done.run_id}"
        )


def _set_alias(client: "MlflowClient", model: str, alias: str, version: str) -> None:
    client.set_registered_model_alias(model, alias, version)
    found = str(client.get_model_version_by_alias(model, alias).version)
    if found != version:
        raise OutsideError(f"{model}@{alias} is v{found} after it was set to v{version}: somebody else writes it")
