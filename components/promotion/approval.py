"""A person's approval of a decision: signed, expiring, bound to that decision's document, and written once.

It stands beside the run's documents, at `<root>/runs/<run_id>/approvals/<digest of the decision>.json`. A
decision has at most one. One that expired before it was carried out is not renewed: the run is decided again,
with what is known by then, and that decision is approved.
"""

import getpass
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field

from ..config.document import Document
from ..config.signature import SignatureError, sign, verify
from ..errors import ConvergateError
from ..slo.decision import Decision
from ..storage import ObjectExistsError, RunStore


class ApprovalError(ConvergateError):
    """An approval that cannot be given, or that holds no longer."""


class Approval(Document):
    """Who approved which decision, why, and until when it may be carried out."""

    decision_digest: str
    """SHA-256 of the decision document, 64 hex digits."""
    approver: str
    reason: Annotated[str, Field(min_length=1)]
    expires: AwareDatetime
    signature: str = ""
    """Ed25519 over the canonical JSON of all the rest."""

    def signed(self, key_file: Path) -> "Approval":
        """The same approval with its signature.

        Raises:
            UserError: when the file is no Ed25519 private key.
        """
        return self.model_copy(update={"signature": sign(self._body(), key_file)})

    def verify(self, key_file: Path) -> None:
        """Check the signature, with the private or the public key.

        Raises:
            SignatureError: when it does not match.
        """
        try:
            verify(self._body(), self.signature, key_file)
        except SignatureError as error:
            raise SignatureError(f"the approval of run {self.run_id} by {self.approver}: {error}") from error

    def require(self, decision: Decision) -> None:
        """Check that it is about this decision, and still holds.

        Raises:
            ApprovalError: when it does not.
        """
        if (self.run_id, self.decision_digest) != (decision.run_id, decision_digest(decision)):
            raise ApprovalError(f"the approval by {self.approver} is about another decision of run {self.run_id}")
        if datetime.now(UTC) >= self.expires:
            raise ApprovalError(
                f"the approval of run {self.run_id} by {self.approver} expired at {self.expires:%Y-%m-%d %H:%M} UTC"
                f" → decide again, then approve: convergate gate {self.run_id}"
            )

    def _body(self) -> object:
        # Without defaults, as in a decision: a key added later breaks no old signature.
        return json.loads(self.model_dump_json(exclude={"signature"}, exclude_defaults=True))


def approve(
    root: str, decision: Decision, *, reason: str, key_file: Path, valid_for: timedelta, approver: str = ""
) -> Approval:
    """Approve a decision, and store that; an approval that it has already stands, whoever repeats it.

    Args:
        root: `storage.uri` of the run's config.
        decision: The run's decision.
        reason: Why; for whoever asks a year later.
        key_file: The approver's private key. For an approval that stands already, its public key will do.
        valid_for: How long it may be carried out.
        approver: Who; empty takes the user of this process.

    Raises:
        ApprovalError: when the decision is REJECT or HOLD.
        SignatureError: when the approval that stands does not match the key.
        UserError: when the file is no Ed25519 key.
        S3Error: when it cannot be stored.
    """
    if not decision.sets_alias:
        way_out = "decide again: convergate gate " + decision.run_id if decision.decision == "HOLD" else "retrain"
        raise ApprovalError(
            f"the decision of run {decision.run_id} is {decision.decision}, which nobody can approve → {way_out}"
        )
    approval = find_approval(root, decision)
    if approval is None:
        now = datetime.now(UTC)
        approval = Approval(
            run_id=decision.run_id,
            created=now,
            decision_digest=decision_digest(decision),
            approver=approver or current_user(),
            reason=reason,
            expires=now + valid_for,
        ).signed(key_file)
        store = RunStore(root, decision.run_id)
        try:
            store.store.create(store.prefix / f"{_name(decision)}.json", approval.to_json())
        except ObjectExistsError:
            approval = store.get(_name(decision), Approval)
    approval.verify(key_file)
    return approval


def find_approval(root: str, decision: Decision) -> Approval | None:
    """The approval of a decision, or None; its signature is not verified."""
    return RunStore(root, decision.run_id).find(_name(decision), Approval)


def approval_uri(root: str, decision: Decision) -> str:
    """Where the approval of a decision stands."""
    return f"{RunStore(root, decision.run_id).prefix / _name(decision)}.json"


def decision_digest(decision: Decision) -> str:
    """SHA-256 of a decision document, 64 hex digits."""
    return hashlib.sha256(decision.to_json()).hexdigest()


def current_user() -> str:
    """The user of this process, or `unknown` where nobody can tell."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _name(decision: Decision) -> str:
    return f"approvals/{decision_digest(decision)}"
